"""How answers are decoded, scored, and judged on held-out problems."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from eggroll_rl.config.data import DataConfig
from eggroll_rl.config.values import Count, CountOrZero, GiB, PathText, Seconds, Section, Seed, Temperature


class SamplingConfig(Section):
    """How an answer is decoded. It ends at the end token or after a stop string.

    ``repetition_penalty``, ``top_k``, ``top_p`` and ``min_p`` mean what they do in transformers, and apply in this
    order; vLLM applies ``min_p`` before the other two.
    """

    max_new_tokens: int = Field(256, ge=1, le=2**20)
    """The longest answer, in tokens."""
    temperature: Temperature = 0.0
    """0 is greedy: always the likeliest token."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sampling takes only the likeliest tokens that together have this probability."""
    top_k: int = Field(0, ge=0, le=2**20)
    """Sampling takes only so many of the likeliest tokens; 0: all."""
    min_p: float = Field(0.0, ge=0, le=1)
    """Sampling takes only tokens that are at least this many times as likely as the likeliest."""
    repetition_penalty: float = Field(1.0, ge=1e-2, le=100)
    """What the logits of tokens in the prompt or the answer so far are divided by, or multiplied where they are below
    0; greedily too. 1: none."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts after which an answer ends; they belong to it."""
    seed: Seed = 0
    """The seed of sampled answers; all members draw the same random numbers."""


class RewardConfig(Section):
    """A reward function. A completion's reward is the sum of all functions, each times its weight."""

    fn: PathText
    """``package.module:function`` or ``path/file.py:function``; ``given:NAME`` is a function that a program passed to
    its trainer."""
    weight: float = Field(1.0, ge=-1e6, le=1e6)
    """What its values are multiplied by."""


class ScoringConfig(Section):
    """How reward functions run: in processes of their own. A hang or crash costs only the completions at fault."""

    timeout: Seconds = 30.0
    """Seconds for one function over one batch; after a failure, as long again goes into finding the completions at
    fault."""
    workers: int | None = Field(None, ge=1, le=1024)
    """Processes that search for the completions at fault at once; null: as many as there are cores, at most 8."""
    memory_gib: GiB = 4.0
    """GiB that each process may allocate beyond its modules (Linux only)."""
    concurrency: int = Field(64, ge=1, le=2**16)
    """Slices of a batch that an async function gets at a time; 1 hands it the batch whole."""
    on_error: Literal["nan", "raise"] = "nan"
    """``nan`` drops a completion on which a function fails, ``raise`` ends the run at the first."""


Half = Literal["tuning", "judgement"]


class EvaluationConfig(Section):
    """Accuracy on held-out problems, or bits per byte of held-out text: before training, after it, and on the way."""

    n: Count = 512
    """Number of held-out problems, or with ``text`` of streams."""
    every: CountOrZero = 0
    """Generations from one evaluation to the next; 0: only before and after."""
    marks: int = Field(0, ge=0, le=10**6)
    """Divides the recipe's ``minutes`` into so many parts, and evaluates at the end of each, too; 0: not by time."""
    max_new_tokens: int | None = Field(None, ge=1, le=2**20)
    """The longest answer to a held-out problem, in tokens; null: ``sampling``'s, as in training."""
    half: Half | None = None
    """Takes the problems from one of two halves of the held-out ones, which have none in common: one for ``tuning``,
    the other for the ``judgement`` afterwards; null: from all."""
    reward: PathText | None = None
    """The function that judges: an answer is right where it gives at least 1. null: Countdown's for Countdown
    problems, else the first of the recipe's rewards."""


class RetentionConfig(Section):
    """A task that the run does not train, answered greedily wherever the run is evaluated."""

    data: DataConfig
    """The data, of which the held-out problems are asked."""
    reward: RewardConfig
    """The function that judges: an answer is right where it gives at least 1."""
    n: Count = 256
    """Number of problems."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts after which an answer ends."""
    max_new_tokens: int | None = Field(None, ge=1, le=2**20)
    """The longest answer, in tokens; null: the run's."""

    @field_validator("reward", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"fn": value} if isinstance(value, str) else value
