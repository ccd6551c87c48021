"""A recipe: the settings of one run."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator
from pydantic_core import PydanticKnownError
from pydantic_core.core_schema import ValidationInfo, ValidatorFunctionWrapHandler

from eggroll_rl.config.answers import EvaluationConfig, RetentionConfig, RewardConfig, SamplingConfig, ScoringConfig
from eggroll_rl.config.data import DataConfig
from eggroll_rl.config.engine import EngineConfig
from eggroll_rl.config.grpo import GRPOSection
from eggroll_rl.config.population import FitnessConfig, OptimizerConfig, ParametersConfig, PopulationConfig
from eggroll_rl.config.text import TextConfig
from eggroll_rl.config.values import Count, CountOrZero, PathText, PathValue, Section, Seed
from eggroll_rl.system.errors import UsageError

OF_ANSWERS = ("data", "rewards", "scoring", "sampling", "retention", "grpo")  # sections that ``text`` excludes
Weights = Literal["float", "int8"]
Exported = Literal["float", "int8", "w8a8"]


class SnapshotsConfig(Section):
    """Optimizer state on the disk: a resumed run replays its journal from there."""

    every: CountOrZero = 50
    """Generations from one snapshot to the next; 0: none are made."""
    keep: Count = 2
    """How many are kept, the newest."""


class TrackerConfig(Section):
    """Where the metrics go besides ``metrics.jsonl``; ``wandb`` alone is short for ``{name: wandb}``."""

    name: Literal["tensorboard", "wandb", "trackio"]
    """Which tracker."""
    project: str = "eggroll-rl"
    """The project in Weights & Biases or Trackio."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of ``wandb.init``, ``trackio.init`` or TensorBoard's ``SummaryWriter``."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Recipe(Section):
    """The settings of one run, which learns from answers to prompts, judged by ``rewards``, or from ``text``."""

    description: str = ""
    """A line for the list of recipes."""
    model: PathText
    """A Hugging Face model (name or folder), an RWKV-7 ``.pth``, ``embedded:NAME``, or ``egg:WIDTHxLAYERS``, which is
    new."""
    weights: Weights = "float"
    """How the model's linear layers, but the head, are stored: in ``engine.dtype``, or in int8 with one scale for each
    output, which learn without a float copy."""
    engine: EngineConfig = EngineConfig()
    """The engine, and where it runs."""
    data: DataConfig = DataConfig()
    """Where the prompts come from."""
    text: TextConfig | None = None
    """Text to foretell, in place of ``data``, ``rewards``, ``scoring`` and ``sampling``."""
    rewards: tuple[RewardConfig, ...] = Field((), validate_default=True)
    """What an answer is worth."""
    scoring: ScoringConfig = ScoringConfig()
    """How rewards run."""
    population: PopulationConfig = PopulationConfig()
    """The members."""
    parameters: ParametersConfig = ParametersConfig()
    """Which of the model's parameters evolve."""
    fitness: FitnessConfig = FitnessConfig()
    """How rewards become fitness weights of members."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How fitness weights become a step."""
    sampling: SamplingConfig = SamplingConfig()
    """How answers are decoded."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """When and on what the model is evaluated."""
    retention: RetentionConfig | None = None
    """A task that is not trained, whose accuracy is measured at each evaluation; null: none."""
    grpo: GRPOSection = GRPOSection()
    """Settings of the GRPO baseline alone."""
    snapshots: SnapshotsConfig = SnapshotsConfig()
    """When state is saved from which a resumed run goes on."""
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
        """Answers of one generation; with ``text`` the number of members."""
        return self.population.size * (1 if self.text else self.data.prompts * self.fitness.samples)

    @property
    def held_out_sampling(self) -> SamplingConfig:
        """How held-out problems are answered: as in training, but for ``evaluation.max_new_tokens``."""
        length = self.evaluation.max_new_tokens or self.sampling.max_new_tokens
        return self.sampling.model_copy(update={"max_new_tokens": length})

    @property
    def longest_answer(self) -> int:
        """Tokens of an answer at most, in training or evaluation."""
        return max(self.sampling.max_new_tokens, self.held_out_sampling.max_new_tokens)

    @property
    def source(self) -> str:
        """The name of the data or text."""
        return self.text.name if self.text else self.data.name

    def refuse_text(self, who: str) -> None:
        """Raise UsageError if the recipe has ``text``, because ``who`` needs answers."""
        if self.text is not None:
            raise UsageError(f"{who} is for recipes with rewards, and this one has text to foretell: name another")

    @model_validator(mode="after")
    def _samples_differ(self) -> "Recipe":
        if self.fitness.samples > 1 and self.sampling.temperature == 0:
            raise ValueError(
                f"fitness.samples {self.fitness.samples} answers to a prompt are all the same at "
                "sampling.temperature 0: raise that, or take fitness.samples=1"
            )
        return self

    @model_validator(mode="after")
    def _int8_has_no_copies(self) -> "Recipe":
        copies = [key for key in ("average", "anchor") if getattr(self.optimizer, key)]
        if self.weights == "int8" and copies:
            raise ValueError(f"weights int8 learn without a copy: drop optimizer.{copies[0]}, or take weights=float")
        if self.weights == "float" and not self.optimizer.error_feedback:
            raise ValueError("optimizer.error_feedback false is for weights=int8: float ones lose nothing to carry on")
        return self

    @field_validator("rewards", mode="wrap")
    @classmethod
    def _needed_without_text(cls, given: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        if given == () and info.data.get("text") is None:
            raise PydanticKnownError("missing")
        rewards = handler(given)
        if not rewards and info.data.get("text") is None:
            raise PydanticKnownError("too_short", {"field_type": "Tuple", "min_length": 1, "actual_length": 0})
        return rewards

    @model_validator(mode="after")
    def _either_text_or_answers(self) -> "Recipe":
        if self.text is None:
            return self
        given = [key for key in OF_ANSWERS if key in self.model_fields_set]
        given += [f"evaluation.{key}" for key in ("half", "max_new_tokens", "reward") if getattr(self.evaluation, key)]
        if given:
            told = ", ".join(f"text.{key}" for key in sorted(self.text.model_fields_set)) or "text"
            raise ValueError(f"{told} is of text to foretell, and {', '.join(given)} of answers: drop one or the other")
        if self.population.size % self.text.group:
            raise ValueError(
                f"population.size {self.population.size} does not divide into groups of text.group {self.text.group}: "
                "change one of them"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_idle_sections(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = handler(self)
        return {key: value for key, value in values.items() if self.text is None or key not in OF_ANSWERS}
