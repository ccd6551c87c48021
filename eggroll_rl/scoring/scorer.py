"""Rewards of a generation: user functions run in a process that may hang or crash, their values become one tensor.

N members, P prompts. Row i of a batch is completion i of the N*P, member by member.
"""

import logging
import math
import pickle
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from eggroll_rl.config import RewardConfig, ScoringConfig
from eggroll_rl.scoring.process import Failure, RewardProcess
from eggroll_rl.system.errors import UsageError

KINDS = ("timeout", "crash", "exception", "shape", "value")
SPLIT = 128  # parts of a batch that failed
SHORTEST = 1 / 20  # of the timeout, for the smallest part; at first less, where the function proved to be quick:
QUICK, SLACK = 0.25, 4.0  # seconds, and times what its first call took

logger = logging.getLogger(__name__)


class RewardError(UsageError):
    """A reward function failed on a completion, and the recipe says ``on_error: raise``."""


@dataclass(frozen=True)
class Scores:
    """What N members earned on P prompts, in float64.

    Attributes:
        rewards_NP: weighted sum over the functions that apply; NaN where none applies or one failed.
        by_function: unweighted values [N, P] by the function's name, NaN where None or failed.
        failures: number of failed values by kind: timeout, crash, exception, shape (no list of the right length), value
            (not a finite number).
    """

    rewards_NP: Tensor
    by_function: dict[str, Tensor]
    failures: dict[str, int]


