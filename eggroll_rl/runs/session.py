"""What every training loop shares: the run's folder, clock, display, trackers and signals, its evaluations and its end.

``runs.journalled`` adds the journal, snapshots and resuming.
"""

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
from eggroll_rl.runs.objective import Measurement, Objective
from eggroll_rl.runs.progress import ProgressDisplay
from eggroll_rl.runs.tracking import Trackers
from eggroll_rl.runs.watcher import Watcher
from eggroll_rl.system.interrupts import StopSignals


class Savable(Protocol):
    """A model that can be saved as an ordinary Hugging Face folder."""

    def save(self, folder: Path) -> None: ...


@dataclass(frozen=True)
class RunContext:
    """The recipe of a run and everything that is opened for it before its model is loaded."""

    recipe: Recipe
    blueprint: Blueprint
    run: RunFolder
    objective: Objective
    trackers: Trackers
    display: ProgressDisplay
    signals: StopSignals
    watcher: Watcher

    @contextmanager
    def reporting_end(self, generations: Callable[[], int], remedy: str) -> Iterator[None]:
        """After the block, tell the user where the run's files are; if the block raises, tell how many generations are
        done and what to do (``remedy``)."""
        complete = False
        try:
            yield
            complete = True
        finally:
            if not complete:
                self.display.say(f"cut short after {generations()} generations; {remedy}")
        self.display.say(f"model, metrics, samples, learning curve and report.html are in {self.run.path}")


@contextmanager
def prepared(
    recipe: Recipe, opening: AbstractContextManager[Objective], blueprint: Blueprint, watcher: Watcher | None = None
) -> Iterator[RunContext]:
    """Open everything that a run needs besides its model, and close it after the block.

    Args:
        opening: opens the objective.

    Raises:
        UsageError: a tracker is not installed, or the objective does not open.
    """
    run = RunFolder(recipe.output_dir)
    with (
        Trackers(recipe, run) as trackers,
        ProgressDisplay(recipe.generations, recipe.minutes) as display,
        StopSignals() as signals,
        opening as objective,
    ):
        yield RunContext(recipe, blueprint, run, objective, trackers, display, signals, watcher or Watcher())


class Session:
    """A run under way: it logs generations, evaluates the model when that is due, and saves it at the end.

    Args:
        model: is saved at the end.
        evaluate: measures the model as it is now.
        start: updates that the model has taken already.
        scheduled: seconds of training whose evaluations are made already.
        spent: seconds of training that are spent already.

    Attributes:
        clock: of training alone: evaluations, snapshots and replays do not count.
        evaluations: generation -> record of what was measured.
    """

    def __init__(
        self,
        context: RunContext,
        model: Savable,
        evaluate: Callable[[], Measurement],
        start: int = 0,
        scheduled: float = 0.0,
        spent: float = 0.0,
    ):
        context.trackers.start(start)
        self.context, self.model, self.evaluate = context, model, evaluate
        self.clock = Stopwatch(context.recipe.minutes, spent)
        self.evaluations: dict[int, dict[str, Any]] = {}
        self._schedule = Schedule(context.recipe, scheduled)

    def log(self, record: dict[str, Any]) -> None:
        """Show the record of a generation on the display and in the trackers, and tell the watcher."""
        self.context.display.generation(self.context.trackers.log("train", record))
        self.context.watcher.logged(record)

    def keep_evaluation(self, generation: int, seconds: float, record: dict[str, Any]) -> None:
        """Put an evaluation, made after so many updates and seconds of training, into ``evaluations``."""
        self.evaluations[generation] = {"generation": generation, "seconds": seconds, **record}

    def measure(self, generation: int) -> None:
        """Evaluate the model after so many updates and log the result; a resumed run logs the one that it has."""
        context, is_new = self.context, generation not in self.evaluations
        if is_new:
            with self.clock.paused():
                result = self.evaluate()
            record = result.record()
            self.keep_evaluation(generation, self.clock.seconds, record | self._changes(record))
            context.display.say(f"{result.title} at generation {generation}: {result}")
        context.display.evaluations(self.evaluations)
        record = context.trackers.log("eval", context.run.log_evaluation(self.evaluations[generation]))
        if is_new:
            context.watcher.measured(record)

    def _changes(self, record: dict[str, Any]) -> dict[str, int]:
        """How many problems were gained and lost since the first evaluation; empty where evaluations have no marks."""
        first = next(iter(self.evaluations.values()), {})
        return gained_and_lost(first["marks"], record["marks"]) if "marks" in first and "marks" in record else {}

    def measure_where_due(self, generation: int, seconds: float) -> None:
        """``measure``, if an evaluation is due after so many updates and seconds of training."""
        if self._schedule.is_due(generation, seconds) or generation in self.evaluations:
            self.measure(generation)

    def save_all(self, generation: int, draw: Callable[[RunFolder], object]) -> None:
        """Evaluate the model after the last update, save it, and draw the run's pictures with ``draw``."""
        if generation not in self.evaluations:
            self.measure(generation)
        with self.clock.paused():
            self.context.run.save_model(self.model.save)
            draw(self.context.run)
