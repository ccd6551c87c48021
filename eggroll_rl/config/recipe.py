"""A recipe: all that one run is told."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from eggroll_rl.config.answers import EvaluationConfig, RetentionConfig, RewardConfig, SamplingConfig, ScoringConfig
from eggroll_rl.config.data import DataConfig
from eggroll_rl.config.engine import EngineConfig
from eggroll_rl.config.grpo import GRPOSection
from eggroll_rl.config.population import FitnessConfig, OptimizerConfig, ParametersConfig, PopulationConfig
from eggroll_rl.config.values import Count, PathText, PathValue, Section, Seed, Turn


class SnapshotsConfig(Section):
    """Optimizer state on the disk: a resumed run replays its journal from there."""

    every: Turn = 50
    """Generations from one snapshot to the next; 0: none are made."""
    keep: Count = 2
    """How many are kept, the newest."""


class TrackerConfig(Section):
    """Where the metrics go besides ``metrics.jsonl``; ``wandb`` alone is short for ``{name: wandb}``."""

    name: Literal["tensorboard", "wandb", "trackio"]
    """Which tracker."""
    project: str = "eggroll-rl"
    """Of Weights & Biases or Trackio."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Of ``wandb.init``, ``trackio.init`` or TensorBoard's ``SummaryWriter``."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Recipe(Section):
    """One run, whole."""

    description: str = ""
    """What the list of recipes says of it."""
    model: PathText
    """A Hugging Face model (name or folder), an RWKV-7 ``.pth``, or ``embedded:NAME``."""
    engine: EngineConfig = EngineConfig()
    """The engine, and where it runs."""
    data: DataConfig = DataConfig()
    """Where the prompts come from."""
    rewards: tuple[RewardConfig, ...] = Field(min_length=1)
    """What an answer is worth."""
    scoring: ScoringConfig = ScoringConfig()
    """How rewards run."""
    population: PopulationConfig = PopulationConfig()
    """The members."""
    parameters: ParametersConfig = ParametersConfig()
    """What of the model evolves."""
    fitness: FitnessConfig = FitnessConfig()
    """From rewards to weights of members."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """From there to a step."""
    sampling: SamplingConfig = SamplingConfig()
    """How answers are decoded."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Held-out accuracy."""
    retention: RetentionConfig | None = None
    """What is not trained, measured beside it; null: nothing."""
    grpo: GRPOSection = GRPOSection()
    """Of the GRPO baseline alone."""
    snapshots: SnapshotsConfig = SnapshotsConfig()
    """What a resumed run begins with."""
    trackers: tuple[TrackerConfig, ...] = ()
    """Where metrics go."""
    generations: Count = 1000
    """Updates of the run."""
    minutes: Annotated[float, Field(gt=0, le=1e7)] | None = None
    """Training time after which a run ends, if it has not before; evaluations do not count. null: no limit."""
    seed: Seed = 0
    """Everything random follows from it."""
    output_dir: PathValue = Path("runs/run")
    """The run's folder, which must be new."""

    @property
    def rollouts(self) -> int:
        """Answers of one generation."""
        return self.population.size * self.data.prompts * self.fitness.samples

    @model_validator(mode="after")
    def _samples_differ(self) -> "Recipe":
        if self.fitness.samples > 1 and self.sampling.temperature == 0:
            raise ValueError(
                f"fitness.samples {self.fitness.samples} answers to a prompt are all the same at "
                "sampling.temperature 0: raise that, or take fitness.samples=1"
            )
        return self
