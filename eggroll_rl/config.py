"""A recipe: YAML and ``key=value`` overrides become one validated, frozen object that is dumped with every run."""

import difflib
import reprlib
import shlex
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from eggroll_rl.system.errors import UsageError
from eggroll_rl.system.notation import read_yaml, write_yaml
from eggroll_rl.system.paths import expanded

CHAT_METHOD = {  # arguments of ``apply_chat_template`` that are not the template's
    *("conversation", "add_generation_prompt", "continue_final_message", "tokenize", "sanitize_control_tokens"),
    *("padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
    *("tokenizer_kwargs", "messages", "chat_template"),
}


def _at_least(least: float) -> AfterValidator:
    """Refuses what single precision takes for nothing; 0 itself is another rule's."""

    def check(value: float) -> float:
        if 0 < value < least:
            raise ValueError(f"{value} is as good as 0: take at least {least}")
        return value

    return AfterValidator(check)


# A path or a name, in which ``~`` and variables of the environment stand for what they do in a shell.
PathText = Annotated[str, AfterValidator(expanded)]
PathValue = Annotated[Path, BeforeValidator(lambda path: expanded(str(path)) if isinstance(path, str | Path) else path)]
# Beyond these bounds numbers overflow somewhere, or a run never ends.
Count = Annotated[int, Field(ge=1, lt=2**31)]
Turn = Annotated[int, Field(ge=0, lt=2**31)]
Processes = Annotated[int, Field(ge=1, le=4096)]
Rank = Annotated[int, Field(ge=1, le=4096)]
Seconds = Annotated[float, Field(gt=0, le=1e7), _at_least(1e-3)]
GiB = Annotated[float, Field(gt=0, le=2.0**20), _at_least(1e-3)]
Rate = Annotated[float, Field(gt=0, le=1e3), _at_least(1e-15)]
Decay = Annotated[float, Field(ge=0, le=10)]
Temperature = Annotated[float, Field(ge=0, le=100), _at_least(1e-3)]
Seed = Annotated[int, Field(ge=0, lt=2**64)]


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused and values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PoolConfig(Section):
    """Replicas of the engine in Ray actors, on this machine or on all of a Ray cluster that is running.

    ``chunk`` members go to a replica at a time, None: half of its equal share. A replica that takes ``patience`` times
    as long as the others, and at least ``grace`` seconds, is replaced. Every ``verify_every`` updates the replicas'
    weights are compared, 0: never. ``threads`` is torch's number in each replica, None: the actor's CPUs. ``actor`` are
    options of Ray's actors by their names there, such as ``num_gpus``.
    """

    replicas: Processes = 2
    chunk: Count | None = None
    patience: float = Field(5.0, gt=1, le=1e6)
    grace: Seconds = 60.0
    verify_every: Turn = 10
    threads: Processes | None = None
    actor: dict[str, Any] = Field(default_factory=dict)


class VLLMConfig(Section):
    """Options of the engine ``vllm``.

    ``slots`` members answer at a time, the others in waves after them; None: all at once. ``tensor_parallel_size``
    divides the model among so many GPUs, or on a CPU its cores among so many processes. ``masters`` says whether the
    fp32 weights and the optimizer are on the GPU or on the host. The rest goes to vLLM: ``gpu_memory_utilization`` is
    what it takes of a GPU before the masters come, ``kv_cache_gib`` its cache instead (None: by that share, or 2 on a
    CPU), ``max_model_len`` bounds prompt and answer together (None: the model's own), ``enforce_eager`` does without
    CUDA graphs.
    """

    slots: Count | None = None
    tensor_parallel_size: Processes = 1
    masters: Literal["device", "cpu"] = "device"
    gpu_memory_utilization: float = Field(0.7, gt=0, lt=1)
    kv_cache_gib: GiB | None = None
    max_model_len: Count | None = None
    enforce_eager: bool = False


class EngineConfig(Section):
    """What runs the model: ``local`` the fastest way in this process, ``transformers`` its forward passes alone,
    ``rwkv`` the same as ``local`` for RWKV-7 only, ``vllm``, or an engine that another package brings, with its
    ``options``. ``max_rows`` bounds the rows (members x prompts) of one batch; None: by ``batch_bytes``, what they may
    take of the memory; None: half of what is free at the start.

    ``pool`` runs it many times over; None: once, in this process. ``deadline``, in seconds, is for the replicas of a
    pool and the processes of a launcher: one that does not finish a call by then, or gives no sign of life for so long,
    is lost. A pool starts another in its place, a launch ends with a message.
    """

    name: str = "transformers"
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = Field("auto", pattern=r"^[a-z]+(:\d{1,4})?$")
    max_rows: Count | None = None
    batch_bytes: int | None = Field(None, ge=1, le=10**12)
    options: dict[str, Any] = Field(default_factory=dict)
    pool: PoolConfig | None = None
    deadline: float = Field(7200.0, gt=0, le=30 * 86400)
    vllm: VLLMConfig = VLLMConfig()


class DataConfig(Section):
    """Where the prompts come from.

    ``name`` is ``countdown`` or ``reasoning-gym:TASK`` (generators; ``options`` are those of the task), a task that
    another package brings, a Hugging Face dataset (name or folder), or a local file (JSONL, JSON, CSV or Parquet).
    ``prompt`` is a template over the row's columns (``"{question}\\n"``) or a list of chat messages with such
    templates; None takes the column ``prompt`` (the generator writes it). ``chat_template`` are arguments of the
    model's chat template, such as ``{enable_thinking: false}``. ``columns`` renames, ``{new: old}``; every column
    reaches the rewards by name. A field of a column is named ``column.field``, there and in a template.

    ``test_name`` is where the held-out examples are, if elsewhere. Of a file without, one question in ten is held out:
    rows that ask the same are on one side. They ask the same where the prompt is the same, or the column ``group``.
    """

    name: PathText = "countdown"
    prompts: int = Field(8, ge=1, le=2**20)
    prompt: str | list[dict[str, str]] | None = None
    chat_template: dict[str, Any] = Field(default_factory=dict)
    group: str | None = None
    subset: str | None = None
    split: str = "train"
    test_name: PathText | None = None
    test_split: str = "test"
    columns: dict[str, str] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)
    # the Countdown generator
    numbers: tuple[int, ...] = (3,)
    low: int = Field(1, ge=1, le=10**9)
    high: int = Field(15, ge=1, le=10**9)
    target_low: int = Field(1, ge=-(10**12), le=10**12)
    target_high: int = Field(100, ge=-(10**12), le=10**12)
    negative: bool = False
    fractional: bool = False

    @field_validator("numbers", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, int) else value

    @field_validator("chat_template")
    @classmethod
    def _for_the_template(cls, options: dict[str, Any]) -> dict[str, Any]:
        ours = sorted(CHAT_METHOD.intersection(options))
        if ours:
            raise ValueError(
                f"{ours[0]!r} is no argument of a template: how a chat is encoded follows from its messages"
            )
        return options


