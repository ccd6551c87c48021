"""Shares of right answers and their intervals, against scipy and brute force."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from scipy.stats import binomtest

from eggroll_rl.config import Recipe, SamplingConfig
from eggroll_rl.data import Batch
from eggroll_rl.engines.base import Completion, Prompt
from eggroll_rl.evaluation import (
    accuracy_reward,
    as_trl,
    evaluate,
    evaluate_pass_at_k,
    pass_at_k,
    wilson_interval,
)
from eggroll_rl.scoring import Scores

SAMPLING = SamplingConfig(temperature=1.0)


class Answering:
    """An engine that answers the prompt ``"ab"`` by "a", then "b", then "a" again, and so on."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def generate(self, prompts: Sequence[str], sampling: SamplingConfig) -> list[list[Completion]]:
        assert sampling is SAMPLING
        answers = []
        for prompt in prompts:
            answers.append(Completion(prompt[self.asked.count(prompt) % len(prompt)], (), True))
            self.asked.append(prompt)
        return [answers]


def grade(completions: list[list[Any]], prompts: Sequence[Prompt], columns: dict[str, list[Any]]) -> Scores:
    """1 for the right letter, NaN for a question mark, 0.5 for any other."""
    pairs = zip(completions[0], columns["letter"], strict=True)
    rewards = [math.nan if answer == "?" else 1.0 if answer == letter else 0.5 for answer, letter in pairs]
    assert len(prompts) == len(rewards)
    return Scores(torch.tensor([rewards], dtype=torch.float64), {}, {})


GRADER: Any = grade  # stands in for a Scorer


def batch(prompts: Sequence[str], letter: str = "a") -> Batch:
    return Batch(list(prompts), {"letter": [letter] * len(prompts)}, list(range(len(prompts))))


@pytest.mark.parametrize("n", [1, 2, 7, 100, 512])
def test_intervals_are_wilsons(n: int) -> None:
    for successes in {0, 1, n // 3, n // 2, n - 1, n}:
        expected = binomtest(successes, n).proportion_ci(0.95, method="wilson")
        assert wilson_interval(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_share_lies_in_its_interval_to_the_bit() -> None:
    for n in range(1, 300):
        for successes in (0, n // 2, n):
            low, high = wilson_interval(successes, n)
            assert 0 <= low <= successes / n <= high <= 1


def test_nothing_is_known_from_no_problem() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer() -> None:
    for samples in range(1, 8):
        for right, k in itertools.product(range(samples + 1), range(1, samples + 1)):
            subsets = list(itertools.combinations([True] * right + [False] * (samples - right), k))
            assert pass_at_k(samples, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_accuracy_counts_whole_rewards() -> None:
    """A half is wrong, and so is a reward that failed."""
    engine: Any = Answering()
    result = evaluate(engine, batch(["a", "b", "a", "?", "c"]), GRADER, SAMPLING)
    assert result.correct == (True, False, True, False, False)
    assert result.completions == ("a", "b", "a", "?", "c")
    expected = binomtest(2, 5).proportion_ci(0.95, method="wilson")
    assert result.summary() == pytest.approx({"accuracy": 0.4, "low": expected.low, "high": expected.high, "n": 5})
    assert str(result) == f"40.0% [{expected.low:.1%}, {expected.high:.1%}] of 5"


@pytest.mark.parametrize(("samples", "ks"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 4]), (6, [1, 2, 4, 6])])
def test_pass_at_k_of_an_engine(samples: int, ks: list[int]) -> None:
    prompts = ["aaaaaa", "ab", "bbba", "????a?"]
    engine: Any = Answering()
    result = evaluate_pass_at_k(engine, batch(prompts), GRADER, SAMPLING, samples)
    assert engine.asked == [prompt for prompt in prompts for _ in range(samples)]
    answers = [[prompt[index % len(prompt)] == "a" for index in range(samples)] for prompt in prompts]
    expected = {
        f"pass@{k}": sum(
            sum(map(any, itertools.combinations(row, k))) / math.comb(samples, k) for row in answers
        ) / len(prompts)
        for k in ks
    }  # fmt: skip
    assert result == pytest.approx(expected)


def test_completions_take_the_form_of_their_prompts() -> None:
    chat = [{"role": "user", "content": "hi"}]
    answers = [[Completion("x", (1,), True), Completion("y", (2,), True)] for _ in range(2)]
    assert as_trl(answers, ["text", chat]) == [["x", [{"role": "assistant", "content": "y"}]]] * 2


def test_which_reward_judges() -> None:
    rewards = ({"fn": "mine.py:first", "weight": 3.0}, {"fn": "mine.py:second"})
    recipe = Recipe(model="m", rewards=rewards)
    assert accuracy_reward(recipe).fn == "eggroll_rl.rewards.countdown:countdown"
    elsewhere = Recipe(model="m", rewards=rewards, data={"name": "rows.jsonl"})
    assert (accuracy_reward(elsewhere).fn, accuracy_reward(elsewhere).weight) == ("mine.py:first", 1.0)
    chosen = Recipe(model="m", rewards=rewards, evaluation={"reward": "mine.py:judge"})
    assert accuracy_reward(chosen).fn == "mine.py:judge"
