"""How answers are decoded, scored, and judged on held-out problems."""

from typing import Annotated, Literal

from pydantic import Field

from eggroll_rl.config.values import Count, GiB, PathText, Seconds, Section, Seed, Temperature, Turn


class SamplingConfig(Section):
    """How an answer is decoded; ``temperature`` 0 is greedy. An answer ends at the end token or after a stop string."""

    max_new_tokens: int = Field(256, ge=1, le=2**20)
    temperature: Temperature = 0.0
    top_p: float = Field(1.0, gt=0, le=1)
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    seed: Seed = 0


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
