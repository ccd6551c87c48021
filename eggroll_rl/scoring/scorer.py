"""Score a generation: call the recipe's reward functions, whatever they do, and sum their values into one tensor.

N members, P prompts. Row i of a batch is completion i of the N*P, member by member.
"""

import difflib
import logging
import math
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from eggroll_rl.config import RewardConfig, ScoringConfig
from eggroll_rl.scoring.given import GIVEN, GivenFunctions
from eggroll_rl.scoring.inputs import TRL, FrozenColumn, RewardInputs, TokenColumn, TrainerState
from eggroll_rl.scoring.process import Failure
from eggroll_rl.scoring.values import RewardOutputs, merged
from eggroll_rl.scoring.workers import Workers
from eggroll_rl.system.errors import UsageError

KINDS = ("timeout", "crash", "exception", "shape", "value")

logger = logging.getLogger(__name__)


class RewardBackend(Protocol):
    """Calls reward functions, by index, on rows of a batch: in workers (``Workers``) or here (``GivenFunctions``)."""

    required: list[list[str]]
    first_seconds: dict[int, float]

    def load(self, batch: RewardInputs) -> None: ...

    def call(self, index: int, rows: range) -> RewardOutputs: ...

    def search(
        self, index: int, rows: range, whole: Failure, on_failure: Callable[[Failure], None]
    ) -> tuple[list[tuple[range, RewardOutputs]], dict[int, Failure]]: ...

    def close(self) -> None: ...


class RewardError(UsageError):
    """A reward function failed on a completion, and the recipe says ``on_error: raise``."""


@dataclass(frozen=True)
class Scores:
    """What N members earned on P prompts, in float64.

    Attributes:
        rewards_NP: weighted sum over the functions that apply; NaN where none applies or one failed.
        by_function: unweighted values [N, P] by the function's name, NaN where None or failed.
        failures: number of failed values by kind: timeout, crash, exception, shape (no list of the right length), value
            (not a finite number, or a weighted sum that is none).
        metrics: means of what the functions gave to ``log_metric``, by name.
        extras: what they gave to ``log_extra``, ``[member][prompt]`` by column.
        unjudged_NP: bool, True where every function gave None, which means "does not apply"; None: nowhere.
    """

    rewards_NP: Tensor
    by_function: dict[str, Tensor]
    failures: dict[str, int]
    metrics: dict[str, float] = field(default_factory=dict)
    extras: dict[str, list[list[Any]]] = field(default_factory=dict)
    unjudged_NP: Tensor | None = None

    def logged(self) -> dict[str, Any]:
        """``metrics`` as an item of a generation's record; empty where no function logged any."""
        return {"logged": self.metrics} if self.metrics else {}

    def logged_of(self, member: int, prompt: int) -> dict[str, Any]:
        """``extras`` of one completion as an item of its sample; empty where no function logged any."""
        return {"logged": {name: values[member][prompt] for name, values in self.extras.items()}} if self.extras else {}


