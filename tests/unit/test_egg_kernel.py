"""Populations of EGG against the reference: the C kernel by every kind of instructions that this processor has, and
torch on a device."""

import platform
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eggroll_rl.es.integers import RankOne, counted_votes, draw_noise, least_votes, of_members, stepped
from eggroll_rl.models.egg.arithmetic import Weights, read
from eggroll_rl.models.egg.device import DeviceEgg
from eggroll_rl.models.egg.kernel import Draw, EggKernel, supported
from eggroll_rl.models.egg.model import EggConfig, new_model

KINDS = [*supported(), "device"]


def population_of(model, kind):
    parameters, config = dict(model.named_parameters()), model.config
    if kind == "device":
        return DeviceEgg(parameters, config.num_hidden_layers)
    return EggKernel(parameters, config.hidden_size, config.num_hidden_layers, kind)


def values(generator, shape, extreme):
    """int8 from -127 to 127, all of them likely or the outermost alone."""
    if extreme:
        return torch.tensor([-127, 127])[torch.randint(2, shape, generator=generator)].to(torch.int8)
    return torch.randint(-127, 128, shape, generator=generator).to(torch.int8)


def some_model(width, layers, extreme, seed):
    model = new_model(EggConfig(width, layers), 0)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.copy_(values(generator, parameter.shape, extreme))
    return model, generator


