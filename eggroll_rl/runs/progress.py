"""What a person sees of a run while it goes: a live panel on a terminal, plain lines elsewhere."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY = 5.0  # seconds between plain lines


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
        self._parts: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

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
        began = time.perf_counter()
        try:
            yield
        finally:
            self._started += time.perf_counter() - began


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


class ProgressDisplay:
    """Shows generations as they pass; used as a context manager."""

    def __init__(self, generations: int, minutes: float | None, console: Console | None = None):
        self.generations, self.minutes = generations, minutes
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._last_line = -LINE_EVERY
        self._bar = Progress(
            TextColumn("generation {task.fields[generation]}"),
            BarColumn(),
            TextColumn("{task.fields[facts]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("", total=1.0, generation=0, facts="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, emoji=False)

    def generation(self, record: dict[str, Any]) -> None:
        """Show the record of a generation (see ``RunFolder.log_generation``)."""
        done = (record["generation"] + 1) / self.generations
        if self.minutes is not None:
            done = max(done, record["seconds"] / (60 * self.minutes))
        best = f" (best member {_shown(record['reward_best_member'])})" if "reward_best_member" in record else ""
        step = f"  step {record['update_rms']:.1e}" if "update_rms" in record else ""
        facts = f"reward {_shown(record['reward_mean'])}{best}{step}  {record['tokens_per_second']:,.0f} tokens/s"
        failed = sum(record["reward_failures"].values())
        if failed:
            facts += f"  {failed} rewards failed"
        self._bar.update(self._task, completed=min(done, 1.0), generation=record["generation"], facts=facts)
        now = time.monotonic()
        if not self.console.is_terminal and now - self._last_line >= LINE_EVERY:
            self._last_line = now
            left = record["seconds"] / done * (1 - done) if done < 1 else 0.0
            self.say(f"generation {record['generation']}  {facts}  {record['seconds']:.0f}s, {left:.0f}s left")


def _shown(reward: float | None) -> str:
    return "none" if reward is None else f"{reward:.3f}"
