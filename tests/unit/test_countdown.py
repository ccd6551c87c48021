"""Countdown problems: solvable, reproducible, within their ranges, and never in both splits."""

import itertools
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from typing import Any

import pytest

from eggroll_rl.config import DataConfig
from eggroll_rl.data import countdown
from eggroll_rl.data.countdown import Countdown, is_held_out
from eggroll_rl.data.dataset import load_data
from eggroll_rl.system.errors import UsageError


@cache
def reachable(numbers: tuple[Fraction, ...]) -> frozenset[Fraction]:
    """Every value of an expression that uses each number exactly once."""
    if len(numbers) == 1:
        return frozenset(numbers)
    values = set()
    for size in range(1, len(numbers)):
        for chosen in itertools.combinations(range(len(numbers)), size):
            left = tuple(numbers[index] for index in chosen)
            right = tuple(number for index, number in enumerate(numbers) if index not in chosen)
            for x, y in itertools.product(reachable(left), reachable(right)):
                values |= {x + y, x - y, x * y} | ({x / y} if y else set())
    return frozenset(values)


def take(count: int, split: countdown.Split = "train", **ranges: Any) -> list[dict[str, Any]]:
    source = Countdown(DataConfig(**ranges), split)
    return [source[index] for index in range(count)]


def key(problem: dict[str, Any]) -> tuple[tuple[int, ...], str]:
    return tuple(sorted(problem["numbers"])), str(problem["target"])


def failure(split: countdown.Split, count: int = 1, **ranges: Any) -> str:
    with pytest.raises(UsageError) as error:
        take(count, split, **ranges)
    return str(error.value)


def fractions(numbers: Sequence[int]) -> tuple[Fraction, ...]:
    return tuple(map(Fraction, numbers))


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    "ranges",
    [
        {"numbers": (2,), "high": 30},
        {"numbers": (3,), "low": 4, "high": 9, "target_low": 10, "target_high": 30},
        {"numbers": (3, 4)},
        {"numbers": (3,), "negative": True, "fractional": True, "target_low": 2, "target_high": 9},
    ],
)
def test_every_problem_is_solvable_and_in_range(split: countdown.Split, ranges: dict[str, Any]) -> None:
    config = DataConfig(**ranges)
    for problem in take(30, split, **ranges):
        numbers, target = problem["numbers"], Fraction(problem["target"])
        assert len(numbers) in config.numbers
        assert all(config.low <= number <= config.high for number in numbers)
        assert config.target_low <= (abs(target) if config.negative else target) <= config.target_high
        assert target in reachable(fractions(numbers))
        assert problem["prompt"].startswith(
            f"Using the numbers [{', '.join(map(str, numbers))}], create an equation that equals {problem['target']}. "
        )


def test_all_counts_and_both_ends_of_the_range_come_up() -> None:
    problems = take(300, numbers=(2, 3, 4), low=5, high=8)
    assert {len(problem["numbers"]) for problem in problems} == {2, 3, 4}
    assert {number for problem in problems for number in problem["numbers"]} == {5, 6, 7, 8}


def test_negative_and_fractional_targets_come_where_asked() -> None:
    def kinds(**ranges: Any) -> tuple[bool, bool]:
        targets = [problem["target"] for problem in take(200, **ranges)]
        for target in targets:
            assert type(target) is (int if Fraction(target).denominator == 1 else str)
        return any(Fraction(target) < 0 for target in targets), any("/" in str(target) for target in targets)

    assert kinds() == (False, False)
    assert kinds(negative=True) == (True, False)
    assert kinds(fractional=True) == (False, True)
    assert kinds(negative=True, fractional=True) == (True, True)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_problem_is_a_function_of_its_index(split: countdown.Split) -> None:
    problems = take(40, split)
    source = Countdown(DataConfig(), split)
    assert [source[index] for index in reversed(range(40))] == problems[::-1]
    assert len({key(problem) for problem in problems}) > 30


