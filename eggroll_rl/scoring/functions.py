"""Reward functions by import string: found, inspected, called on rows of a batch. Light: the reward process imports it.

N members, P prompts. Row i of a batch is completion i of the N*P, the answer to prompt ``i % P``.
"""

import difflib
import functools
import importlib
import inspect
import itertools
import math
import pickle
import reprlib
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from eggroll_rl.scoring import modules
from eggroll_rl.scoring.modules import NotFound

PLAIN = {str, int, float, bool, type(None)}  # what a reward cannot change
LONGEST_REPLY = 256  # characters of a text in a reply
MOST_EXTRAS = 8  # columns of log_extra
MOST_METRICS = 64
TRL = ("prompts", "completions", "completion_ids", "trainer_state", "log_metric", "log_extra")  # TRL's own arguments


class WrongShape(ValueError):
    """A reward function did not return one value for each completion."""


@dataclass
class TrainerState:
    """What rewards may read of a run's progress, under the names of transformers' ``TrainerState``.

    A generation is a step.
    """

    global_step: int = 0
    max_steps: int = 0
    epoch: float | None = None
    log_history: list[dict[str, float]] = field(default_factory=list)
    is_local_process_zero: bool = True
    is_world_process_zero: bool = True


class FrozenColumn:
    """Values that stay what they are, whatever a reward does to those it gets."""

    def __init__(self, values: list[Any]):
        self._are_plain = PLAIN.issuperset(map(type, values))
        self._values = values if self._are_plain else [pickle.dumps(value) for value in values]

    def __call__(self, rows: range) -> list[Any]:
        """The values of these rows; those that could be changed are new copies."""
        values = self._of(rows)
        return values if self._are_plain else [pickle.loads(value) for value in values]

    def _of(self, rows: range) -> list[Any]:
        first = rows.start % len(self._values)
        return list(itertools.islice(itertools.cycle(self._values), first, first + len(rows)))


class TokenColumn(FrozenColumn):
    """The tokens of completions, in tuples that nothing can change; every call gives new lists."""

    def __init__(self, values: list[Sequence[int]]):
        self._values = list(map(tuple, values))

    def __call__(self, rows: range) -> list[Any]:
        return list(map(list, self._of(rows)))


class RewardInputs(NamedTuple):
    """N*P completions, member by member, their tokens, P prompts and the dataset columns of those, by their names."""

    columns: dict[str, FrozenColumn]
    state: TrainerState


class Answer(NamedTuple):
    """What a reward gives for some rows.

    Attributes:
        rewards: a float for each, None where it does not apply, or a text saying what is wrong with it.
        metrics: values given to ``log_metric`` by name: their sum and number.
        extras: what ``log_extra`` got by column, a value for each row.
    """

    rewards: list[float | str | None]
    metrics: dict[str, tuple[float, int]]
    extras: dict[str, list[Any]]


class Log:
    """TRL's ``log_metric`` and ``log_extra``, for a call on ``count`` rows."""

    def __init__(self, count: int):
        self.count = count
        self.metrics: dict[str, tuple[float, int]] = {}
        self.extras: dict[str, list[Any]] = {}

    def metric(self, name: str, value: Any) -> None:
        """Note a number of this call; one that is not finite is left out."""
        number = float(value)
        name = _text(name)
        if math.isfinite(number) and (name in self.metrics or len(self.metrics) < MOST_METRICS):
            total, times = self.metrics.get(name, (0.0, 0))
            self.metrics[name] = (total + number, times + 1)

    def extra(self, column: str, values: Iterable[Any]) -> None:
        """Note a value for each completion of this call."""
        kept = [_noted(value) for value in _listed(values, self.count)]
        if len(kept) != self.count:
            raise ValueError(f"log_extra({column!r}) has {len(kept)} values for {self.count} completions")
        if column in self.extras or len(self.extras) < MOST_EXTRAS:
            self.extras[_text(column)] = kept


class RewardFunction:
    """A function with TRL's signature: which parameters it takes, and its values for some rows of a batch.

    ``required`` lists the parameters without default, ``source`` is the file of its code.
    """

    def __init__(self, spec: str):
        self.function, self._surroundings = _found(spec)
        parameters = inspect.signature(self.function).parameters.values()
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self.accepted = None if any(p.kind is p.VAR_KEYWORD for p in parameters) else {p.name for p in named}
        self.required = [p.name for p in named if p.default is p.empty]
        code = inspect.unwrap(_innermost(self.function))
        self.source: str = getattr(getattr(code, "__code__", None), "co_filename", "")
        self.is_async = inspect.iscoroutinefunction(_innermost(self.function))

    def __call__(self, batch: RewardInputs, rows: range, concurrency: int = 1) -> Answer:
        """Its values for these rows.

        An async function is called with ``concurrency`` slices of the rows at the same time.

        Raises:
            WrongShape: it returned no list, or one of another length.
        """
        with self._surroundings.here():
            if not self.is_async:
                log = Log(len(rows))
                return Answer(
                    _checked(self.function(**self._arguments(batch, rows, log)), len(rows)), log.metrics, log.extras
                )
            step = max(1, math.ceil(len(rows) / concurrency))
            slices = [rows[first : first + step] for first in range(0, len(rows), step)]
            answers: list[Answer] = _event_loop().run(self._concurrently(batch, slices))
            return merged(zip(slices, answers, strict=True), rows)

    async def _concurrently(self, batch: RewardInputs, slices: list[range]) -> list[Answer]:
        import asyncio

        logs = [Log(len(rows)) for rows in slices]
        tasks = [
            asyncio.ensure_future(self.function(**self._arguments(batch, rows, log)))
            for rows, log in zip(slices, logs, strict=True)
        ]
        try:
            results = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return [
            Answer(_checked(result, log.count), log.metrics, log.extras)
            for result, log in zip(results, logs, strict=True)
        ]

    def _arguments(self, batch: RewardInputs, rows: range, log: Log) -> dict[str, Any]:
        own: dict[str, Any] = {
            "trainer_state": pickle.loads(pickle.dumps(batch.state)),
            "log_metric": log.metric,
            "log_extra": log.extra,
        }
        arguments = {name: column(rows) for name, column in batch.columns.items() if self._takes(name)}
        return arguments | {name: value for name, value in own.items() if self._takes(name)}

    def _takes(self, name: str) -> bool:
        return self.accepted is None or name in self.accepted