def some_noise(model, generator, pairs, extreme):
    def vector(n):
        return values(generator, (pairs, n), extreme).short() * values(generator, (pairs, n), extreme).short()

    return {
        p.name: RankOne(*(values(generator, (pairs, n), extreme) for n in p.shape))
        if p.kind == "lowrank"
        else vector(p.numel)
        for p in model.evolved()
    }


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([(4, 1), (4, 3), (16, 2), (64, 1)]),
    st.integers(1, 70),
    st.integers(0, 8),
    st.integers(1, 4),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**30),
)
def test_members_read_as_in_the_reference(kind, geometry, pairs, shift, group, weights_extreme, noise_extreme, seed):
    width, layers = geometry
    model, generator = some_model(width, layers, weights_extreme, seed)
    noise = some_noise(model, generator, pairs, noise_extreme)
    members, tokens = 2 * pairs, 3
    streams = -(-members // group)
    byte_ST = torch.randint(256, (streams, tokens), generator=generator).to(torch.uint8)
    byte_ST[torch.rand(streams, tokens, generator=generator) < 0.2] = 0
    state = values(generator, (members, layers, width), noise_extreme)

    byte_NT = byte_ST[torch.arange(members) // group]
    weights = Weights(dict(model.named_parameters()), of_members(noise, range(members)), shift)
    likelihood_NT, after = read(weights, byte_NT, state)

    kernel = population_of(model, kind)
    readings = kernel.read(byte_ST, state, range(members), group, Draw(0, 0, shift), noise, details=True)
    assert torch.equal(readings.likelihood_NT, likelihood_NT.int())
    assert torch.equal(readings.score_N, likelihood_NT.sum(1).int())
    assert torch.equal(state, after.to(torch.int8))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_noise_votes_and_moves_are_those_of_the_reference(kind, seed, monkeypatch):
    monkeypatch.setattr("eggroll_rl.models.egg.kernel._NOISE", 0)  # more pairs than noise is held of
    monkeypatch.setattr("eggroll_rl.models.egg.device._MEMBERS", 64)
    width, layers, pairs, epoch = 16, 2, 70, 7
    model, generator = some_model(width, layers, False, 0)
    evolved, draw = model.evolved(), Draw(seed, epoch, 4)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    kernel = population_of(model, kind)
    if isinstance(kernel, EggKernel):
        noise = draw_noise(evolved, seed, epoch, range(3, pairs))
        factors, products = kernel.noise(draw, range(3, pairs))
        assert torch.equal(factors, torch.cat([side for name in kernel.matrices for side in noise[name]], dim=1))
        assert torch.equal(products, torch.cat([noise[name] for name in kernel.vectors], dim=1))

    fitness = torch.randint(-1, 2, (pairs,), generator=generator).to(torch.int8)
    votes = kernel.vote(fitness, draw)
    least = least_votes(2, pairs)
    moved = kernel.move(votes, least)
    for parameter in evolved:
        name = parameter.name
        expected = counted_votes(parameter, fitness, seed, epoch)
        assert torch.equal(votes[name], expected)
        after = stepped(before[name], expected, least)
        assert torch.equal(kernel.parameters[name], after) and torch.equal(dict(model.named_parameters())[name], after)
        assert moved[name] == int((after != before[name]).sum()) > 0

    byte_ST = torch.randint(256, (1, 4), generator=generator).to(torch.uint8)
    state = model.new_state(2)
    base = kernel.read(byte_ST, state, range(2), 2, draw, {}, details=True)
    likelihood, _ = read(Weights(dict(model.named_parameters())), byte_ST, model.new_state(1))
    assert torch.equal(base.likelihood_NT, likelihood.int().expand(2, -1)), "the moved weights are the kernel's"


def test_the_choice_follows_what_the_processor_has():
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.is_file() and platform.machine() == "x86_64" else set()
    avx512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
    needs = {"vnni": avx512 | {"avx512_vnni"}, "avx512": avx512, "avx2": {"avx2"}, "portable": set()}
    assert supported() == [products for products, needed in needs.items() if needed <= flags]
    model, _ = some_model(4, 1, False, 0)
    assert EggKernel(dict(model.named_parameters()), 4, 1).products == supported()[0]


@pytest.mark.parametrize("kind", KINDS)
def test_any_part_of_a_population_on_any_threads_reads_the_same(kind, monkeypatch):
    monkeypatch.setattr("eggroll_rl.models.egg.device._MEMBERS", 64)  # parts that end within a stream's group
    model, generator = some_model(16, 1, False, 0)
    kernel = population_of(model, kind)
    draw, members, group = Draw(5, 3, 4), 300, 4
    byte_ST = torch.randint(256, (members // group, 6), generator=generator).to(torch.uint8)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            state = model.new_state(members)
            results.append((kernel.read(byte_ST, state, range(members), group, draw).score_N, state))
    finally:
        torch.set_num_threads(before)
    parts = [range(0, 6), range(6, 200), range(200, members)]
    states = [model.new_state(len(part)) for part in parts]
    scores = [kernel.read(byte_ST, s, part, group, draw).score_N for part, s in zip(parts, states, strict=True)]
    results.append((torch.cat(scores), torch.cat(states)))
    noise = draw_noise(model.evolved(), draw.seed, draw.epoch, range(members // 2))
    weights = Weights(dict(model.named_parameters()), of_members(noise, range(members)), draw.shift)
    likelihood, after = read(weights, byte_ST[torch.arange(members) // group], model.new_state(members))
    for score, state in results:
        assert torch.equal(score, likelihood.sum(1).int()) and torch.equal(state, after.to(torch.int8))


def test_on_a_device_all_is_computed_there():
    """Torch's ``meta`` device computes nothing and refuses operands that lie elsewhere, as CUDA does."""
    model, _ = some_model(16, 2, False, 0)
    device, draw = DeviceEgg({name: weight.to("meta") for name, weight in model.named_parameters()}, 2), Draw(0, 0, 4)
    state = torch.empty(6, 2, 16, dtype=torch.int8, device="meta")
    readings = device.read(torch.zeros(3, 5, dtype=torch.uint8), state, range(6), 2, draw, details=True)
    assert {tensor.device.type for tensor in readings} == {"meta"}
    votes = device.vote(torch.ones(3, dtype=torch.int8), draw)
    after = [stepped(weight, votes[name], 3) for name, weight in device.parameters.items()]
    assert {tensor.device.type for tensor in (*votes.values(), *after)} == {"meta"}