class RewardConfig(Section):
    """A reward function by import string (``package.module:function`` or ``path/file.py:function``) and its weight."""

    fn: PathText
    weight: float = Field(1.0, ge=-1e6, le=1e6)


class ScoringConfig(Section):
    """How reward functions run: in processes of their own, where a hang or crash costs only the completions at fault.

    ``timeout`` is in seconds, for one reward function over one batch; after a failure, as long again goes into finding
    the completions at fault, by ``workers`` processes at once; None: as many as there are cores, at most 8.
    ``memory_gib`` is what each may allocate beyond its modules (Linux only). An async
    function gets at most ``concurrency`` slices of a batch at a time; 1 hands it the batch whole. ``on_error: raise``
    ends the run at the first failure, ``nan`` drops the completion.
    """

    timeout: Seconds = 30.0
    workers: int | None = Field(None, ge=1, le=1024)
    memory_gib: GiB = 4.0
    concurrency: int = Field(64, ge=1, le=2**16)
    on_error: Literal["nan", "raise"] = "nan"


class PopulationConfig(Section):
    """Size N, rank r and scale sigma of the perturbations ``E = A B^T / sqrt(r)``; noise is redrawn every
    ``noise_reuse`` generations."""

    size: int = Field(256, ge=2)
    rank: Rank = 1
    sigma: Annotated[float, Field(gt=0, le=1e3), _at_least(1e-9)] = 1e-3
    antithetic: bool = True
    noise: Literal["normal", "rademacher"] = "normal"
    noise_reuse: Count = 1

    @field_validator("size")
    @classmethod
    def _fits_pair_index(cls, size: int) -> int:
        if size >= 2**31:
            raise ValueError("at most 2**31 - 1 members")
        return size

    @model_validator(mode="after")
    def _pairs_are_whole(self) -> "PopulationConfig":
        if self.antithetic and self.size % 2:
            raise ValueError(
                f"size {self.size} is odd, and antithetic members come in pairs: "
                f"take {self.size + 1}, or antithetic: false"
            )
        return self


