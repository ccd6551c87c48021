"""The session of a run whose updates are in a journal: whatever is killed goes on, and ends as if it had not been."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from eggroll_rl.config import resume_command
from eggroll_rl.engines.base import Engine
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.runs.journal import Entry, Header, Journal
from eggroll_rl.runs.resuming import is_snapshot_due, restore, save_snapshot
from eggroll_rl.runs.session import Desk, Session
from eggroll_rl.system.errors import NotFinite


class JournalledSession(Session):
    """A run that goes on from the newest state that it has, and has caught up with its journal."""

    def __init__(self, desk: Desk, engine: Engine, journal: Journal):
        start, measured = restore(engine, desk, journal), partial(desk.objective.measure, engine)
        super().__init__(desk, engine, measured, start, journal.seconds_at(start - 1), journal.seconds)
        self.engine, self.journal, self.evaluations = engine, journal, journal.evaluations
        with self.clock.paused():
            desk.watcher.begins(engine, journal)
            self._catch_up(start)

    def remaining(self) -> Iterator[int]:
        """The generations that are left, while the minutes last and nobody wants the end."""
        watcher = self.desk.watcher
        for generation in self.journal.remaining(self.desk.recipe.generations):
            if self.clock.expired or watcher.wants_end:
                return
            with self.clock.paused():
                watcher.step_begins(generation)
            yield generation

    def keep_evaluation(self, generation: int, seconds: float, record: dict[str, Any]) -> None:
        """As of any session, in the journal."""
        self.journal.append_evaluation(generation, seconds, record)

    @contextmanager
    def committed(self, entry: Entry) -> Iterator[None]:
        """Journal a generation, let the block take its step, and save a snapshot and evaluate where these are due, or
        where the watcher wants it.

        The journal comes first (write-ahead): from then on the generation is part of the run, whatever is killed.

        Raises:
            NotFinite: the block raised it; the journal ends with the generation before.
        """
        with self.desk.signals.held():
            self.journal.append(entry)
            with self._taken(entry):
                yield
        self._report_to_watcher(entry.generation + 1, entry.metrics["seconds"])

    def log_step(self, entry: Entry, update_rms: float) -> None:
        """Log a generation whose step, of that RMS over all evolved elements, is taken."""
        self.log(self.desk.run.log_generation(entry, update_rms))

    def finish(self, draw: Callable[[RunFolder], object]) -> None:
        """Measure, save and draw what the run ends with; the end in the journal is the last that is written."""
        self.save_all(len(self.journal), draw)
        self.desk.run.sync()
        self.journal.append_end(self.engine.weights_hash(), self.clock.seconds)
        self.desk.watcher.saved(len(self.journal))
        self.desk.watcher.ends()

    def _report_to_watcher(self, generation: int, seconds: float) -> None:
        """Tell the watcher of a step that is taken, and do what it wants, and what is due."""
        desk, watcher = self.desk, self.desk.watcher
        with self.clock.paused():
            watcher.step_ends()
            self.measure_where_due(generation, seconds)
            if watcher.wants_measure and generation not in self.evaluations:
                self.measure(generation)
            saved = is_snapshot_due(desk.recipe, generation)
            if watcher.wants_snapshot and not saved:
                save_snapshot(self.engine, desk, self.journal, generation)
            if saved or watcher.wants_snapshot:
                watcher.saved(generation)

    def _catch_up(self, start: int) -> None:
        """Replay what the journal has beyond so many updates."""
        self.measure_where_due(start, self.journal.seconds_at(start))
        for entry in self.journal.entries(start):
            self.desk.objective.follow(self.engine, entry.update.population)
            with self._taken(entry):
                self.log_step(entry, self.engine.apply(entry.update))
            self.measure_where_due(entry.generation + 1, entry.metrics["seconds"])

    @contextmanager
    def _taken(self, entry: Entry) -> Iterator[None]:
        """Let the block take the step of a journalled generation, which leaves the journal where it cannot be taken."""
        try:
            yield
        except NotFinite as error:
            if entry.generation + 1 == len(self.journal):
                self.journal.retract()
            raise NotFinite(f"generation {entry.generation}: {error}") from error
        self.clock.note("update")
        if is_snapshot_due(self.journal.recipe, entry.generation + 1):
            with self.clock.paused():
                save_snapshot(self.engine, self.desk, self.journal, entry.generation + 1)


@contextmanager
def journalled(desk: Desk, engine: Engine, journal: Journal | None) -> Iterator[JournalledSession]:
    """The session of a run that goes on with its journal, None: of a new one.

    Raises:
        UsageError: the engine's model is not the one that the run began with.
    """
    run, recipe, base = desk.run, desk.recipe, engine.weights_hash()
    if journal is None:
        data = desk.objective.fingerprint()
        header = Header(recipe=recipe, base_sha256=base, data_sha256=data, batch_bytes=engine.batch_bytes)
        with Journal.create(run.journal_file, header) as new, _going_on(desk, engine, new) as session:
            yield session
    else:
        journal.check_base(base)
        with _going_on(desk, engine, journal) as session:
            yield session


@contextmanager
def _going_on(desk: Desk, engine: Engine, journal: Journal) -> Iterator[JournalledSession]:
    with desk.explained(lambda: len(journal), f"go on with `{resume_command(desk.run.path)}`"):
        desk.run.write_recipe(desk.recipe)
        desk.run.write_environment(desk.recipe)
        yield JournalledSession(desk, engine, journal)