def test_seeds_and_generations_have_problems_of_their_own() -> None:
    config = DataConfig(prompts=16)
    batches = [load_data(config, seed).batch(generation) for seed in (0, 1, 5) for generation in (0, 1)]
    indices = [index for batch in batches for index in batch.indices]
    assert len(set(indices)) == len(indices)
    assert load_data(config, 1).batch(1) == batches[3]
    assert load_data(config, 0).test(20) == load_data(config, 99).test(20)


def test_splits_are_disjoint_across_ranges_and_seeds() -> None:
    some: tuple[dict[str, Any], ...] = (
        {},
        {"numbers": (3, 4)},
        {"high": 9},
        {"high": 9, "negative": True, "fractional": True},
        {"numbers": (2,)},
    )
    train = {
        key({"numbers": numbers, "target": target})
        for seed in (0, 7)
        for ranges in some
        for batch in [load_data(DataConfig(prompts=300, **ranges), seed).batch(0)]
        for numbers, target in zip(batch.columns["numbers"], batch.columns["target"], strict=True)
    }
    test = {key(problem) for ranges in some for problem in take(25, "test", **ranges)}
    assert not train & test
    assert len(train) > 1000
    assert all(is_held_out(list(numbers[::-1]), target) for numbers, target in test)


def test_about_a_tenth_is_held_out() -> None:
    held_out = [
        is_held_out([a, b, c], t) for a in range(1, 9) for b in range(1, 9) for c in range(b, 9) for t in range(9)
    ]
    assert 0.08 < sum(held_out) / len(held_out) < 0.12


def test_test_problems_are_distinct_until_none_is_left() -> None:
    ranges = {"numbers": (2,), "low": 1, "high": 6, "target_high": 12}
    pairs = [(a, b) for a in range(1, 7) for b in range(a, 7)]
    targets = {(pair, value) for pair in pairs for value in reachable(fractions(pair)) if value.denominator == 1}
    left = {(pair, str(value)) for pair, value in targets if 1 <= value <= 12 and is_held_out(list(pair), int(value))}
    assert 2 <= len(left) <= 15
    assert {key(problem) for problem in take(len(left), "test", **ranges)} == left
    message = failure("test", len(left) + 1, **ranges)
    assert f"hold only {len(left)} held-out Countdown problems; widen them or take evaluation.n={len(left)}" in message


@pytest.mark.parametrize("split", ["train", "test"])
def test_targets_out_of_reach(monkeypatch: pytest.MonkeyPatch, split: countdown.Split) -> None:
    monkeypatch.setattr(countdown, "MOST_REJECTED", 3000)
    message = failure(split, numbers=(2,), high=3, target_low=50)
    assert "with 2 numbers of 1 to 3 reaches a target of 50 to 100; widen data.target_low" in message


def test_ranges_that_leave_a_split_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The only problems, 1 + 1 = 2 and 1 * 1 = 1, lie in one split."""
    monkeypatch.setattr(countdown, "MOST_REJECTED", 3000)
    sides = {is_held_out([1, 1], target) for target in (1, 2)}
    assert len(sides) == 1
    assert "widen" in failure("train" if sides.pop() else "test", numbers=(2,), low=1, high=1)


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ({"low": 9, "high": 3}, "data.low=9 is above data.high=3; swap them"),
        ({"target_low": 9, "target_high": 3}, "data.target_low=9 is above data.target_high=3; swap them"),
        ({"numbers": (1,)}, "data.numbers=[1]: take counts from 2 to 8"),
        ({"numbers": (3, 9)}, "data.numbers=[3, 9]: take counts from 2 to 8"),
        ({"numbers": ()}, "data.numbers=[]: take counts from 2 to 8"),
    ],
)
def test_ranges_that_make_no_sense(ranges: dict[str, Any], expected: str) -> None:
    assert expected in failure("train", **ranges)