class ParametersConfig(Section):
    """Which parameters evolve, as globs over canonical names; the first list that matches wins: frozen, dense, lowrank.

    Matrices that match ``lowrank`` get low-rank noise, anything that matches ``dense`` full Gaussian noise, the rest
    stays.
    """

    frozen: tuple[str, ...] = ("*embed*", "*lm_head*", "*wte*", "*wpe*", "*norm*", "*.ln*", "*.r_k")
    dense: tuple[str, ...] = ()
    lowrank: tuple[str, ...] = ("*",)


class FitnessConfig(Section):
    """How rewards become fitness weights (see ``es.fitness``); ``best`` keeps so many directions, None: all."""

    shaping: Literal["prompt", "zscore", "rank", "sign"] = "prompt"
    best: Count | None = None


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    """A stock torch optimizer over fp32 master weights; the schedule runs over ``generations``."""

    name: Literal["sgd", "adam", "adamw"] = "adam"
    lr: Rate = 1e-3
    momentum: float = Field(0.0, ge=0, lt=1)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: Decay = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: Turn = 0


class SamplingConfig(Section):
    """How an answer is decoded; ``temperature`` 0 is greedy. An answer ends at the end token or after a stop string."""

    max_new_tokens: int = Field(256, ge=1, le=2**20)
    temperature: Temperature = 0.0
    top_p: float = Field(1.0, gt=0, le=1)
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    seed: Seed = 0


class EvaluationConfig(Section):
    """Held-out accuracy before, after, and every ``every`` generations (0: only before and after) on ``n`` problems.

    ``marks`` parts of the recipe's ``minutes``: measured at the end of each, too (0: not by time). ``skip`` passes over
    the first so many held-out problems, and over copies of these: they are kept for a later judgement. ``reward`` names
    the function that judges: an answer is right where it gives at least 1. None: Countdown's for Countdown problems,
    else the first of the recipe's rewards.
    """

    n: Count = 512
    every: Turn = 0
    marks: int = Field(0, ge=0, le=10**6)
    skip: Turn = 0
    reward: PathText | None = None


class SnapshotsConfig(Section):
    """Optimizer state on the disk every ``every`` generations (0: never), the newest ``keep`` of them: a resumed run
    replays its journal from there."""

    every: Turn = 50
    keep: Count = 2


class GRPOSection(Section):
    """What only the GRPO baseline has (``eggroll-rl grpo``, TRL's trainer); everything else is the recipe's.

    A batch of rollouts is ``group`` sampled answers to each of ``prompts`` prompts. It makes ``minibatches`` optimizer
    steps, ``iterations`` times over; ``rows`` bounds the answers of one backward pass (None: a whole minibatch; fewer
    accumulate the same gradient). ``loss``, ``scale_rewards``, ``beta`` (weight of the KL divergence to the base model)
    and ``epsilon`` (clip) are TRL's. ``lora_rank`` trains adapters of that rank on all linear layers, None every
    parameter.
    """

    prompts: int = Field(8, ge=1, le=2**20)
    group: int = Field(8, ge=2, le=2**20)
    minibatches: Count = 4
    iterations: Count = 1
    rows: Count | None = None
    optimizer: Literal["sgd", "adam", "adamw", "radam"] = "radam"
    lr: Rate = 3e-6
    weight_decay: Decay = 0.0
    max_grad_norm: float = Field(1.0, gt=0, le=1e9)
    loss: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dr_grpo"
    scale_rewards: Literal["group", "batch", "none"] = "none"
    beta: float = Field(0.0, ge=0, le=1e3)
    epsilon: float = Field(0.2, gt=0, le=1e3)
    temperature: Annotated[Temperature, Field(gt=0)] = 1.0
    lora_rank: Rank | None = None
    gradient_checkpointing: bool = False

    @property
    def rollouts(self) -> int:
        """Answers of one batch."""
        return self.prompts * self.group

    @property
    def rows_of_a_pass(self) -> int:
        return self.rows or self.rollouts // self.minibatches

    @model_validator(mode="after")
    def _batch_divides(self) -> "GRPOSection":
        batch = f"a batch of {self.rollouts} answers (prompts {self.prompts} x group {self.group})"
        if self.rollouts % self.minibatches:
            raise ValueError(f"{batch} does not divide into {self.minibatches} minibatches: change one of the three")
        if self.rollouts // self.minibatches % self.rows_of_a_pass:
            raise ValueError(
                f"a minibatch of {self.rollouts // self.minibatches} answers does not divide into passes of "
                f"{self.rows} rows: change grpo.rows"
            )
        return self


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


