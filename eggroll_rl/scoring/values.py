"""What reward functions return: a number, None or an error for each completion, and what they logged."""

import itertools
import math
import reprlib
from collections.abc import Iterable, Mapping, Set
from typing import Any, NamedTuple

LONGEST_TEXT = 256  # characters of a text in a reply
MOST_EXTRAS = 8  # columns of log_extra
MOST_METRICS = 64


class WrongShape(ValueError):
    """A reward function did not return one value for each completion."""


class RewardOutputs(NamedTuple):
    """What a reward function returned and logged for some rows.

    Attributes:
        rewards: for each row a float, None where the reward does not apply, or a text that says what is wrong.
        metrics: name -> sum and count of the values that ``log_metric`` got.
        extras: column -> a value for each row, from ``log_extra``.
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


def merged(parts: Iterable[tuple[range, RewardOutputs]], rows: range) -> RewardOutputs:
    """Join the outputs of parts of ``rows``; a row that is in no part has None."""
    whole = RewardOutputs([None] * len(rows), {}, {})
    for part, outputs in parts:
        first = part.start - rows.start
        whole.rewards[first : first + len(part)] = outputs.rewards
        for name, (total, times) in outputs.metrics.items():
            before = whole.metrics.get(name, (0.0, 0))
            whole.metrics[name] = (before[0] + total, before[1] + times)
        for column, values in outputs.extras.items():
            whole.extras.setdefault(column, [None] * len(rows))[first : first + len(part)] = values
    return whole


def checked(result: Any, count: int) -> list[float | str | None]:
    """The values that a function returned: for each of ``count`` completions a float, None, or a text that says what is
    wrong.

    Raises:
        WrongShape: it is no list, or one of another length.
    """
    values = _listed(result, count)
    if len(values) != count:
        raise WrongShape(f"returned {len(values)} values for {count} completions")
    return [_number(value) for value in values]


def _listed(result: Any, count: int) -> list[Any]:
    """A returned sequence as a list; of an iterator at most ``count + 1`` values are taken."""
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
    return str(value)[:LONGEST_TEXT]


def _shown(value: Any) -> str:
    return reprlib.repr(value)[:LONGEST_TEXT]
