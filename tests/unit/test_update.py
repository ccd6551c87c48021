"""The update, against sums over materialised members and stock optimizers on the whole gradient."""

import math

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eggroll_rl.config import OptimizerConfig, PopulationConfig
from eggroll_rl.es import update as update_module
from eggroll_rl.es.layers import materialized_state
from eggroll_rl.es.noise import Noise
from eggroll_rl.es.parameters import EvolvedParameter
from eggroll_rl.es.population import Population
from eggroll_rl.es.update import GradientLearner, Update, gradient
from eggroll_rl.system.errors import NotFinite

EVOLVED = [
    EvolvedParameter("a.weight", (6, 9), "lowrank"),
    EvolvedParameter("a.bias", (6,), "dense"),
    EvolvedParameter("b.weight", (3, 6), "dense"),
]


def make_parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return {parameter.name: torch.randn(parameter.shape, generator=generator).to(dtype) for parameter in EVOLVED}


def make_weights(size):
    return torch.randn(size, generator=torch.Generator().manual_seed(1), dtype=torch.float64).tolist()


def make_update(generation, size=8, lr=0.1):
    return Update(Population(5, generation, PopulationConfig(size=size, sigma=0.1)), tuple(make_weights(size)), lr)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("distribution", ["normal", "rademacher"])
def test_gradient_is_the_weighted_sum_over_materialised_members(rank, antithetic, distribution):
    config = PopulationConfig(size=10, rank=rank, sigma=0.1, antithetic=antithetic, noise=distribution)
    population = Population(3, 4, config)
    noise = Noise(3, distribution, rank=rank)
    parameters, weights = make_parameters(), make_weights(10)
    members = [materialized_state(parameters, EVOLVED, noise, population, i) for i in range(10)]
    weights_K = torch.tensor(population.pair_weights(weights))
    for parameter in EVOLVED:
        expected = sum(
            w * (member[parameter.name].double() - parameters[parameter.name]) / config.sigma
            for w, member in zip(weights, members, strict=True)
        ) / (-10 * config.sigma)
        result = gradient(parameter, weights_K, noise, population)
        assert torch.dist(result, expected) < 1e-5 * expected.norm()


def test_the_chunk_size_changes_only_rounding(monkeypatch):
    population = Population(0, 0, PopulationConfig(size=50, rank=2))
    weights_K = torch.tensor(population.pair_weights(make_weights(50)))
    whole = [gradient(parameter, weights_K, Noise(0, rank=2), population) for parameter in EVOLVED]
    monkeypatch.setattr(update_module, "_CHUNK", 100)
    chunked = [gradient(parameter, weights_K, Noise(0, rank=2), population) for parameter in EVOLVED]
    torch.testing.assert_close(chunked, whole)


def test_remembered_noise_gives_the_same_bits_as_noise_drawn_again():
    population = Population(0, 0, PopulationConfig(size=200, rank=2))
    weights_K = torch.tensor(population.pair_weights(make_weights(200)))
    remembered = Noise(0, rank=2)
    with torch.inference_mode():  # where an engine generates
        remembered.prefetch(EVOLVED, 0, range(100))
    for parameter in EVOLVED:
        again = gradient(parameter, weights_K, Noise(0, rank=2, memo_bytes=0), population)
        assert torch.equal(gradient(parameter, weights_K, remembered, population), again)


def test_lower_precision_noise_does_not_touch_the_gradient():
    population = Population(0, 0, PopulationConfig(size=6))
    weights_K = torch.tensor(population.pair_weights(make_weights(6)))
    low = Noise(0, dtype=torch.bfloat16)
    low.draw(EVOLVED, 0, range(3))
    assert torch.equal(
        gradient(EVOLVED[0], weights_K, low, population), gradient(EVOLVED[0], weights_K, Noise(0), population)
    )


def test_noise_of_another_rank_is_refused():
    with pytest.raises(ValueError, match="rank 1 for a population of rank 2"):
        gradient(EVOLVED[0], torch.ones(1), Noise(0), Population(0, 0, PopulationConfig(size=2, rank=2)))


