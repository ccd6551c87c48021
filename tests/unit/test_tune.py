"""sigma by what it promises, and the rate by short runs."""

import math
from pathlib import Path

import pytest

from benchmarks.tiny_task import write_task
from eggroll_rl.config import load_recipe
from eggroll_rl.planning.tune import SigmaTrial, measured_sigmas, tune


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


def test_overrides_that_a_recipe_takes(tmp_path: Path) -> None:
    recipe, said = write_task(tmp_path), list[str]()
    found = tune(load_recipe(recipe, ["data.prompts=4", "generations=3"]), 0.05, said.append)
    tuned = load_recipe(recipe, found)
    assert tuned.population.sigma in [pytest.approx(0.05 * 2.0**power, rel=0.01) for power in range(-3, 3)]
    assert tuned.population.final_sigma == pytest.approx(0.02 * tuned.population.sigma / 0.05, rel=0.01)
    factor = tuned.optimizer.lr / (0.01 * tuned.population.sigma / 0.05)
    assert min(abs(math.log(factor / known)) for known in (1 / 3, 1, 3)) < 0.02
    assert len(said) == 9
    assert sum("held-out accuracy" in line for line in said) == 3
