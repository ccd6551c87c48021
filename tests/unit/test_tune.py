"""sigma by what it promises, and the rate by short runs."""

import math
from pathlib import Path

import pytest

from benchmarks.tiny_task import write_task
from eggroll_rl.config import load_recipe
from eggroll_rl.planning.tune import SigmaTrial, measured_sigmas, most_promising, tune


def test_sigmas_that_are_too_small_promise_nothing(tmp_path: Path) -> None:
    """At 1e-8 all members give the same answers, and earn what the unperturbed model does."""
    recipe = write_task(tmp_path)
    usual, tiny = (
        measured_sigmas(load_recipe(recipe, [f"population.sigma={sigma}", "data.prompts=8"]), 0.01)
        for sigma in (0.05, 1e-8)
    )
    assert all(trial.gain == 0 for trial in tiny)
    assert max(trial.gain for trial in usual) > 0
    for trial in tiny:
        assert trial.reward == pytest.approx(trial.unperturbed)
    assert [trial.sigma for trial in usual] == pytest.approx([0.05 * 2.0**power for power in range(-3, 3)])


def test_members_that_lost_half_of_the_reward_are_broken() -> None:
    assert SigmaTrial(0.1, 0.3, 0.5, 0.9, 0.2).is_sound
    assert not SigmaTrial(0.1, 0.2, 0.5, 0.9, 0.2).is_sound
    assert SigmaTrial(0.1, -0.82, -0.8, 0.9, 0.2).is_sound
    assert not SigmaTrial(0.1, -1.3, -0.8, 0.9, 0.2).is_sound
    assert not SigmaTrial(0.1, math.nan, -0.8, 0.9, 0.2).is_sound


@pytest.mark.parametrize(
    ("gains", "broken", "expected"),
    [
        ([0.0, 0.1, 0.3, 0.2], (), 0.04),
        ([0.0, 0.1, 0.3, 0.2], (2,), 0.08),
        ([0.0, 0.0, 0.0, 0.0], (), None),
        ([0.0, 0.0, 0.0, 0.4], (3,), None),
        ([0.2, 0.2, 0.2, 0.2], (), 0.04),
    ],
)
def test_the_sigma_that_promises_most_is_taken_if_any_does(
    gains: list[float], broken: tuple[int, ...], expected: float | None
) -> None:
    trials = [SigmaTrial(0.01 * 2**n, 0.1 if n in broken else 0.5, 0.5, 0.1, gain) for n, gain in enumerate(gains)]
    assert most_promising(trials, 0.04) == expected


def test_where_nothing_is_told_apart_sigma_and_rate_stay(tmp_path: Path) -> None:
    """At a sigma and a rate of 1e-8 all members and all models give the same answers."""
    overrides = ["population.sigma=1e-8", "population.final_sigma=null", "optimizer.lr=1e-8", "generations=2"]
    said = list[str]()
    found = tune(load_recipe(write_task(tmp_path), overrides), 0.02, said.append)
    assert found == ["population.sigma=1e-08", "optimizer.lr=1e-08", "evaluation.half=judgement"]
    assert any("no sigma promises anything" in line for line in said)


def test_overrides_that_a_recipe_takes(tmp_path: Path) -> None:
    recipe, said = write_task(tmp_path), list[str]()
    found = tune(load_recipe(recipe, ["data.prompts=4", "generations=3"]), 0.05, said.append)
    tuned = load_recipe(recipe, found)
    assert tuned.population.sigma in [pytest.approx(0.05 * 2.0**power, rel=0.01) for power in range(-3, 3)]
    assert tuned.population.final_sigma == pytest.approx(0.02 * tuned.population.sigma / 0.05, rel=0.01)
    factor = tuned.optimizer.lr / (0.01 * tuned.population.sigma / 0.05)
    assert min(abs(math.log(factor / known)) for known in (1 / 3, 1, 3)) < 0.02
    assert len([line for line in said if "no sigma" not in line]) == 9
    assert sum("held-out accuracy" in line for line in said) == 3
