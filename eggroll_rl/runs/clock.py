"""Training time: seconds of a generation and of its parts, the share of the minutes that is spent, and their marks."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import NamedTuple


class Lap(NamedTuple):
    """Seconds of the last generation, of all so far, and of each noted part of the last."""

    seconds: float
    total: float
    parts: Mapping[str, float] = MappingProxyType({})


class Stopwatch:
    """Measures training time, beginning with ``spent`` seconds; time in a ``paused`` block does not count."""

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
        """The share of the minutes that is spent, from 0 to 1; 0 where there is no limit."""
        return 0.0 if self.limit is None else min(1.0, self.seconds / self.limit)

    @property
    def expired(self) -> bool:
        return self.limit is not None and self.seconds >= self.limit

    def lap(self, last: str | None = None) -> Lap:
        """End a generation and return its seconds; time that no ``note`` counted goes to the part ``last``."""
        if last is not None:
            self.note(last)
        before, self._lap = self._lap, self.seconds
        parts, self._parts, self._noted = self._parts, {}, self._lap
        return Lap(self._lap - before, self._lap, parts)

    def note(self, part: str) -> None:
        """Count the time since the last note or lap for ``part``."""
        before, self._noted = self._noted, self.seconds
        self._parts[part] = self._parts.get(part, 0.0) + self._noted - before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time of the block; pauses may be nested."""
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
    """Points of time at which a run is evaluated: the ends of equal parts of its minutes, but the last.

    Args:
        minutes: of the run; None: there are no marks.
        parts: how many parts; 0: there are no marks.
        seconds: of training so far.
    """

    def __init__(self, minutes: float | None, parts: int, seconds: float = 0.0):
        self._length = 60 * minutes / parts if minutes and parts else math.inf
        self._last, self._passed = parts - 1, int(seconds / self._length)

    def passed(self, seconds: float) -> bool:
        """Whether a mark was passed between the last call and this one."""
        before, self._passed = self._passed, min(int(seconds / self._length), self._last)
        return self._passed > before
