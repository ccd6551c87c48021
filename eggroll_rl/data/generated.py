"""Base class of generators: problems without end, in two disjoint splits."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from hashlib import blake2b
from itertools import repeat
from typing import Any, Literal

from eggroll_rl.system.errors import UsageError

TEST_SHARE = 10  # one problem in ten is held out
REPEATS = 1000  # test problems drawn in a row, none of them new, before the split counts as exhausted

Split = Literal["train", "test"]


class Exhausted(UsageError):
    """No more than ``count`` distinct problems are held out."""

    def __init__(self, message: str, count: int):
        super().__init__(message)
        self.count = count


class Problems(ABC):
    """A deterministic sequence: problem ``index`` of a split is a pure function of the recipe.

    The splits are disjoint by a hash of what a problem asks; test problems are distinct. Training problems of another
    ``series`` are other draws.
    """

    def __init__(self, split: Split, series: int = 0):
        self.split, self.series = split, series
        self._distinct: list[dict[str, Any]] = []
        self._fresh = self._distinct_problems()

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.split == "train":
            return next(self._draws(f"train {self.series} {index}" if self.series else f"train {index}"))
        while len(self._distinct) <= index:
            fresh = next(self._fresh)
            if isinstance(fresh, Exhausted):
                raise fresh
            self._distinct.append(fresh)
        return self._distinct[index]

    @abstractmethod
    def _draws(self, stream: str) -> Iterator[dict[str, Any]]:
        """Problems of this split, as columns, from one seeded stream."""

    @abstractmethod
    def _key(self, problem: dict[str, Any]) -> str:
        """A text that two problems share if and only if they ask the same."""

    @abstractmethod
    def _exhausted(self, count: int) -> str:
        """The error message where only ``count`` test problems exist."""

    def _distinct_problems(self) -> Iterator[dict[str, Any] | Exhausted]:
        """Distinct test problems; once ``REPEATS`` draws in a row were known, the error to raise, again and again."""
        seen: set[str] = set()
        since_new = 0
        for problem in self._draws("test"):
            key = self._key(problem)
            since_new += 1
            if key not in seen:
                seen.add(key)
                since_new = 0
                yield problem
            elif since_new > REPEATS:
                yield from repeat(Exhausted(self._exhausted(len(seen)), len(seen)))


def in_test_split(key: str) -> bool:
    """Whether a problem of this ``key`` is in the test split, by a hash of it."""
    return int.from_bytes(blake2b(key.encode(), digest_size=4).digest()) % TEST_SHARE == 0
