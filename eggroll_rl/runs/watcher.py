"""Callbacks of a run: told of its steps, logs and evaluations, and able to ask for an evaluation, snapshot or end."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eggroll_rl.engines.base import Engine
    from eggroll_rl.runs.journal import Journal


class Watcher:
    """Base class of callbacks; this one does nothing and asks for nothing. A watcher never changes the weights or the
    records of a run.

    Attributes:
        wants_measure: whether the model is to be measured after this generation, due or not.
        wants_snapshot: whether a snapshot is to be saved after it.
        wants_end: whether it is to be the last.
    """

    wants_measure = False
    wants_snapshot = False
    wants_end = False

    def begins(self, engine: "Engine", journal: "Journal") -> None:
        """A run begins, or goes on after the updates in the journal."""

    def step_begins(self, generation: int) -> None:
        """The population of a generation is about to be drawn."""

    def logged(self, record: dict[str, Any]) -> None:
        """The record of a generation whose step is taken, or taken again where a run catches up with its journal."""

    def step_ends(self) -> None:
        """A generation is over: journalled, its step taken, its record logged."""

    def measured(self, record: dict[str, Any]) -> None:
        """The model was evaluated; ``record`` is in the metrics."""

    def saved(self, generation: int) -> None:
        """A snapshot, or the model that the run ends with, is on the disk."""

    def ends(self) -> None:
        """The run is complete."""
