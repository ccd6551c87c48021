"""Timings whose ratios hold on a machine whose speed varies: in every repeat all steps take their turn."""

import gc
import itertools
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

ROUNDS, SECONDS = 5, 25.0  # of ``interleaved`` where nobody says how many: at least so many, and for so long


class Timed(NamedTuple):
    """Of each step the seconds of every repeat, and how much it made in one: tokens, or whatever it counts."""

    seconds: dict[str, list[float]]
    made: dict[str, int]

    def median(self, step: str) -> float:
        """Seconds."""
        return statistics.median(self.seconds[step])

    def speed(self, step: str) -> float:
        """What the step makes in a second, by its median."""
        return self.made[step] / self.median(step)

    def ratio(self, fast: str, slow: str) -> float:
        """The median over the repeats of how many times as fast one is as the other."""
        pairs = zip(self.seconds[fast], self.seconds[slow], strict=True)
        return self.made[fast] / self.made[slow] * statistics.median(other / own for own, other in pairs)


def peak_memory() -> int:
    """Bytes that this process held at most so far."""
    gc.collect()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def interleaved(steps: Mapping[str, Callable[[], int]], repeats: int | None, warm_ups: int = 0) -> Timed:
    """Time steps that return how much they made; the first ``warm_ups`` rounds do not count.

    Args:
        repeats: rounds; None: ``ROUNDS``, and more of them until ``SECONDS`` have passed.
    """
    seconds: dict[str, list[float]] = {step: [] for step in steps}
    made: dict[str, int] = {}
    end = time.perf_counter() + (0 if repeats else SECONDS)
    for repeat in itertools.count(-warm_ups):
        if repeat >= (repeats or ROUNDS) and time.perf_counter() >= end:
            break
        for step, call in steps.items():
            started = time.perf_counter()
            made[step] = call()
            if repeat >= 0:
                seconds[step].append(time.perf_counter() - started)
    return Timed(seconds, made)