@pytest.mark.parametrize(
    ("config", "stock"),
    [
        (OptimizerConfig(name="sgd", momentum=0.9), lambda p: torch.optim.SGD(p, momentum=0.9)),
        (OptimizerConfig(name="adam", betas=(0.8, 0.9)), lambda p: torch.optim.Adam(p, betas=(0.8, 0.9))),
        (OptimizerConfig(name="adamw", weight_decay=0.1), lambda p: torch.optim.AdamW(p, weight_decay=0.1)),
    ],
)
def test_steps_equal_one_stock_optimizer_over_all_parameters(config, stock):
    parameters, expected = make_parameters(), make_parameters()
    learner, optimizer = GradientLearner(parameters, EVOLVED, config, Noise(5)), stock(list(expected.values()))
    for generation, lr in enumerate([0.1, 0.05, 0.2]):
        update = make_update(generation, lr=lr)
        before = {name: tensor.clone() for name, tensor in expected.items()}
        weights_K = torch.tensor(update.population.pair_weights(update.weights))
        for parameter in EVOLVED:
            expected[parameter.name].grad = gradient(parameter, weights_K, Noise(5), update.population)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        rms = learner.step(update)
        torch.testing.assert_close(parameters, expected)
        step = torch.cat([(expected[name] - before[name]).flatten() for name in expected])
        assert rms == pytest.approx(step.square().mean().sqrt().item(), rel=1e-4)


def test_a_better_member_pulls_the_weights_towards_itself():
    parameters = make_parameters()
    population = Population(5, 0, PopulationConfig(size=2, sigma=0.1))
    target = materialized_state(parameters, EVOLVED, Noise(5), population, 0)
    distance = {name: torch.dist(parameters[name], target[name]).item() for name in target}
    GradientLearner(parameters, EVOLVED, OptimizerConfig(name="sgd"), Noise(5)).step(
        Update(population, (1.0, -1.0), 0.005)
    )
    assert all(torch.dist(parameters[name], target[name]) < distance[name] for name in target)


