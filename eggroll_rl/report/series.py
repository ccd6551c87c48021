"""The numbers of a run as arrays. Legend: G generations, E evaluations."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eggroll_rl.config import Recipe
from eggroll_rl.runs.folder import RunFolder

Array = NDArray[np.float64]

SMOOTH = 20  # generations
POINTS = 240  # of a drawn line, at most


@dataclass(frozen=True)
class History:
    """Records of a run's G generations and E evaluations, in order; ``rollouts``: answers of one generation (with text,
    members)."""

    generations: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    rollouts: int

    @classmethod
    def of(cls, run: RunFolder, recipe: Recipe) -> "History":
        records = run.metrics()
        is_grpo = run.grpo_file.is_file()
        return cls(
            [record for record in records if "lr" in record],
            [record for record in records if "lr" not in record],
            recipe.grpo.rollouts if is_grpo else recipe.rollouts,
        )

    def column(self, key: str) -> Array:
        """A metric [G]; NaN where a generation has none."""
        return _floats([record.get(key) for record in self.generations])

    def has(self, key: str) -> bool:
        return any(record.get(key) is not None for record in self.generations)

    def reward(self, name: str) -> Array:
        """The mean of one reward function [G]."""
        return _floats([record.get("rewards", {}).get(name) for record in self.generations])

    def quantiles(self) -> Array:
        """Quantiles of the members' rewards [G, Q] (see ``runs.metrics.QUANTILES``); Q is 0 where there are none."""
        rows = [record.get("reward_quantiles") or [] for record in self.generations]
        width = max(map(len, rows), default=0)
        return np.array([row or [np.nan] * width for row in rows], dtype=np.float64).reshape(len(rows), width)

    def measured(self, key: str) -> Array:
        """A number of the evaluations [E]; NaN where one has none."""
        return _floats([record.get(key) for record in self.evaluations])

    def spent(self, axis: str) -> tuple[Array, Array]:
        """``seconds``, ``rollouts`` or ``updates`` spent after each generation [G] and at each evaluation [E]."""
        if axis == "seconds":
            return self.column("seconds"), self.measured("seconds")
        each = self.rollouts if axis == "rollouts" else 1
        return (self.column("generation") + 1) * each, self.measured("generation") * each

    def total(self, key: str) -> float:
        return float(np.nansum(self.column(key)))

    def parts(self) -> list[str]:
        """What the seconds of a generation were spent on."""
        names = dict.fromkeys(key for record in self.generations for key in record if key.startswith("seconds_"))
        return [name.removeprefix("seconds_") for name in names if name != "seconds_generation"]

    def failures(self) -> dict[str, int]:
        """How many rewards failed, by the kind of failure."""
        total: dict[str, int] = {}
        for record in self.generations:
            for kind, number in record.get("reward_failures", {}).items():
                total[kind] = total.get(kind, 0) + number
        return total


def smoothed(values: Array, window: int = SMOOTH) -> Array:
    """Means of the last ``window`` values [G], NaN left out."""
    sums, counts = (np.cumsum(part, axis=0) for part in (np.nan_to_num(values), ~np.isnan(values)))
    sums[window:] -= sums[:-window].copy()
    counts[window:] -= counts[:-window].copy()
    return sums / np.where(counts, counts, np.nan)


def thinned(values: Array, points: int = POINTS) -> Array:
    """``values`` [G, ...] as means of neighbours, at most ``points`` of them; NaN is left out."""
    if len(values) <= points:
        return values
    starts = np.linspace(0, len(values), points, endpoint=False).astype(int)
    sums = np.add.reduceat(np.nan_to_num(values), starts, axis=0)
    counts = np.add.reduceat((~np.isnan(values)).astype(float), starts, axis=0)
    return sums / np.where(counts, counts, np.nan)


def time_scale(seconds: float) -> tuple[float, str]:
    """The unit in which a span of time is easily read: its seconds and its name."""
    return (1.0, "seconds") if seconds < 180 else (60.0, "minutes") if seconds < 10800 else (3600.0, "hours")


def _floats(values: list[float | None]) -> Array:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
