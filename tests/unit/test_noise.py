"""The noise streams, against Philox and Box-Muller written out in plain Python."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from eggroll_rl.es import noise as noise_module
from eggroll_rl.es import philox
from eggroll_rl.es.noise import Noise
from eggroll_rl.es.parameters import EvolvedParameter, parameter_id
from eggroll_rl.es.philox import philox4x32
from eggroll_rl.es.streams import Stream, tiles

word = st.integers(0, 2**32 - 1)
EVOLVED = [
    EvolvedParameter("layers.0.weight", (13, 7), "lowrank"),
    EvolvedParameter("layers.0.bias", (13,), "dense"),
    EvolvedParameter("layers.1.weight", (5, 13), "lowrank"),
    EvolvedParameter("layers.1.mix", (3, 2, 5), "dense"),
]


def philox_reference(counter, key):
    """Random123's definition, one word at a time."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = p1 >> 32 ^ c1 ^ k0, p1 & 0xFFFFFFFF, p0 >> 32 ^ c3 ^ k1, p0 & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def normal_reference(seed, name, side, epoch, pair, element):
    """One element of one stream in double precision."""
    counter = (element // 4, pair, parameter_id(name) * 2 + side, epoch)
    words = philox_reference(counter, (seed % 2**32, seed >> 32))
    first = element % 4 // 2 * 2
    radius = math.sqrt(-2 * math.log((words[first] + 0.5) / 2**32))
    angle = 2 * math.pi * words[first + 1] / 2**32
    return radius * (math.cos(angle), math.sin(angle))[element % 2]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_known_answers_of_random123(counter, key, expected):
    words = philox4x32([torch.tensor(c) for c in counter], key)
    assert " ".join(f"{w.item():08x}" for w in words) == expected


@given(st.tuples(word, word, word, word), st.tuples(word, word))
def test_philox_equals_the_reference(counter, key):
    assert [w.item() for w in philox4x32([torch.tensor(c) for c in counter], key)] == philox_reference(counter, key)


def test_counters_broadcast():
    rows, columns = torch.arange(3)[:, None], torch.arange(4)
    words = philox4x32((columns, rows, torch.tensor(5), torch.tensor(6)), (7, 8))
    assert [w[2, 3].item() for w in words] == philox_reference((3, 2, 5, 6), (7, 8))


@given(st.integers(0, 2**64 - 1), word, st.integers(0, 2**32 - 8))
@settings(deadline=None)
def test_compiled_words_are_those_of_torch(seed, epoch, first_pair):
    assert philox._library() is not None, "no C compiler"
    streams = [
        Stream.of(0x7FFFFFFF, "B", 4 * 2**20, 4 * 2**20 + 9),
        Stream.of(5, "A", 2, 40),
    ]
    states = torch.zeros(2, 6, 40, dtype=torch.int64)
    for tile in tiles(streams, 3, 40):
        size = sum(blocks.size for blocks in tile)
        one, other = (state.view(-1)[: 6 * size].view(6, size) for state in states)
        for words, state in ((philox._torch_words, one), (philox._native_words, other)):
            words(state, tile, first_pair, epoch, (seed & 0xFFFFFFFF, seed >> 32))
        assert torch.equal(one[:4], other[:4])


@pytest.mark.parametrize("rank", [1, 3])
def test_every_element_is_where_the_contract_puts_it(rank):
    seed, epoch = 2**40 + 17, 9
    drawn = Noise(seed, rank=rank).draw(EVOLVED, epoch, range(2, 4))
    A_KOr, B_KIr = drawn["layers.1.weight"]
    assert (A_KOr.shape, B_KIr.shape) == ((2, 5, rank), (2, 13, rank))
    for o, j in [(0, 0), (4, rank - 1), (2, 0)]:
        expected = normal_reference(seed, "layers.1.weight", 0, epoch, 3, o * rank + j)
        assert A_KOr[1, o, j].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    for i in (0, 5, 12):
        expected = normal_reference(seed, "layers.1.weight", 1, epoch, 2, i * rank)
        assert B_KIr[0, i, 0].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    mix = drawn["layers.1.mix"].E_K
    assert mix.shape == (2, 3, 2, 5)
    expected = normal_reference(seed, "layers.1.mix", 0, epoch, 2, 1 * 10 + 1 * 5 + 3)
    assert mix[0, 1, 1, 3].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_range_alone_equals_the_bulk(data):
    noise = Noise(3, data.draw(st.sampled_from(["normal", "rademacher"])), rank=2)
    first = data.draw(st.integers(0, 5))
    pairs = range(first, data.draw(st.integers(first + 1, 7)))
    A_KOr, B_KIr = noise.draw(EVOLVED, 4, range(7))["layers.0.weight"]
    for side, bulk in (("A", A_KOr.flatten(1)), ("B", B_KIr.flatten(1))):
        start = data.draw(st.integers(0, bulk.shape[1]))
        stop = data.draw(st.integers(start, bulk.shape[1]))
        alone = noise.element_range("layers.0.weight", side, 4, pairs, start, stop)
        assert torch.equal(alone, bulk[pairs.start : pairs.stop, start:stop])


@pytest.mark.parametrize("tile", [1, 5, 64, 1000])
def test_the_tile_size_changes_no_bit(tile, monkeypatch):
    whole = Noise(1).draw(EVOLVED, 0, range(9))
    monkeypatch.setitem(noise_module._TILE, "cpu", tile)
    tiled = Noise(1).draw(EVOLVED, 0, range(9))
    assert torch.equal(tiled["layers.0.weight"].A_KOr, whole["layers.0.weight"].A_KOr)
    assert torch.equal(tiled["layers.1.mix"].E_K, whole["layers.1.mix"].E_K)


def test_the_memo_changes_no_bit_and_is_bounded():
    kept, fresh = Noise(1), Noise(1, memo_bytes=0)
    for parameters, epoch, pairs in [
        (EVOLVED, 0, range(6)),
        (EVOLVED[2:3], 0, range(2, 5)),  # a part of the draw before
        (EVOLVED[2:3], 1, range(2, 5)),
        (EVOLVED[2:], 1, range(2, 5)),
        (EVOLVED[2:], 1, range(3, 7)),
    ]:
        one, other = kept.draw(parameters, epoch, pairs), fresh.draw(parameters, epoch, pairs)
        assert one.keys() == other.keys() == {parameter.name for parameter in parameters}
        assert torch.equal(one["layers.1.weight"].B_KIr, other["layers.1.weight"].B_KIr)
    first = kept.draw(EVOLVED, 2, range(4))["layers.1.mix"].E_K
    assert kept.draw(EVOLVED[3:], 2, range(1))["layers.1.mix"].E_K.data_ptr() == first.data_ptr()
    assert fresh._memo is None


def test_lower_precision_is_the_same_noise_rounded():
    exact, rounded = (Noise(1, dtype=dtype).draw(EVOLVED, 0, range(2)) for dtype in (torch.float32, torch.bfloat16))
    assert torch.equal(rounded["layers.0.bias"].E_K, exact["layers.0.bias"].E_K.bfloat16())
    assert torch.equal(rounded["layers.0.weight"].A_KOr, exact["layers.0.weight"].A_KOr.bfloat16())


def test_normals_are_normal():
    sample = Noise(5).element_range("w", "A", 0, range(50), 0, 4000).flatten().double().numpy()
    assert stats.kstest(sample, "norm").pvalue > 1e-3
    assert stats.kstest(sample.reshape(50, 4000).mean(1) * math.sqrt(4000), "norm").pvalue > 1e-3


def test_rademacher_noise_is_balanced_signs():
    sample = Noise(5, "rademacher").element_range("w", "A", 0, range(50), 0, 4000)
    assert set(sample.unique().tolist()) == {-1.0, 1.0}
    assert abs(sample.sum().item()) < 5 * math.sqrt(sample.numel())


def test_streams_are_independent():
    """Streams that differ in one number of seed, name, side, epoch and pair alone are uncorrelated."""
    n = 20_000
    streams = [
        Noise(seed).element_range(name, side, epoch, range(pair, pair + 1), 0, n)[0]
        for seed, name, side, epoch, pair in [
            (1, "a", "A", 0, 0),
            (2, "a", "A", 0, 0),
            (1, "b", "A", 0, 0),
            (1, "a", "B", 0, 0),
            (1, "a", "A", 1, 0),
            (1, "a", "A", 0, 1),
            (1 + 2**32, "a", "A", 0, 0),
        ]
    ]
    for one, other in combinations(streams, 2):
        assert abs((one * other).mean().item()) < 5 / math.sqrt(n)


def test_parameter_ids_are_the_ones_that_runs_were_journaled_with():
    assert parameter_id("model.layers.0.self_attn.q_proj.weight") == 1474738641
    assert 0 <= parameter_id("lm_head.weight") < 2**31
