"""What surrounds a training loop, whichever it is: its folder, clock, display, trackers, signals, evaluations that are
due, and the end. ``runs.journalled`` adds what a run with a journal has."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from eggroll_rl.config import Recipe
from eggroll_rl.models.blueprint import Blueprint
from eggroll_rl.runs.clock import Stopwatch
from eggroll_rl.runs.evaluation import Schedule, gained_and_lost
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.runs.objective import Measured, Objective
from eggroll_rl.runs.progress import ProgressDisplay
from eggroll_rl.runs.tracking import Trackers
from eggroll_rl.runs.watcher import Watcher
from eggroll_rl.system.interrupts import StopSignals


class Trained(Protocol):
    """A model that can be saved as an ordinary Hugging Face folder."""

    def save(self, folder: Path) -> None: ...


@dataclass(frozen=True)
class Desk:
    """All that a run has before its model is loaded."""

    recipe: Recipe
    blueprint: Blueprint
    run: RunFolder
    objective: Objective
    trackers: Trackers
    display: ProgressDisplay
    signals: StopSignals
    watcher: Watcher

    @contextmanager
    def explained(self, reached: Callable[[], int], how: str) -> Iterator[None]:
        """Where the block is cut short, say after how many generations, and how to go on; else where everything is."""
        complete = False
        try:
            yield
            complete = True
        finally:
            if not complete:
                self.display.say(f"cut short after {reached()} generations; {how}")
        self.display.say(f"model, metrics, samples, learning curve and report.html are in {self.run.path}")


@contextmanager
def prepared(
    recipe: Recipe, opening: AbstractContextManager[Objective], blueprint: Blueprint, watcher: Watcher | None = None
) -> Iterator[Desk]:
    """Everything that needs no model, with the objective open.

    Raises:
        UsageError: a tracker or the objective does not work.
    """
    run = RunFolder(recipe.output_dir)
    with (
        Trackers(recipe, run) as trackers,
        ProgressDisplay(recipe.generations, recipe.minutes) as display,
        StopSignals() as signals,
        opening as objective,
    ):
        yield Desk(recipe, blueprint, run, objective, trackers, display, signals, watcher or Watcher())


class Session:
    """A run under way; what it logs is seen in its folder, on the display and in the trackers.

    Args:
        measured: measures the model as it is.

    Attributes:
        clock: of training alone: evaluations, snapshots and replays do not count.
        evaluations: generation -> record of what was measured.
    """

    def __init__(
        self,
        desk: Desk,
        model: Trained,
        measured: Callable[[], Measured],
        start: int = 0,
        before: float = 0.0,
        spent: float = 0.0,
    ):
        desk.trackers.start(start)
        self.desk, self.model, self.measured = desk, model, measured
        self.clock = Stopwatch(desk.recipe.minutes, spent)
        self.evaluations: dict[int, dict[str, Any]] = {}
        self._schedule = Schedule(desk.recipe, before)

    def log(self, record: dict[str, Any]) -> None:
        """Show a record that is in the metrics of the run."""
        self.desk.display.generation(self.desk.trackers.log("train", record))
        self.desk.watcher.logged(record)

    def keep_evaluation(self, generation: int, seconds: float, record: dict[str, Any]) -> None:
        """Take note of an evaluation, after so many seconds of training, which is logged next."""
        self.evaluations[generation] = {"generation": generation, "seconds": seconds, **record}

    def measure(self, generation: int) -> None:
        """Log how good the model is after so many updates, which a resumed run may have measured before."""
        desk, is_new = self.desk, generation not in self.evaluations
        if is_new:
            with self.clock.paused():
                result = self.measured()
            record = result.record()
            self.keep_evaluation(generation, self.clock.seconds, record | self._changes(record))
            desk.display.say(f"{result.title} at generation {generation}: {result}")
        desk.display.evaluations(self.evaluations)
        record = desk.trackers.log("eval", desk.run.log_evaluation(self.evaluations[generation]))
        if is_new:
            desk.watcher.measured(record)

    def _changes(self, record: dict[str, Any]) -> dict[str, int]:
        """How many problems were gained and lost since the first evaluation, where these have marks."""
        first = next(iter(self.evaluations.values()), {})
        return gained_and_lost(first["marks"], record["marks"]) if "marks" in first and "marks" in record else {}

    def measure_where_due(self, generation: int, seconds: float) -> None:
        """The same, where the recipe wants it after so many updates and seconds of training."""
        if self._schedule.is_due(generation, seconds) or generation in self.evaluations:
            self.measure(generation)

    def save_all(self, generation: int, draw: Callable[[RunFolder], object]) -> None:
        """Measure, save and draw what the run ends with after so many updates."""
        if generation not in self.evaluations:
            self.measure(generation)
        with self.clock.paused():
            self.desk.run.save_model(self.model.save)
            draw(self.desk.run)
