"""An engine that foretells text and learns, by the C kernel and by torch on a device, against the reference."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from eggroll_rl.config import FitnessConfig, PopulationConfig, SamplingConfig
from eggroll_rl.data.text import Streams, unigram_bits
from eggroll_rl.engines.egg import EggEngine
from eggroll_rl.es.fitness import fitness
from eggroll_rl.es.integers import (
    counted_votes,
    draw_noise,
    least_votes,
    moving_share,
    of_members,
    pair_fitness,
    stepped,
    threshold,
)
from eggroll_rl.es.population import Population
from eggroll_rl.es.update import Update
from eggroll_rl.models.egg.arithmetic import Weights, read
from eggroll_rl.models.egg.device import DeviceEgg
from eggroll_rl.models.egg.kernel import EggKernel
from eggroll_rl.models.egg.learner import c_kernel, torch_kernel
from eggroll_rl.models.egg.model import EggConfig, EggForCausalLM, new_model
from eggroll_rl.models.egg.tokenizer import byte_tokenizer

WIDTH, LAYERS, MEMBERS, GROUP, TOKENS, SEED = 16, 1, 256, 16, 20, 3
Kernel = Callable[[EggForCausalLM], EggKernel | DeviceEgg]
each_kernel = pytest.mark.parametrize("kernel", [c_kernel, torch_kernel])


def some_text() -> Tensor:
    line = b"\0the quick brown fox jumps over the lazy dog, and the lazy dog sleeps on"
    return torch.frombuffer(bytearray(line * 20), dtype=torch.uint8)


def engine_with(kernel: Kernel) -> EggEngine:
    model = new_model(EggConfig(WIDTH, LAYERS), 0)
    return EggEngine(model, byte_tokenizer(), SEED, 4, kernel(model))


def evolved(engine: EggEngine, generations: int) -> Tensor | None:
    """Let it learn from the beginning; its members' states."""
    streams, state = Streams(some_text(), MEMBERS // GROUP, TOKENS), None
    for generation in range(generations):
        population = Population(SEED, generation, PopulationConfig(size=MEMBERS, sigma=1 / 16))
        bits_N, state = engine.read(streams.batch(generation), state, population)
        weights_N = fitness(bits_N[:, None], FitnessConfig(shaping="sign"), antithetic=True)
        engine.apply(Update(population, tuple(weights_N.tolist()), moving_share(generation)))
    return state


@each_kernel
def test_a_few_generations_are_those_of_the_reference(kernel: Kernel) -> None:
    model = new_model(EggConfig(WIDTH, LAYERS), 0)
    parameters = {name: parameter.data.clone() for name, parameter in model.named_parameters()}
    state, streams = model.new_state(MEMBERS), Streams(some_text(), MEMBERS // GROUP, TOKENS)
    for generation in range(6):
        noise = draw_noise(model.evolved(), SEED, generation, range(MEMBERS // 2))
        byte_NT = streams.batch(generation)[torch.arange(MEMBERS) // GROUP]
        weights = Weights(parameters, of_members(noise, range(MEMBERS)))
        likelihood, state = read(weights, byte_NT, state)
        fitness_K = pair_fitness(likelihood.sum(1))
        least = least_votes(threshold(generation), MEMBERS // 2)
        for p in model.evolved():
            votes = counted_votes(p, fitness_K, SEED, generation)
            parameters[p.name] = stepped(parameters[p.name], votes, least)
    engine = engine_with(kernel)
    after = evolved(engine, 6)
    assert after is not None and torch.equal(after, state.to(torch.int8))
    found = engine.state_dict()
    assert found.keys() == parameters.keys()
    assert all(torch.equal(found[name], parameters[name]) for name in found)


@each_kernel
def test_the_model_itself_is_judged_as_in_the_reference(kernel: Kernel) -> None:
    engine, held = engine_with(kernel), Streams(some_text(), 5, TOKENS).batch(0)
    evolved(engine, 2)
    bits = -float(engine.read(held).bits.sum()) / held[:, 1:].numel()
    assert bits == engine.model.bits_per_byte(held)
    other = engine_with(c_kernel)
    other.load_state_dict(engine.state_dict())
    assert torch.equal(other.read(held).bits, engine.read(held).bits)
    assert other.weights_hash() == engine.weights_hash()
    assert other.saturation(held) == engine.saturation(held)
    asked = ["the "], SamplingConfig(max_new_tokens=12, temperature=1.0)
    assert other.generate(*asked) == engine.generate(*asked)


def test_it_learns_more_than_how_often_each_byte_is() -> None:
    engine, text = engine_with(c_kernel), some_text()
    evolved(engine, 100)
    assert engine.model.bits_per_byte(Streams(text, MEMBERS // GROUP, TOKENS).batch(0)) < unigram_bits(text) - 0.5
