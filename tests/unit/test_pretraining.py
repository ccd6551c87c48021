"""A population that foretells text: it learns, goes on where it was, and can be followed by its signs alone."""

import pytest
import torch

from eggroll_rl.data.text import Streams, unigram_bits
from eggroll_rl.es.integers import (
    counted_votes,
    draw_noise,
    least_votes,
    of_members,
    pair_fitness,
    stepped,
    threshold,
)
from eggroll_rl.models.egg.arithmetic import Weights, read
from eggroll_rl.models.egg.model import EggConfig, new_model
from eggroll_rl.models.egg.pretraining import Pretraining
from eggroll_rl.system.errors import UsageError

WIDTH, LAYERS, MEMBERS, GROUP, TOKENS, SEED = 16, 1, 256, 16, 20, 3


def some_text():
    line = b"\0the quick brown fox jumps over the lazy dog, and the lazy dog sleeps on"
    return torch.frombuffer(bytearray(line * 20), dtype=torch.uint8)


def population(seed=SEED):
    return Pretraining(new_model(EggConfig(WIDTH, LAYERS), 0), MEMBERS, GROUP, seed)


def run(learner, generations):
    streams = Streams(some_text(), learner.streams, TOKENS)
    signs = []
    for generation in generations:
        signs.append(learner.fitness(streams.batch(generation), generation))
        learner.learn(signs[-1], generation)
    return signs


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_few_generations_are_those_of_the_reference():
    learner = population()
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
    run(learner, range(6))
    assert same(learner.state_dict(), {**parameters, "states": state.to(torch.int8)})


def test_it_goes_on_where_it_was():
    whole, first, second = population(), population(), population()
    run(whole, range(9))
    run(first, range(4))
    second.load_state_dict({name: tensor.clone() for name, tensor in first.state_dict().items()})
    run(second, range(4, 9))
    assert same(whole.state_dict(), second.state_dict())


def test_its_signs_alone_give_its_weights():
    whole, follower = population(), population()
    for generation, signs in enumerate(run(whole, range(9))):
        follower.learn(signs, generation)
    assert same(dict(whole.model.named_parameters()), dict(follower.model.named_parameters()))


def test_it_learns_more_than_how_often_each_byte_is():
    learner, text = population(), some_text()
    held = Streams(text, learner.streams, TOKENS).batch(0)
    run(learner, range(100))
    after = learner.bits_per_byte(held)
    assert after == learner.model.bits_per_byte(held)
    assert after < unigram_bits(text) - 0.5


@pytest.mark.parametrize(
    ("members", "group", "message"),
    [(0, 2, "even number"), (7, 2, "even number"), (2**19, 2, "even number"), (8, 3, "even group"), (8, 6, "divides")],
)
def test_a_population_that_cannot_be_is_refused(members, group, message):
    with pytest.raises(UsageError, match=message):
        Pretraining(new_model(EggConfig(16, 1), 0), members, group)
