"""The session of a run with a journal: killed at any moment and resumed, it ends with the same weights and metrics."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from eggroll_rl.engines.base import Engine
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.runs.journal import Entry, Header, Journal
from eggroll_rl.runs.resuming import is_snapshot_due, restore, save_snapshot
from eggroll_rl.runs.session import RunContext, Session
from eggroll_rl.runs.whitening import clear_whitening, restore_whitening, save_whitening
from eggroll_rl.system.command import resume_command
from eggroll_rl.system.errors import NotFinite


class JournalledSession(Session):
    """A run that has loaded its newest snapshot, if any, and replayed what the journal has beyond it."""

    def __init__(self, context: RunContext, engine: Engine, journal: Journal):
        start, evaluate = restore(engine, context, journal), partial(context.objective.measure, engine)
        super().__init__(context, engine, evaluate, start, journal.seconds_at(start - 1), journal.seconds)
        self.engine, self.journal, self.evaluations = engine, journal, journal.evaluations
        with self.clock.paused():
            context.watcher.begins(engine, journal)
            self._catch_up(start)

    def remaining(self) -> Iterator[int]:
        """The generations that are not journalled yet, until the minutes are spent or the watcher wants the end."""
        watcher = self.context.watcher
        for generation in self.journal.remaining(self.context.recipe.generations):
            if self.clock.expired or watcher.wants_end:
                return
            with self.clock.paused():
                watcher.step_begins(generation)
            yield generation

    def keep_evaluation(self, generation: int, seconds: float, record: dict[str, Any]) -> None:
        """Append an evaluation to the journal, and so to ``evaluations``."""
        self.journal.append_evaluation(generation, seconds, record)

    @contextmanager
    def committed(self, entry: Entry) -> Iterator[None]:
        """Journal a generation, let the block take its step, then save a snapshot and evaluate if these are due or the
        watcher wants them.

        The journal comes first (write-ahead): once a generation is in it, a resumed run takes its step.

        Raises:
            NotFinite: the block raised it; the generation is out of the journal again.
        """
        with self.context.signals.held():
            self.journal.append(entry)
            with self._taken(entry):
                yield
        self._report_to_watcher(entry.generation + 1, entry.metrics["seconds"])

    def log_step(self, entry: Entry, update_rms: float) -> None:
        """Log a generation whose step is taken; ``update_rms`` is the step's RMS over all evolved elements."""
        self.log(self.context.run.log_generation(entry, update_rms))

    def finish(self, draw: Callable[[RunFolder], object]) -> None:
        """Evaluate, save and draw the final model, then mark the run complete by the end record of the journal."""
        self.save_all(len(self.journal), draw)
        self.context.run.sync()
        self.journal.append_end(self.engine.weights_hash(), self.clock.seconds)
        self.context.watcher.saved(len(self.journal))
        self.context.watcher.ends()

    def _report_to_watcher(self, generation: int, seconds: float) -> None:
        """After a step: tell the watcher, then evaluate and save a snapshot if these are due or it wants them."""
        context, watcher = self.context, self.context.watcher
        with self.clock.paused():
            watcher.step_ends()
            self.measure_where_due(generation, seconds)
            if watcher.wants_measure and generation not in self.evaluations:
                self.measure(generation)
            saved = is_snapshot_due(context.recipe, generation)
            if watcher.wants_snapshot and not saved:
                save_snapshot(self.engine, context, self.journal, generation)
            if saved or watcher.wants_snapshot:
                watcher.saved(generation)

    def _catch_up(self, start: int) -> None:
        """Replay the journal's updates after the first ``start``."""
        self.measure_where_due(start, self.journal.seconds_at(start))
        for entry in self.journal.entries(start):
            self.context.objective.follow(self.engine, entry.update.population)
            with self._taken(entry):
                self.log_step(entry, self.engine.apply(entry.update))
            self.measure_where_due(entry.generation + 1, entry.metrics["seconds"])

    @contextmanager
    def _taken(self, entry: Entry) -> Iterator[None]:
        """Let the block take the step of a journalled generation, and save a snapshot if one is due; a last generation
        whose step overflows leaves the journal."""
        try:
            yield
        except NotFinite as error:
            if entry.generation + 1 == len(self.journal):
                self.journal.retract()
            raise NotFinite(f"generation {entry.generation}: {error}") from error
        self.clock.note("update")
        if is_snapshot_due(self.journal.recipe, entry.generation + 1):
            with self.clock.paused():
                save_snapshot(self.engine, self.context, self.journal, entry.generation + 1)


@contextmanager
def journalled(context: RunContext, engine: Engine, journal: Journal | None) -> Iterator[JournalledSession]:
    """The session of a new run, or with a journal, of the run that it records.

    Raises:
        UsageError: the engine's model is not the base model of the journal.
    """
    run, recipe, base = context.run, context.recipe, engine.weights_hash()
    if journal is None:
        header = Header(recipe=recipe, base_sha256=base, data_sha256=context.objective.fingerprint())
        header.batch_bytes, seconds = engine.batch_bytes, 0.0
        if recipe.population.whitening is not None:
            began = time.monotonic()
            header.whitening_sha256 = save_whitening(run, context.objective.whiten(engine))
            seconds = time.monotonic() - began  # a part of training
        else:
            clear_whitening(run, engine)
        with Journal.create(run.journal_file, header) as new:
            new.seconds = seconds
            with _session(context, engine, new) as session:
                yield session
    else:
        journal.check_base(base)
        restore_whitening(engine, journal)
        with _session(context, engine, journal) as session:
            yield session


@contextmanager
def _session(context: RunContext, engine: Engine, journal: Journal) -> Iterator[JournalledSession]:
    with context.reporting_end(lambda: len(journal), f"go on with `{resume_command(context.run.path)}`"):
        context.run.write_recipe(context.recipe)
        context.run.write_environment(context.recipe)
        yield JournalledSession(context, engine, journal)
