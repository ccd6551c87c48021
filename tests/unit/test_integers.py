"""Integer noise and the integer learner."""

import math
from statistics import NormalDist

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eggroll_rl.es import integers
from eggroll_rl.es.integers import (
    MOST_PAIRS,
    RankOne,
    counted_votes,
    draw,
    draw_noise,
    least_votes,
    of_members,
    pack_signs,
    pair_fitness,
    sixteenths,
    stepped,
    threshold,
    thresholds,
    unpack_signs,
    votes,
)
from eggroll_rl.es.parameters import EvolvedParameter
from eggroll_rl.system.errors import UsageError

MATRIX, VECTOR = EvolvedParameter("W", (6, 5), "lowrank"), EvolvedParameter("b", (7,), "dense")


def test_sixteenths_have_the_probabilities_of_a_truncated_normal():
    rises = thresholds().tolist()
    most = len(rises) // 2
    assert most < 127 and [2**32 - edge for edge in reversed(rises)] == rises
    for j in range(1, most + 1):
        words = rises[most - j]  # that give -j or less
        assert abs(words - 2**32 * NormalDist().cdf(-j / 16)) < 0.51
        low, above, below, high = sixteenths(
            torch.tensor([words - 1, words, 2**32 - 1 - words, 2**32 - words])
        ).tolist()
        assert low <= -j < above and below < j <= high
    assert sixteenths(torch.tensor([0, 2**31, 2**32 - 1])).tolist() == [-most, 0, most]


def test_no_rounding_of_a_library_moves_a_threshold():
    """Another libm's erfc differs in its last digits: no count is near enough to a half to notice."""
    exact = [2**31 * math.erfc(j / 16 / math.sqrt(2)) for j in range(1, len(thresholds()) // 2 + 2)]
    assert min(abs(count % 1 - 0.5) for count in exact) > 1e-4


def test_noise_is_a_function_of_its_name():
    whole = draw("W", "A", 10, seed=5, epoch=2, pairs=range(6))
    assert torch.equal(draw("W", "A", 10, seed=5, epoch=2, pairs=range(2, 4)), whole[2:4])
    assert torch.equal(draw("W", "A", 3, seed=5, epoch=2, pairs=range(6)), whole[:, :3])
    for other in (
        draw("V", "A", 10, 5, 2, range(6)), draw("W", "B", 10, 5, 2, range(6)),
        draw("W", "A", 10, 5 + 2**40, 2, range(6)), draw("W", "A", 10, 5, 3, range(6)),
    ):  # fmt: skip
        assert not torch.equal(other, whole)
    assert whole.dtype == torch.int8


def test_noise_has_the_moments_of_a_truncated_normal():
    sample = draw("W", "A", 2**16, 0, 0, range(4)).double()
    probabilities = {j: 2 * (NormalDist().cdf((j + 1) / 16) - NormalDist().cdf(j / 16)) for j in range(1, 100)}
    variance = sum(p * j * j for j, p in probabilities.items())
    assert abs(float(sample.mean())) < 5 * (variance / sample.numel()) ** 0.5
    assert float(sample.square().mean()) == pytest.approx(variance, rel=5 * (2 / sample.numel()) ** 0.5)
    vector = draw_noise([VECTOR], 0, 0, range(2**14))["b"].double()
    assert float(vector.square().mean()) == pytest.approx(variance**2, rel=0.1)


def test_members_of_a_pair_differ_by_the_sign_of_A():
    noise = draw_noise([MATRIX, VECTOR], 0, 0, range(4))
    some = of_members(noise, range(3, 8))
    assert torch.equal(some["W"].A[:3], torch.stack([-noise["W"].A[1], noise["W"].A[2], -noise["W"].A[2]]))
    assert torch.equal(some["W"].B[:3], noise["W"].B[[1, 2, 2]])
    assert torch.equal(some["b"][:2], torch.stack([-noise["b"][1], noise["b"][2]]))


def test_fitness_is_who_was_better():
    assert pair_fitness(torch.tensor([-5, -7, 3, 3, -(2**31), 2**31 - 1])).tolist() == [1, 0, -1]


@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=40))
def test_signs_take_two_bits_a_pair(signs):
    fitness_K = torch.tensor(signs, dtype=torch.int8)
    packed = pack_signs(fitness_K)
    assert len(packed) <= math.ceil(len(signs) / 4) + 2
    assert torch.equal(unpack_signs(packed, len(signs)), fitness_K)


@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=9), st.integers(1, 40))
def test_votes_add_up_in_any_chunks(fitness, chunk):
    fitness_K = torch.tensor(fitness, dtype=torch.int8)
    noise = draw_noise([MATRIX, VECTOR], 1, 2, range(len(fitness)))
    expected = sum(f * torch.outer(a.int(), b.int()) for f, a, b in zip(fitness, *noise["W"], strict=True))
    vector = sum(f * e.int() for f, e in zip(fitness, noise["b"], strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(integers, "_CHUNK", chunk)
        assert torch.equal(counted_votes(MATRIX, fitness_K, 1, 2), expected)
        assert torch.equal(counted_votes(VECTOR, fitness_K, 1, 2), vector)


def test_the_most_votes_fit_an_int32():
    ones = torch.full((MOST_PAIRS, 1), 127, dtype=torch.int8)
    fitness = torch.ones(MOST_PAIRS, dtype=torch.int8)
    assert votes(RankOne(ones, ones), fitness).tolist() == [[MOST_PAIRS * 127**2]]
    assert votes((ones.short() * ones.short()), -fitness).tolist() == [-MOST_PAIRS * 127**2]
    with pytest.raises(UsageError, match="members"):
        counted_votes(MATRIX, torch.ones(MOST_PAIRS + 1, dtype=torch.int8), 0, 0)


def test_the_threshold_follows_the_published_schedule():
    published = {0: 0, 3: 0, 4: 1, 7: 1, 10: 2, 100: 13, 500: 25, 999: 29}
    assert {t: threshold(t) for t in published} == published
    assert threshold(0, alpha=0.5) == threshold(999, alpha=0.5) == 10


def test_weights_move_by_one_where_votes_are_sure():
    edge = least_votes(2, pairs=10)
    assert edge == 2 * 3 * 256 // 16
    counted = torch.tensor([edge, edge - 1, -edge, 1 - edge, 2**31 - 1, -(2**31) + 1, edge, -edge, 0])
    weight = torch.tensor([5, 5, 5, 5, 0, 0, 127, -127, 9], dtype=torch.int8)
    assert stepped(weight, counted.int(), edge).tolist() == [6, 5, 4, 5, 1, -1, 127, -127, 9]
    assert stepped(weight[-1:], torch.zeros(1).int(), 0).tolist() == [8]