def resolve(spec: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` or ``path/file.py:function`` names.

    Raises:
        NotFound: no colon, file, module or function of that name. What the module itself raises passes through.
    """
    return _found(spec)[0]


def merged(parts: Iterable[tuple[range, Answer]], rows: range) -> Answer:
    """The answers to parts of ``rows`` as one; a row that is in none of them has None."""
    whole = Answer([None] * len(rows), {}, {})
    for part, answer in parts:
        first = part.start - rows.start
        whole.rewards[first : first + len(part)] = answer.rewards
        for name, (total, times) in answer.metrics.items():
            before = whole.metrics.get(name, (0.0, 0))
            whole.metrics[name] = (before[0] + total, before[1] + times)
        for column, values in answer.extras.items():
            whole.extras.setdefault(column, [None] * len(rows))[first : first + len(part)] = values
    return whole


def explain(error: BaseException, source: str = "") -> str:
    """An exception in one line: type, text, and the innermost place in the file ``source``, or in any user's file."""
    text = " ".join(traceback.format_exception_only(error)[-1].split())[:300]
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    own = (__file__, modules.__file__, importlib.__file__)
    places = [frame for frame in frames if frame[0] not in own and frame[0][0] != "<"]
    if isinstance(error, SyntaxError) and error.filename:
        places = [(error.filename, error.lineno)]
    places = [place for place in places if place[0] == source] or places
    return text + (f" ({places[-1][0]}:{places[-1][1]})" if places else "")


def _found(spec: str) -> tuple[Callable[..., Any], modules.Surroundings]:
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise NotFound(f"reward {spec!r} has no ':'; write package.module:function or path/file.py:function")
    module, surroundings = modules.load(place)
    if not hasattr(module, name):
        own = {key: value for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
        names = [key for key, value in own.items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(names) or 'nothing to call'}"
        raise NotFound(f"reward {spec!r}: no {name!r} in {place}; {hint}")
    function: Callable[..., Any] = getattr(module, name)
    if not callable(function):
        raise NotFound(f"reward {spec!r} is a {type(function).__name__}; name a function")
    return function, surroundings


def _innermost(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function whose code runs: within partials, or the ``__call__`` of an object."""
    while isinstance(function, functools.partial):
        function = function.func
    return function if inspect.isroutine(function) else type(function).__call__


def _checked(result: Any, count: int) -> list[float | str | None]:
    values = _listed(result, count)
    if len(values) != count:
        raise WrongShape(f"returned {len(values)} values for {count} completions")
    return [_number(value) for value in values]


def _listed(result: Any, count: int) -> list[Any]:
    """The values of anything that has an order; of what is no list, at most one more than ``count``."""
    if hasattr(result, "tolist"):  # numpy, torch
        result = result.tolist()
    if not isinstance(result, Iterable) or isinstance(result, str | bytes | bytearray | Mapping | Set):
        raise WrongShape(f"returned {_shown(result)}, not a list of {count} numbers")
    return result if isinstance(result, list) else list(itertools.islice(result, count + 1))


def _number(value: Any) -> float | str | None:
    if value is None:
        return None
    if isinstance(value, str) or not hasattr(value, "__float__"):
        return f"returned {_shown(value)}, not a number"
    try:
        number = float(value)
    except (ArithmeticError, TypeError, ValueError) as error:
        return f"returned a {_text(type(value).__name__)} that is no number: {_text(error)}"
    return number if math.isfinite(number) else f"returned {number}, not a finite number"


def _noted(value: Any) -> Any:
    """A value of log_extra as JSON can hold it."""
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    is_plain = value is None or type(value) is bool or (type(value) is int and abs(value) < 2**53)
    return value if is_plain else _text(value)


def _text(value: Any) -> str:
    return str(value)[:LONGEST_REPLY]


def _shown(value: Any) -> str:
    return reprlib.repr(value)[:LONGEST_REPLY]


@functools.cache
def _event_loop() -> Any:
    """One event loop for the life of the process, so that clients kept by the user stay usable."""
    import asyncio

    return asyncio.Runner()
