"""Fitness shaping, against definitions written out in numpy and by its invariances."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from eggroll_rl.config import FitnessConfig
from eggroll_rl.es.fitness import by_prompt, fitness, spread
from eggroll_rl.system.errors import UsageError

NAN = float("nan")
SHAPINGS = ["prompt", "zscore", "rank", "sign"]


def shaped(rewards, shaping, antithetic=True, best=None):
    config = FitnessConfig(shaping=shaping, best=best)
    return fitness(torch.tensor(rewards, dtype=torch.float64), config, antithetic).tolist()


@pytest.fixture
def rewards():
    return np.random.default_rng(0).normal(size=(8, 3)) + np.array([0.0, 5.0, -2.0])


def test_prompt_shaping_is_the_published_formula(rewards):
    centered = (rewards - rewards.mean(0)) / rewards.std()
    score = centered.sum(1)
    assert shaped(rewards, "prompt") == pytest.approx((score - score.mean()) / score.std())


def test_zscore_standardises_mean_rewards(rewards):
    score = rewards.mean(1)
    assert shaped(rewards, "zscore") == pytest.approx((score - score.mean()) / score.std())


def test_ranks_are_centered_and_ties_share():
    assert shaped([[3.0], [1.0], [2.0], [2.0], [9.0]], "rank", antithetic=False) == [0.25, -0.5, -0.125, -0.125, 0.5]


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=30))
def test_ranks_equal_scipy(values):
    expected = (rankdata(values) - 1) / (len(values) - 1) - 0.5
    assert shaped([[float(v)] for v in values], "rank", antithetic=False) == pytest.approx(expected)


def test_sign_gives_each_pair_one_direction():
    assert shaped([[2.0], [1.0], [0.0], [5.0], [4.0], [4.0]], "sign") == [1, -1, -1, 1, 0, 0]


def test_sign_without_pairs_is_refused():
    with pytest.raises(UsageError, match="antithetic: true"):
        shaped([[1.0], [2.0]], "sign", antithetic=False)


@pytest.mark.parametrize("shaping", SHAPINGS)
def test_a_missing_reward_counts_as_an_average_one_of_its_prompt(shaping):
    rewards = [[1.0, 0.0], [0.0, NAN], [0.5, 1.0], [0.5, 0.5]]
    filled = [[1.0, 0.0], [0.0, 0.5], [0.5, 1.0], [0.5, 0.5]]
    if shaping == "zscore":  # it averages what is there
        filled[1][1] = 0.0
    assert shaped(rewards, shaping) == pytest.approx(shaped(filled, shaping))


@pytest.mark.parametrize("shaping", SHAPINGS)
def test_a_member_without_rewards_weighs_nothing_and_disturbs_nobody(shaping):
    weights = shaped([[1.0, 0.0], [3.0, 0.5], [NAN, NAN], [2.0, float("inf")], [0.0, 0.0], [1.0, 4.0]], shaping)
    assert weights[2] == 0
    if shaping != "sign":
        others = shaped([[1.0, 0.0], [3.0, 0.5], [2.0, NAN], [0.0, 0.0], [1.0, 4.0]], shaping, antithetic=False)
        assert weights[:2] + weights[3:] == pytest.approx(others)


@pytest.mark.parametrize("shaping", SHAPINGS)
@pytest.mark.parametrize(
    "rewards",
    [[[0.1, 0.7, 0.3]] * 6, [[0.0]] * 6, [[NAN]] * 6, [[0.1], [NAN]] * 3, [[0.1, 0.2, 0.3], [0.3, 0.1, 0.2]] * 3],
)
def test_equal_members_weigh_nothing(shaping, rewards):
    assert shaped(rewards, shaping) == [0.0] * 6  # the last case ties although its sums round differently


@given(
    st.lists(st.lists(st.floats(-10, 10), min_size=2, max_size=2), min_size=4, max_size=4), st.sampled_from(SHAPINGS)
)
def test_weights_are_finite_and_sum_to_zero(rewards, shaping):
    assert sum(shaped(rewards, shaping)) == pytest.approx(0, abs=1e-9)


def test_best_keeps_the_pairs_with_the_best_members():
    weights = shaped([[0.0], [9.0], [5.0], [4.0], [8.0], [1.0], [3.0], [3.0]], "zscore", best=2)
    assert weights[2:4] == [0, 0]
    assert weights[6:] == [0, 0]
    kept = np.array([0.0, 9.0, 8.0, 1.0])
    assert weights[:2] + weights[4:6] == pytest.approx((kept - kept.mean()) / kept.std())


def test_best_above_the_directions_is_refused():
    with pytest.raises(UsageError, match=r"fitness.best 3 is more than the population's 2 directions"):
        shaped([[1.0], [2.0], [3.0], [4.0]], "rank", best=3)


LARGEST = 1.7976931348623157e308
REWARD = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, 1.0, 0.1, LARGEST, -LARGEST, 5e-324, NAN]),
)


@given(st.data(), st.sampled_from(SHAPINGS), st.booleans())
def test_weights_are_finite_whatever_the_rewards_are(data, shaping, antithetic):
    pairs, prompts = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
    antithetic = antithetic or shaping == "sign"
    members = 2 * pairs if antithetic else pairs + 1
    row = st.lists(REWARD, min_size=prompts, max_size=prompts)
    rewards = data.draw(st.lists(row, min_size=members, max_size=members))
    best = data.draw(st.none() | st.integers(1, members // 2 if antithetic else members))
    weights = np.array(shaped(rewards, shaping, antithetic, best))
    assert np.isfinite(weights).all()
    assert np.abs(weights).max() <= members
    missing = ~np.isfinite(np.array(rewards)).any(1)
    if shaping != "sign":
        assert not weights[missing].any()


@given(st.floats(-1e300, 1e300), st.integers(1, 5), st.sampled_from(SHAPINGS))
def test_survivors_that_are_equal_weigh_nothing(reward, survivors, shaping):
    worse = reward - abs(reward) - 1
    rewards = [[reward], [reward]] * survivors + [[worse], [worse]] * 3
    assert shaped(rewards, shaping, best=survivors) == [0.0] * len(rewards)


def test_samples_of_a_prompt_become_their_mean_or_their_best():
    rewards = torch.tensor([[1.0, 0.0, NAN, 3.0], [NAN, NAN, 2.0, float("inf")]], dtype=torch.float64)
    mean = by_prompt(rewards, FitnessConfig(samples=2))
    best = by_prompt(rewards, FitnessConfig(samples=2, objective="max"))
    torch.testing.assert_close(mean, torch.tensor([[0.5, 3.0], [NAN, 2.0]]).double(), equal_nan=True)
    torch.testing.assert_close(best, torch.tensor([[1.0, 3.0], [NAN, 2.0]]).double(), equal_nan=True)
    assert by_prompt(rewards, FitnessConfig()) is rewards


@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_the_signal_is_the_share_of_a_score_that_other_prompts_confirm(antithetic, share):
    """Scores that are a member's own, of variance 1, and noise of each prompt; however good a prompt or a pair is."""
    rng, members, prompts = np.random.default_rng(1), 4000, 8
    noise = np.sqrt(prompts * (1 - share) / share) if share else 1.0
    rewards = rng.normal(size=(members, 1)) * (share > 0) + noise * rng.normal(size=(members, prompts))
    rewards += rng.normal(size=(1, prompts)) * 5
    if antithetic:
        rewards += 9 * rng.normal(size=(members // 2, 1)).repeat(2, axis=0)
    found = spread(torch.tensor(rewards), antithetic).signal
    halves = rewards[0::2] - rewards[1::2] if antithetic else rewards
    confirmed = np.corrcoef(halves[:, ::2].mean(1), halves[:, 1::2].mean(1))[0, 1]
    assert found == pytest.approx(share, abs=0.06)
    assert found == pytest.approx(2 * confirmed / (1 + confirmed), abs=0.06)  # Spearman and Brown's


def test_there_is_no_signal_where_there_is_nothing_to_compare():
    assert spread(torch.ones(4, 3), antithetic=True).signal is None
    assert spread(torch.rand(4, 1), antithetic=True).signal is None
