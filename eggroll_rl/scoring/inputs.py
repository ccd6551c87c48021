"""What reward functions get: columns that they cannot change for each other, and a run's progress.

N members, P prompts. Row i of a batch is completion i of the N*P, the answer to prompt ``i % P``.
"""

import itertools
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

PLAIN = {str, int, float, bool, type(None)}  # what a reward cannot change
TRL = ("prompts", "completions", "completion_ids", "trainer_state", "log_metric", "log_extra")  # TRL's own arguments


@dataclass
class TrainerState:
    """A run's progress, for rewards to read, named as in transformers' ``TrainerState``; a step is a generation."""

    global_step: int = 0
    max_steps: int = 0
    epoch: float | None = None
    log_history: list[dict[str, float]] = field(default_factory=list)
    is_local_process_zero: bool = True
    is_world_process_zero: bool = True


class FrozenColumn:
    """A column that stays as it is, whatever a reward function does to the values that it gets."""

    def __init__(self, values: list[Any]):
        self._are_plain = PLAIN.issuperset(map(type, values))
        self._values = values if self._are_plain else [pickle.dumps(value) for value in values]

    def __call__(self, rows: range) -> list[Any]:
        """The values of these rows; mutable ones are copies."""
        values = self._of(rows)
        return values if self._are_plain else [pickle.loads(value) for value in values]

    def _of(self, rows: range) -> list[Any]:
        first = rows.start % len(self._values)
        return list(itertools.islice(itertools.cycle(self._values), first, first + len(rows)))


class TokenColumn(FrozenColumn):
    """The token ids of completions; every call returns new lists."""

    def __init__(self, values: list[Sequence[int]]):
        self._values = list(map(tuple, values))

    def __call__(self, rows: range) -> list[Any]:
        return list(map(list, self._of(rows)))


class RewardInputs(NamedTuple):
    """The arguments of reward functions.

    Attributes:
        columns: by name: N*P completions and their token ids; P prompts and P values of each dataset column, which are
            repeated for every member.
        state: the run's progress.
    """

    columns: dict[str, FrozenColumn]
    state: TrainerState