def test_small_steps_add_up_in_the_master_of_a_bfloat16_parameter():
    parameters = make_parameters(torch.bfloat16)
    start = {name: tensor.clone() for name, tensor in parameters.items()}
    learner = GradientLearner(parameters, EVOLVED, OptimizerConfig(name="sgd"), Noise(5))
    for _ in range(1000):
        learner.step(make_update(0, lr=1e-5))  # each far below the spacing of bfloat16
    update = make_update(0)
    weights_K = torch.tensor(update.population.pair_weights(update.weights))
    for parameter in EVOLVED:
        moved = start[parameter.name].float() - 1e-2 * gradient(parameter, weights_K, Noise(5), update.population)
        torch.testing.assert_close(learner.masters[parameter.name], moved, rtol=1e-3, atol=1e-4)
        assert torch.equal(parameters[parameter.name], learner.masters[parameter.name].bfloat16())
        assert not torch.equal(parameters[parameter.name], start[parameter.name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "config", [OptimizerConfig(name="sgd"), OptimizerConfig(name="sgd", momentum=0.5), OptimizerConfig()]
)
def test_a_restored_learner_continues_bit_for_bit(dtype, config):
    parameters, restored = make_parameters(dtype), make_parameters(dtype)
    learner = GradientLearner(parameters, EVOLVED, config, Noise(5))
    for generation in range(3):
        learner.step(make_update(generation))
    file = safetensors.torch.save(learner.state_dict())
    other = GradientLearner(restored, EVOLVED, config, Noise(5))
    other.step(make_update(7))
    other.load_state_dict(safetensors.torch.load(file))
    assert all(torch.equal(restored[name], parameters[name]) for name in parameters)
    for generation in range(3, 5):
        assert learner.step(make_update(generation)) == other.step(make_update(generation))
    assert all(torch.equal(restored[name], parameters[name]) for name in parameters)


def test_a_fresh_state_forgets_the_optimizers_past():
    fresh = GradientLearner(make_parameters(), EVOLVED, OptimizerConfig(), Noise(5))
    used = GradientLearner(make_parameters(), EVOLVED, OptimizerConfig(), Noise(5))
    start = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    used.step(make_update(7))
    used.load_state_dict(start)
    assert used.step(make_update(0)) == fresh.step(make_update(0))


def test_a_state_is_loaded_into_the_tensors_that_are_there():
    learner = GradientLearner(make_parameters(), EVOLVED, OptimizerConfig(average=0.5), Noise(5))
    learner.step(make_update(0))
    own = learner.state_dict()
    state = {name: tensor.clone() for name, tensor in own.items()}
    learner.step(make_update(1))
    learner.load_state_dict(state)
    for name, tensor in learner.state_dict().items():
        assert tensor is own[name]
        assert torch.equal(tensor, state[name])


def test_a_state_with_averages_is_refused_where_none_are_kept():
    averaged = GradientLearner(make_parameters(), EVOLVED, OptimizerConfig(average=0.5), Noise(5))
    plain = GradientLearner(make_parameters(), EVOLVED, OptimizerConfig(), Noise(5))
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    with pytest.raises(ValueError, match=r"does not fit this model and recipe"):
        plain.load_state_dict(averaged.state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in plain.state_dict().items())


def test_the_state_of_another_model_is_refused():
    learner = GradientLearner(make_parameters(), EVOLVED, OptimizerConfig(), Noise(5))
    state = learner.state_dict() | {"master.a.bias": torch.zeros(7)}
    with pytest.raises(ValueError, match=r"does not fit this model and recipe: a.bias differ"):
        learner.load_state_dict(state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_average_and_the_anchor_are_those_of_their_definitions(dtype):
    """The model shows its masters, and inside ``averaged`` the average, which began as the base weights."""
    config = OptimizerConfig(name="sgd", average=0.75, anchor=0.25)
    parameters, plain = make_parameters(dtype), make_parameters(dtype)
    learner, free = (
        GradientLearner(parameters, EVOLVED, config, Noise(5)),
        GradientLearner(plain, EVOLVED, OptimizerConfig(), Noise(5)),
    )
    base = {name: tensor.float() for name, tensor in make_parameters(dtype).items()}
    average = dict(base)
    for generation in range(4):
        free.load_state_dict({f"master.{name}": master for name, master in learner.masters.items()})
        update, population = make_update(generation), make_update(generation).population
        pairs = torch.tensor(population.pair_weights(update.weights))
        steps = {p.name: update.lr * gradient(p, pairs, Noise(5), population) for p in EVOLVED}
        learner.step(update)
        for name, step in steps.items():
            expected = 0.75 * (free.masters[name] - step) + 0.25 * base[name]
            torch.testing.assert_close(learner.masters[name], expected)
            average[name] = 0.75 * average[name] + 0.25 * expected
            torch.testing.assert_close(parameters[name], expected.to(dtype), rtol=0.01, atol=1e-5)
    masters = {name: master.clone() for name, master in learner.masters.items()}
    with learner.averaged():
        for name, expected in average.items():
            torch.testing.assert_close(parameters[name], expected.to(dtype), rtol=0.01, atol=1e-5)
    assert all(torch.equal(learner.masters[name], master) for name, master in masters.items())
    assert all(torch.equal(parameters[name], master.to(dtype)) for name, master in masters.items())


@pytest.mark.parametrize("rank", [1, 2])
def test_each_expert_of_a_stack_has_a_gradient_of_its_own(rank):
    stack = EvolvedParameter("experts.up_proj", (3, 4, 5), "lowrank")
    population, noise = Population(3, 4, PopulationConfig(size=10, rank=rank, sigma=0.1)), Noise(3, rank=rank)
    weights, zero = make_weights(10), {stack.name: torch.zeros(stack.shape)}
    members = [materialized_state(zero, [stack], noise, population, i)[stack.name].double() for i in range(10)]
    expected = sum(w * member / 0.1 for w, member in zip(weights, members, strict=True)) / (-10 * 0.1)
    result = gradient(stack, torch.tensor(population.pair_weights(weights)), noise, population)
    assert torch.dist(result, expected) < 1e-5 * expected.norm()
    for member in members:
        assert (torch.linalg.matrix_rank(member, rtol=1e-5) == rank).all()
    assert not torch.allclose(members[0][0], members[0][1])


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["sgd", "adam", "adamw"]),
    st.floats(1e-30, 1e37),
    st.floats(1e-37, 1e30),
    st.lists(st.floats(-1e30, 1e30), min_size=4, max_size=4),
    st.floats(0, 1e10),
    st.floats(0, 0.999),
)
def test_a_step_leaves_finite_numbers_or_everything_as_it_was(name, lr, sigma, weights, decay, momentum):
    parameters = make_parameters()
    config = OptimizerConfig.model_construct(name=name, lr=lr, weight_decay=decay, momentum=momentum)
    learner = GradientLearner(parameters, EVOLVED, config, Noise(0))
    learner.step(make_update(0, lr=1e-3))
    before = {key: tensor.clone() for key, tensor in learner.state_dict().items()}
    population = PopulationConfig.model_construct(size=4, sigma=sigma)
    try:
        rms = learner.step(Update(Population(0, 1, population), tuple(weights), lr))
        assert math.isfinite(rms)
        assert all(tensor.isfinite().all() for tensor in (*learner.state_dict().values(), *parameters.values()))
    except NotFinite as error:
        assert "a.weight" in str(error) or "a.bias" in str(error) or "b.weight" in str(error)
        after = learner.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[key], before[key]) for key in before)
        assert all(torch.equal(parameters[name], before[f"master.{name}"]) for name in parameters)


@pytest.mark.parametrize("numbers", [{"weights": (1.0, math.nan)}, {"weights": (math.inf, 1.0)}, {"lr": math.nan}])
def test_an_update_holds_finite_numbers(numbers):
    with pytest.raises(AssertionError, match="finite"):
        Update(**({"population": Population(0, 0), "weights": (1.0, -1.0), "lr": 0.1} | numbers))