def shipped_recipes() -> dict[str, Path]:
    """Names and files of the recipes that come with the package."""
    folder = Path(str(files("eggroll_rl.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file (or a shipped recipe by its name) and apply ``dotted.key=value`` overrides, values in YAML.

    Raises:
        UsageError: naming the file, key or value at fault and the nearest valid one.
    """
    path = shipped_recipes().get(str(source)) or Path(expanded(str(source)))
    if not path.is_file():
        near = difflib.get_close_matches(str(source), shipped_recipes(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"give a YAML file or one of: {', '.join(shipped_recipes())}"
        raise UsageError(f"no recipe {str(source)!r}; {hint}")
    try:
        values = read_yaml(path.read_bytes()) or {}
    except ValueError as error:
        raise UsageError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path}: a recipe is a mapping such as 'model: name', not a {type(values).__name__}")
    return build_recipe(values, overrides)


def build_recipe(values: dict[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe with these values and overrides; raises UsageError naming what is at fault."""
    for override in overrides:
        _assign(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise UsageError("; ".join(_explain(detail) for detail in error.errors())) from error


def resume_command(folder: Path) -> str:
    """The command line that goes on with the run in ``folder``."""
    return f"eggroll-rl train --resume {shlex.quote(str(folder))}"


def dump_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe so that ``load_recipe`` reads it back unchanged."""
    path.write_text(write_yaml(recipe.model_dump(mode="json")), encoding="utf-8")


def _assign(values: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    if not separator:
        raise UsageError(f"override {override!r} has no '='; write key=value, as in population.size=64")
    try:
        value = read_yaml(text)
    except ValueError as error:
        raise UsageError(f"override {override!r}: the value is not valid YAML; quote it") from error
    *parents, last = dotted.strip().split(".")
    node: Any = values
    for depth, key in enumerate(parents):
        slot = _slot(node, key, ".".join(parents[:depth]))
        if isinstance(node, dict) and node.get(slot) is None:
            node[slot] = {}
        node = node[slot]
    node[_slot(node, last, ".".join(parents))] = value


def _slot(node: Any, key: str, path: str) -> Any:
    """``key`` as the index into ``node``, which stands at ``path``: a mapping's key or the number of a list's item."""
    if isinstance(node, dict):
        return key
    if not isinstance(node, list):
        raise UsageError(
            f"no key {key!r} under {path!r}, which holds the plain value {node!r}; override {path!r} itself"
        )
    if not key.isdecimal() or int(key) >= len(node):
        raise UsageError(f"no item {key!r} in {path!r}: its {len(node)} items are numbered from 0")
    return int(key)


def _explain(detail: Any) -> str:
    """One pydantic error as a sentence; for an unknown key, with the nearest right one."""
    path = [str(part) for part in detail["loc"]]
    key = ".".join(path)
    if detail["type"] == "extra_forbidden":
        siblings = _fields_at(path[:-1])
        near = difflib.get_close_matches(path[-1], siblings, n=1)
        if near:
            return f"unknown key {key!r}: did you mean {'.'.join([*path[:-1], near[0]])!r}?"
        return f"unknown key {key!r}: the keys there are {', '.join(siblings)}"
    if detail["type"] == "missing":
        return f"{key!r} is missing"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" + ("" if detail["type"] == "value_error" else f" (got {reprlib.repr(detail['input'])})")


def _fields_at(path: list[str]) -> list[str]:
    model: Any = Recipe
    for part in path:
        if not part.isdigit():
            annotation = model.model_fields[part].annotation
            choices = (annotation, *getattr(annotation, "__args__", ()))
            model = next((choice for choice in choices if hasattr(choice, "model_fields")), model)
    return list(model.model_fields)
