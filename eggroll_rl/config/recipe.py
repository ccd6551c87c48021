"""A recipe: all that one run is told."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from eggroll_rl.config.answers import EvaluationConfig, RewardConfig, SamplingConfig, ScoringConfig
from eggroll_rl.config.data import DataConfig
from eggroll_rl.config.engine import EngineConfig
from eggroll_rl.config.grpo import GRPOSection
from eggroll_rl.config.population import FitnessConfig, OptimizerConfig, ParametersConfig, PopulationConfig
from eggroll_rl.config.values import Count, PathText, PathValue, Section, Seed, Turn


class SnapshotsConfig(Section):
    """Optimizer state on the disk every ``every`` generations (0: never), the newest ``keep`` of them: a resumed run
    replays its journal from there."""

    every: Turn = 50
    keep: Count = 2


class TrackerConfig(Section):
    """Where the metrics go besides ``metrics.jsonl``; ``wandb`` alone is short for ``{name: wandb}``.

    ``project`` is that of Weights & Biases or Trackio; ``options`` go to ``wandb.init``, ``trackio.init`` or
    TensorBoard's ``SummaryWriter``.
    """

    name: Literal["tensorboard", "wandb", "trackio"]
    project: str = "eggroll-rl"
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Recipe(Section):
    """One run, whole."""

    description: str = ""
    model: PathText
    engine: EngineConfig = EngineConfig()
    data: DataConfig = DataConfig()
    rewards: tuple[RewardConfig, ...] = Field(min_length=1)
    scoring: ScoringConfig = ScoringConfig()
    population: PopulationConfig = PopulationConfig()
    parameters: ParametersConfig = ParametersConfig()
    fitness: FitnessConfig = FitnessConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    grpo: GRPOSection = GRPOSection()
    snapshots: SnapshotsConfig = SnapshotsConfig()
    trackers: tuple[TrackerConfig, ...] = ()
    generations: Count = 1000
    minutes: Annotated[float, Field(gt=0, le=1e7)] | None = None
    seed: Seed = 0
    output_dir: PathValue = Path("runs/run")