class Scorer:
    """Reward functions of a recipe, loaded in a worker process when this is constructed.

    A function is called once with all N*P completions of a batch (an async one with slices of it, concurrently). Where
    that fails, the batch is tried again in ever smaller parts, down to single completions, by all workers at once until
    the timeout has passed once more: at first each for a moment only, so that the sound ones do not wait for those that
    hang. What still fails, or was not reached, is NaN. So a function should judge every completion by itself. The parts
    do not depend on the number of workers.

    Args:
        functions: functions by name for rewards that are called ``given:NAME``; these are called in this process.

    Raises:
        UsageError: an import string leads nowhere, its module cannot be imported, or no function of a name is given.
    """

    def __init__(
        self,
        rewards: Sequence[RewardConfig],
        config: ScoringConfig | None = None,
        functions: Mapping[str, Callable[..., Any]] | None = None,
    ):
        self.rewards = tuple(rewards)
        self.config = config or ScoringConfig()
        self.names = distinct(reward.fn.rpartition(":")[2] for reward in rewards)
        imported = [reward.fn for reward in rewards if not reward.fn.startswith(GIVEN)]
        named = [reward.fn for reward in rewards if reward.fn.startswith(GIVEN)]
        given = GivenFunctions([_of_that_name(name, functions or {}) for name in named], self.config)
        self._workers: RewardBackend = given
        try:
            if imported:
                self._workers = Workers(imported, self.config)
        except Failure as failure:
            raise UsageError(failure.reason) from failure
        self._backends: list[tuple[RewardBackend, int]] = [
            (given, named.index(reward.fn)) if reward.fn in named else (self._workers, imported.index(reward.fn))
            for reward in rewards
        ]

    def check(self, columns: Iterable[str]) -> None:
        """Raise UsageError where a function has a required parameter that is no dataset column and none of TRL's."""
        given = list(columns)
        for reward, (backend, index) in zip(self.rewards, self._backends, strict=True):
            missing = [name for name in backend.required[index] if name not in (*TRL, *given)]
            if missing:
                near = difflib.get_close_matches(missing[0], given, n=1)
                raise UsageError(
                    f"reward {reward.fn!r} needs a column {missing[0]!r}; the data has {', '.join(given) or 'none'}: "
                    f"rename one with data.columns.{missing[0]}={near[0] if near else 'NAME'}"
                )

    def probe(self, prompts: Sequence[Any], columns: Mapping[str, Sequence[Any]]) -> None:
        """Call every function once, with an empty completion for each of the P prompts, to find mistakes early.

        Raises:
            UsageError: a column is missing, or a function failed in any way.
        """
        empty = ["" if isinstance(prompt, str) else [{"role": "assistant", "content": ""}] for prompt in prompts]
        self._load([empty], prompts, columns, [[()] * len(prompts)], TrainerState())
        for reward, (backend, index) in zip(self.rewards, self._backends, strict=True):
            try:
                outputs = backend.call(index, range(len(prompts)))
                for value in outputs.rewards:
                    if isinstance(value, str):
                        raise Failure("value", value)
            except Failure as failure:
                raise UsageError(f"reward {reward.fn!r} fails on empty completions: {failure.reason}") from failure

    def __call__(
        self,
        completions: Sequence[Sequence[Any]],
        prompts: Sequence[Any],
        columns: Mapping[str, Sequence[Any]],
        completion_ids: Sequence[Sequence[Sequence[int]]] | None = None,
        state: TrainerState | None = None,
    ) -> Scores:
        """Score completions ``[member][prompt]`` (texts or lists of messages), given P prompts and columns of length P.

        Args:
            completion_ids: their tokens, for functions that ask for them.
            state: of the run, likewise.

        Raises:
            UsageError: a column is missing, or a function's first call does not return one value for each completion.
            RewardError: a function failed and ``on_error`` is ``raise``.
        """
        N, P = len(completions), len(prompts)
        self._load(completions, prompts, columns, completion_ids, state or TrainerState())
        total_NP = torch.zeros(N, P, dtype=torch.float64)
        applies_NP, failed_NP = torch.zeros(N, P, dtype=torch.bool), torch.zeros(N, P, dtype=torch.bool)
        by_function = {}
        failures = dict.fromkeys(KINDS, 0)
        metrics: dict[str, tuple[float, int]] = {}
        extras: dict[str, list[list[Any]]] = {}
        for index, (name, reward) in enumerate(zip(self.names, self.rewards, strict=True)):
            outputs, failed = self._outputs(index, N * P)
            values = [math.nan if value is None else value for value in outputs.rewards]
            by_function[name] = values_NP = torch.tensor(values, dtype=torch.float64).view(N, P)
            total_NP += reward.weight * values_NP.nan_to_num()
            applies_NP |= ~values_NP.isnan()
            failed_NP.view(-1)[list(failed)] = True
            for failure in failed.values():
                failures[failure.kind] += 1
            for metric, (total, times) in outputs.metrics.items():
                before = metrics.get(metric, (0.0, 0))
                metrics[metric] = (before[0] + total, before[1] + times)
            for column, values in outputs.extras.items():
                extras.setdefault(column, [values[n * P : (n + 1) * P] for n in range(N)])
        failures["value"] += self._overflows(total_NP, ~failed_NP)
        rewards_NP = total_NP.masked_fill(failed_NP | ~applies_NP | ~total_NP.isfinite(), math.nan)
        means = {name: total / times for name, (total, times) in metrics.items()}
        return Scores(rewards_NP, by_function, failures, means, extras, ~applies_NP & ~failed_NP)

    def close(self) -> None:
        """End the processes."""
        for backend in {backend for backend, _ in self._backends}:
            backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _load(
        self,
        completions: Sequence[Sequence[Any]],
        prompts: Sequence[Any],
        columns: Mapping[str, Sequence[Any]],
        completion_ids: Sequence[Sequence[Sequence[int]]] | None,
        state: TrainerState,
    ) -> None:
        self.check(columns)
        for name, values in [*columns.items(), *((f"member {n}", answers) for n, answers in enumerate(completions))]:
            if len(values) != len(prompts):
                raise ValueError(f"{name} has {len(values)} values for {len(prompts)} prompts")
        arguments = {name: list(values) for name, values in columns.items()}
        arguments |= {"prompts": list(prompts), "completions": [text for answers in completions for text in answers]}
        try:
            sent = {name: FrozenColumn(values) for name, values in arguments.items()}
            if completion_ids is not None:
                sent["completion_ids"] = TokenColumn([tokens for answers in completion_ids for tokens in answers])
            batch = RewardInputs(sent, state)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise UsageError(
                f"a dataset column cannot be sent to the reward process: {error}; make it plain"
            ) from error
        for backend in {backend for backend, _ in self._backends}:
            backend.load(batch)

    def _outputs(self, index: int, count: int) -> tuple[RewardOutputs, dict[int, Failure]]:
        """One reward's outputs for all rows (None where a row failed), and the failures by row."""
        rows, (backend, place) = range(count), self._backends[index]
        failed: dict[int, Failure] = {}
        try:
            outputs = backend.call(place, rows)
        except Failure as failure:
            self._raise_if_fatal(index, failure)
            parts, failed = backend.search(place, rows, failure, partial(self._raise_if_fatal, index))
            outputs = merged(parts, rows)
        for row, value in enumerate(outputs.rewards):
            if isinstance(value, str):
                failed[row] = Failure("value", value)
                outputs.rewards[row] = None
        self._report(index, failed, count)
        return outputs, failed

    def _overflows(self, total_NP: Tensor, counted_NP: Tensor) -> int:
        """Count the weighted sums that are not finite, and warn or raise as the recipe says."""
        too_large = int((counted_NP & ~total_NP.isfinite()).sum())
        if too_large:
            message = f"the weighted sum of the rewards is no finite number on {too_large} completions"
            if self.config.on_error == "raise":
                raise RewardError(f"{message}; return smaller rewards, or lower their weights")
            logger.warning("%s; return smaller rewards, or lower their weights", message)
        return too_large

    def _raise_if_fatal(self, index: int, failure: Failure) -> None:
        """Raise a failure that ends the run: a first call of the wrong shape, or any if ``on_error`` is ``raise``."""
        reward, (backend, place) = self.rewards[index].fn, self._backends[index]
        if failure.kind == "shape" and place not in backend.first_seconds:
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


def _of_that_name(spec: str, functions: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    name = spec.removeprefix(GIVEN)
    if name not in functions:
        raise UsageError(
            f"reward {spec!r} is a function that a program gave to its trainer, and no file holds it: go on in that "
            f"program, or write the function into a file and name it path/file.py:{name}"
        )
    return functions[name]


def distinct(names: Iterable[str]) -> list[str]:
    """The names, with ``_2``, ``_3`` appended where one comes again."""
    distinct: list[str] = []
    for name in names:
        candidates = (name if n == 1 else f"{name}_{n}" for n in range(1, len(distinct) + 2))
        distinct.append(next(candidate for candidate in candidates if candidate not in distinct))
    return distinct
