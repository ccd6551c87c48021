"""Rates and scales over a run, by its generations or by its minutes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eggroll_rl.config import OptimizerConfig, PopulationConfig
from eggroll_rl.es.schedule import learning_rate, noise_scale

SCHEDULES = ["constant", "linear", "cosine"]


def test_learning_rate_schedules():
    def rates(schedule, warmup=0):
        config = OptimizerConfig(lr=2.0, schedule=schedule, warmup=warmup)
        return [learning_rate(config, generation, 4 + warmup) for generation in range(4 + warmup)]

    assert rates("constant") == [2.0] * 4
    assert rates("linear") == [2.0, 1.5, 1.0, 0.5]
    assert rates("cosine") == pytest.approx([1 + math.cos(math.pi * step / 4) for step in range(4)])
    assert rates("linear", warmup=2) == [1.0, 2.0, 2.0, 1.5, 1.0, 0.5]
    assert learning_rate(OptimizerConfig(lr=2.0, schedule="cosine"), 9, 4) == 0


@given(st.sampled_from(SCHEDULES), st.floats(0, 1), st.integers(0, 99))
def test_a_run_is_as_far_as_its_minutes_or_its_generations_say(schedule, spent, generation):
    """Whichever ends it: with so many generations that they never do, the minutes alone count."""
    config = OptimizerConfig(lr=1.0, schedule=schedule)
    population = PopulationConfig(sigma=0.1, final_sigma=0.02)
    by_minutes = learning_rate(config, 0, 1, spent), noise_scale(population, 0, 1, spent)
    assert (learning_rate(config, 5, 10**9, spent), noise_scale(population, 5, 10**9, spent)) == pytest.approx(
        by_minutes
    )
    both = learning_rate(config, generation, 100, spent)
    assert both == pytest.approx(min(learning_rate(config, generation, 100), by_minutes[0]))


def test_sigma_goes_where_it_is_sent():
    config = PopulationConfig(sigma=0.1, final_sigma=0.3)
    assert [noise_scale(config, g, 4) for g in (0, 2, 4, 9)] == pytest.approx([0.1, 0.2, 0.3, 0.3])
    assert noise_scale(PopulationConfig(sigma=0.1), 3, 4, 0.9) == 0.1
