"""Countdown problems: combine every given number once, with + - * /, into the target. Solvable by construction."""

import random
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from eggroll_rl.config import DataConfig
from eggroll_rl.data.generated import Problems, Split, in_test_split
from eggroll_rl.system.errors import UsageError

PROMPT = (  # a template over the columns
    "Using the numbers {numbers}, create an equation that equals {target}. Use each number exactly once, with "
    "+ - * / and parentheses. Show your work in <think> </think> tags and the equation in <answer> </answer> tags.\n"
)
MOST_REJECTED = 100_000  # draws in a row of which none is a problem of the split before a range counts as empty


class Countdown(Problems):
    """A deterministic sequence of problems with columns ``prompt``, ``numbers`` (list of int) and ``target``.

    The target is an int, or a string such as ``"7/2"`` where the recipe allows fractions. Problem ``index`` of a split
    is a pure function of the ranges in the recipe. The splits are disjoint by a hash of (sorted numbers, target),
    whatever the ranges; test problems are distinct.
    """

    def __init__(self, config: DataConfig, split: Split, series: int = 0):
        _check_ranges(config)
        super().__init__(split, series)
        self.config = config

    def _key(self, problem: dict[str, Any]) -> str:
        return _key(problem["numbers"], problem["target"])

    def _exhausted(self, count: int) -> str:
        return (
            f"these data.numbers, low, high and targets hold only {count} held-out Countdown problems; "
            f"widen them or take evaluation.n={count}"
        )

    def _draws(self, stream: str) -> Iterator[dict[str, Any]]:
        """Problems of this split from one seeded stream, drawn by rejection."""
        config, rng, rejected = self.config, random.Random(stream), 0
        while rejected <= MOST_REJECTED:
            numbers = [rng.randint(config.low, config.high) for _ in range(rng.choice(config.numbers))]
            target = _combine([Fraction(number) for number in numbers], rng)
            rejected += 1
            if target is not None and self._wanted(target):
                shown = int(target) if target.denominator == 1 else str(target)
                if is_held_out(numbers, shown) == (self.split == "test"):
                    text = PROMPT.format(numbers=numbers, target=shown)
                    yield {"prompt": text, "numbers": numbers, "target": shown}
                    rejected = 0
        counts = " or ".join(map(str, config.numbers))
        raise UsageError(
            f"no {self.split} Countdown problem with {counts} numbers of {config.low} to {config.high} reaches a "
            f"target of {config.target_low} to {config.target_high}; widen data.target_low and data.target_high"
        )

    def _wanted(self, target: Fraction) -> bool:
        config = self.config
        size = abs(target) if config.negative else target
        return (config.fractional or target.denominator == 1) and config.target_low <= size <= config.target_high


def is_held_out(numbers: list[int], target: int | str) -> bool:
    """Whether a problem belongs to the test split, in every range and for every seed."""
    return in_test_split(_key(numbers, target))


def _key(numbers: list[int], target: int | str) -> str:
    return f"{sorted(numbers)} {target}"


def _combine(values: list[Fraction], rng: random.Random) -> Fraction | None:
    """The value of a random expression over all ``values``; None where it divides by zero."""
    while len(values) > 1:
        left, right = (values.pop(rng.randrange(len(values))) for _ in range(2))
        operator = rng.choice("+-*/")
        if operator == "/" and right == 0:
            return None
        values.append(
            left + right
            if operator == "+"
            else left - right
            if operator == "-"
            else left * right
            if operator == "*"
            else left / right
        )
    return values[0]


def _check_ranges(config: DataConfig) -> None:
    if config.low > config.high:
        raise UsageError(f"data.low={config.low} is above data.high={config.high}; swap them")
    if config.target_low > config.target_high:
        raise UsageError(
            f"data.target_low={config.target_low} is above data.target_high={config.target_high}; swap them"
        )
    if not config.numbers or not all(2 <= count <= 8 for count in config.numbers):
        raise UsageError(f"data.numbers={list(config.numbers)}: take counts from 2 to 8, as in [3, 4]")
