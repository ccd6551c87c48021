"""Members, pairs and signs, against their definition written out member by member."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eggroll_rl.config import PopulationConfig
from eggroll_rl.es.population import Population


def test_antithetic_members_share_a_pair_and_differ_in_sign():
    population = Population(0, 0, PopulationConfig(size=6))
    assert [population.pair(i) for i in range(6)] == [0, 0, 1, 1, 2, 2]
    assert [population.sign(i) for i in range(6)] == [1, -1, 1, -1, 1, -1]
    assert population.pairs == 3


def test_without_antithetic_pairs_every_member_is_its_own():
    population = Population(0, 0, PopulationConfig(size=5, antithetic=False))
    assert [population.pair(i) for i in range(5)] == list(range(5))
    assert {population.sign(i) for i in range(5)} == {1}
    assert population.pairs == 5


def test_noise_reuse_shares_an_epoch_between_generations():
    config = PopulationConfig(size=2, noise_reuse=3)
    assert [Population(0, g, config).epoch for g in range(7)] == [0, 0, 0, 1, 1, 1, 2]


def test_scale_is_sigma_over_the_root_of_the_rank():
    assert Population(0, 0, PopulationConfig(size=2, sigma=0.3, rank=9)).scale == pytest.approx(0.1)


@given(st.integers(1, 40), st.integers(1, 50), st.booleans(), st.integers(0, 5), st.integers(0, 5))
def test_chunks_hold_every_member_once_and_whole_pairs(half, size, antithetic, skipped, left):
    population = Population(0, 0, PopulationConfig(size=2 * half, antithetic=antithetic))
    members = range(min(2 * skipped, population.size), max(2 * skipped, population.size - 2 * left))
    chunks = population.chunks(size, members)
    assert [member for chunk in chunks for member in chunk] == list(members)
    assert all(len(chunk) in (size, size + size % 2) for chunk in chunks[:-1])
    pairs = [population.pairs_of(chunk) for chunk in chunks]
    assert [list(found) for found in pairs] == [
        sorted({population.pair(member) for member in chunk}) for chunk in chunks
    ]
    assert len({pair for found in pairs for pair in found}) == sum(map(len, pairs))
    assert population.chunks(size) == population.chunks(size, range(population.size))


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40), st.booleans())
def test_pair_weights_sum_signed_weights_over_each_pair(weights, antithetic):
    weights = weights[: len(weights) // 2 * 2]
    population = Population(0, 0, PopulationConfig(size=len(weights), antithetic=antithetic))
    expected = [
        sum(w * population.sign(i) for i, w in enumerate(weights) if population.pair(i) == k)
        for k in range(population.pairs)
    ]
    assert population.pair_weights(weights) == pytest.approx(expected)


def test_a_wrong_number_of_weights_is_refused():
    with pytest.raises(ValueError, match="3 fitness weights for a population of 4"):
        Population(0, 0, PopulationConfig(size=4)).pair_weights([1.0, 2.0, 3.0])


def test_a_population_crosses_a_process_boundary():
    population = Population(2**63, 7, PopulationConfig(size=8, rank=2))
    assert pickle.loads(pickle.dumps(population)) == population
