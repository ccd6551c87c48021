"""The display of a run under way: on a terminal the held-out curve, an answer that changed and a progress bar, live;
elsewhere a plain line every few seconds."""

import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from eggroll_rl.runs.curve import changed_answer, curve_lines

LINE_EVERY = 5.0  # seconds between plain lines


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
        self._measured: list[str] = []
        self._panel = Live(get_renderable=self._render, console=self.console, refresh_per_second=4)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._panel.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._panel.stop()

    def _render(self) -> Group:
        return Group(*(Text(line, no_wrap=True, overflow="ellipsis") for line in self._measured), self._bar)

    def evaluations(self, records: Mapping[int, Mapping[str, Any]]) -> None:
        """Show the held-out curve of the evaluations, given by generation, and an answer that changed."""
        if self.console.is_terminal:
            self._measured = [*curve_lines(records, self.console.width - 10), *changed_answer(records)]

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, emoji=False)

    def generation(self, record: dict[str, Any]) -> None:
        """Show the record of a generation (see ``RunFolder.log_generation``)."""
        done = (record["generation"] + 1) / self.generations
        if self.minutes is not None:
            done = max(done, record["seconds"] / (60 * self.minutes))
        facts = "  ".join(_facts(record))
        self._bar.update(self._task, completed=min(done, 1.0), generation=record["generation"], facts=facts)
        now = time.monotonic()
        if not self.console.is_terminal and now - self._last_line >= LINE_EVERY:
            self._last_line = now
            left = record["seconds"] / done * (1 - done) if done < 1 else 0.0
            self.say(f"generation {record['generation']}  {facts}  {record['seconds']:.0f}s, {left:.0f}s left")


def _facts(record: dict[str, Any]) -> Iterator[str]:
    """Phrases about a generation: reward or bits per byte, RMS of the step, tokens per second, failed rewards."""
    for what, key in (("reward", "reward_mean"), ("bits per byte", "bits_per_byte")):
        if key in record:
            best = f"{key.removesuffix('_mean')}_best_member"
            yield f"{what} {_shown(record[key])}" + (f" (best member {_shown(record[best])})" if best in record else "")
    if "update_rms" in record:
        yield f"step {record['update_rms']:.1e}"
    yield f"{record['tokens_per_second']:,.0f} tokens/s"
    failed = sum(record.get("reward_failures", {}).values())
    if failed:
        yield f"{failed} rewards failed"


def _shown(reward: float | None) -> str:
    return "none" if reward is None else f"{reward:.3f}"
