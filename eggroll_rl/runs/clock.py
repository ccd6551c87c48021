"""Training time: what a generation took and for what, how much of the minutes is left, and where their marks are."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import NamedTuple


class Lap(NamedTuple):
    """Seconds of the last generation, of all so far, and of the last by what they were noted for."""

    seconds: float
    total: float
    parts: Mapping[str, float] = MappingProxyType({})


class Stopwatch:
    """Training time, from the ``spent`` seconds that it begins with: what is ``paused`` does not count."""

    def __init__(self, minutes: float | None, spent: float = 0.0):
        self.limit = None if minutes is None else 60 * minutes
        self._started, self._lap, self._noted = time.perf_counter() - spent, spent, spent
        self._stopped: float | None = None  # since when it is paused
        self._parts: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        return (time.perf_counter() if self._stopped is None else self._stopped) - self._started

    @property
    def spent(self) -> float:
        """The share of the minutes that is over, at most 1; 0 where there is no limit."""
        return 0.0 if self.limit is None else min(1.0, self.seconds / self.limit)

    @property
    def expired(self) -> bool:
        return self.limit is not None and self.seconds >= self.limit

    def lap(self, last: str | None = None) -> Lap:
        """Time since the last call, or the start; what was not noted yet went into the part ``last``."""
        if last is not None:
            self.note(last)
        before, self._lap = self._lap, self.seconds
        parts, self._parts, self._noted = self._parts, {}, self._lap
        return Lap(self._lap - before, self._lap, parts)

    def note(self, part: str) -> None:
        """The time since the last note or lap went into ``part``."""
        before, self._noted = self._noted, self.seconds
        self._parts[part] = self._parts.get(part, 0.0) + self._noted - before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stand still inside; a pause within a pause is a part of it."""
        if self._stopped is not None:
            yield
            return
        self._stopped = time.perf_counter()
        try:
            yield
        finally:
            self._started += time.perf_counter() - self._stopped
            self._stopped = None


class Marks:
    """The ends of equal parts of a run's minutes, the last one aside, where a run is evaluated anyway.

    Args:
        minutes: of the run; None: there are no marks.
        parts: their number.
        seconds: of training so far.
    """

    def __init__(self, minutes: float | None, parts: int, seconds: float = 0.0):
        self._length = 60 * minutes / parts if minutes and parts else math.inf
        self._last, self._passed = parts - 1, int(seconds / self._length)

    def passed(self, seconds: float) -> bool:
        """Whether a mark was passed between the last call and this one."""
        before, self._passed = self._passed, min(int(seconds / self._length), self._last)
        return self._passed > before