class Scorer:
    """Reward functions of a recipe, loaded in a worker process when this is constructed.

    A function is called once with all N*P completions of a batch (an async one with slices of it, concurrently). Where
    that fails, the batch is tried again in ever smaller parts, down to single completions, until the timeout has passed
    once more: at first each for a moment only, so that the sound ones do not wait for those that hang. What still
    fails, or was not reached, is NaN. So a function should judge every completion by itself.

    Raises:
        UsageError: an import string leads nowhere, or its module cannot be imported.
    """

    def __init__(self, rewards: Sequence[RewardConfig], config: ScoringConfig | None = None):
        self.rewards = tuple(rewards)
        self.config = config or ScoringConfig()
        self.names = _distinct(reward.fn.rpartition(":")[2] for reward in rewards)
        self._first: dict[int, float] = {}  # seconds of each function's first call that gave a list of the right length
        try:
            self._process = RewardProcess([reward.fn for reward in rewards], self.config)
        except Failure as failure:
            raise UsageError(failure.reason) from failure

    def check(self, columns: Iterable[str]) -> None:
        """Raise UsageError where a function has a required parameter that is no dataset column."""
        given = list(columns)
        for reward, required in zip(self.rewards, self._process.required, strict=True):
            missing = [name for name in required if name not in ("prompts", "completions", *given)]
            if missing:
                raise UsageError(
                    f"reward {reward.fn!r} needs a column {missing[0]!r}; the data has {', '.join(given) or 'none'}: "
                    f"rename one with data.columns.{missing[0]}=NAME"
                )

    def probe(self, prompts: Sequence[Any], columns: Mapping[str, Sequence[Any]]) -> None:
        """Call every function once, with an empty completion for each of the P prompts.

        Raises:
            UsageError: a column is missing, or a function failed in any way.
        """
        empty = ["" if isinstance(prompt, str) else [{"role": "assistant", "content": ""}] for prompt in prompts]
        self._load([empty], prompts, columns)
        for index, reward in enumerate(self.rewards):
            try:
                answers = self._call(index, range(len(prompts)), self.config.timeout)
                for answer in answers:
                    if isinstance(answer, str):
                        raise Failure("value", answer)
            except Failure as failure:
                raise UsageError(f"reward {reward.fn!r} fails on empty completions: {failure.reason}") from failure

    def __call__(
        self, completions: Sequence[Sequence[Any]], prompts: Sequence[Any], columns: Mapping[str, Sequence[Any]]
    ) -> Scores:
        """Score completions ``[member][prompt]`` (texts or lists of messages), given P prompts and columns of length P.

        Raises:
            UsageError: a column is missing, or a function's first call does not return one value for each completion.
            RewardError: a function failed and ``on_error`` is ``raise``.
        """
        N, P = len(completions), len(prompts)
        self._load(completions, prompts, columns)
        total_NP = torch.zeros(N, P, dtype=torch.float64)
        applies_NP, failed_NP = torch.zeros(N, P, dtype=torch.bool), torch.zeros(N, P, dtype=torch.bool)
        by_function = {}
        failures = dict.fromkeys(KINDS, 0)
        for index, (name, reward) in enumerate(zip(self.names, self.rewards, strict=True)):
            values, failed = self._values(index, N * P)
            by_function[name] = values_NP = torch.tensor(values, dtype=torch.float64).view(N, P)
            total_NP += reward.weight * values_NP.nan_to_num()
            applies_NP |= ~values_NP.isnan()
            failed_NP.view(-1)[list(failed)] = True
            for failure in failed.values():
                failures[failure.kind] += 1
        return Scores(total_NP.masked_fill(failed_NP | ~applies_NP, math.nan), by_function, failures)

    def close(self) -> None:
        """End the worker process."""
        self._process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _load(
        self, completions: Sequence[Sequence[Any]], prompts: Sequence[Any], columns: Mapping[str, Sequence[Any]]
    ) -> None:
        self.check(columns)
        for name, values in [*columns.items(), *((f"member {n}", answers) for n, answers in enumerate(completions))]:
            if len(values) != len(prompts):
                raise ValueError(f"{name} has {len(values)} values for {len(prompts)} prompts")
        rows = [completion for answers in completions for completion in answers]
        try:
            self._process.load(list(prompts), rows, {name: list(values) for name, values in columns.items()})
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise UsageError(
                f"a dataset column cannot be sent to the reward process: {error}; make it plain"
            ) from error

    def _call(self, index: int, rows: range, seconds: float) -> list[float | str | None]:
        began = time.monotonic()
        answers = self._process.call(index, rows, seconds)
        self._first.setdefault(index, time.monotonic() - began)
        return answers

    def _limit(self, index: int, share: float) -> float:
        """Seconds for a part of a batch: its share of the timeout, or more where that is too little for any call."""
        timeout = self.config.timeout
        least = max(QUICK, SLACK * self._first.get(index, math.inf))
        return max(share * timeout, min(least, SHORTEST * timeout))

    def _values(self, index: int, count: int) -> tuple[list[float], dict[int, Failure]]:
        """The values of one function for all rows, NaN where None, and the rows that failed."""
        values = [math.nan] * count
        failed: dict[int, Failure] = {}
        timeout = self.config.timeout
        parts = deque([(range(count), timeout)])
        deadline = math.inf
        while parts:
            rows, limit = parts.popleft()
            left = deadline - time.monotonic()
            try:
                if left <= 0:
                    raise Failure("timeout", "no time was left to try it apart from others that failed")
                answers = self._call(index, rows, min(left, limit))
            except Failure as failure:
                self._raise_if_fatal(index, failure)
                deadline = min(deadline, time.monotonic() + timeout)
                if left <= 0:
                    failed = dict.fromkeys(rows, failure) | failed
                elif len(rows) == 1:
                    failed[rows[0]] = failure
                    if failure.kind == "timeout" and limit < SHORTEST * timeout:
                        parts.append((rows, SHORTEST * timeout))
                else:
                    step = math.ceil(len(rows) / SPLIT)
                    smaller = [rows[first : first + step] for first in range(0, len(rows), step)]
                    parts.extend((part, self._limit(index, len(part) / count)) for part in smaller)
                continue
            for row, answer in zip(rows, answers, strict=True):
                failed.pop(row, None)
                if isinstance(answer, str):
                    failed[row] = Failure("value", answer)
                elif answer is not None:
                    values[row] = answer
        self._report(index, failed, count)
        return values, failed

    def _raise_if_fatal(self, index: int, failure: Failure) -> None:
        """Raise what ends the run: a first call that shows a mistake, or any failure if the recipe says so."""
        reward = self.rewards[index].fn
        if failure.kind == "shape" and index not in self._first:
            raise UsageError(f"reward {reward!r} {failure.reason}; return one number or None for each") from failure
        if self.config.on_error == "raise":
            raise RewardError(f"reward {reward!r} failed ({failure.kind}): {failure.reason}") from failure

    def _report(self, index: int, failed: dict[int, Failure], count: int) -> None:
        if failed:
            row, failure = next(iter(failed.items()))
            self._raise_if_fatal(index, failure)
            kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(f.kind for f in failed.values()).items())
            message = "reward %r failed on %d of %d completions (%s); completion %d: %s"
            logger.warning(message, self.rewards[index].fn, len(failed), count, kinds, row, failure.reason)


def _distinct(names: Iterable[str]) -> list[str]:
    """The names, with ``_2``, ``_3`` appended where one comes again."""
    distinct: list[str] = []
    for name in names:
        candidates = (name if n == 1 else f"{name}_{n}" for n in range(1, len(distinct) + 2))
        distinct.append(next(candidate for candidate in candidates if candidate not in distinct))
    return distinct
