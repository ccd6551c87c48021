"""Matrices of int8: their products against floats, and how they learn against a slow reference and against floats."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eggroll_rl.config import OptimizerConfig, PopulationConfig
from eggroll_rl.es import int8
from eggroll_rl.es.int8 import Int8Linear, Product, Quantised, quantise
from eggroll_rl.es.noise import Noise
from eggroll_rl.es.parameters import EvolvedParameter
from eggroll_rl.es.population import Population
from eggroll_rl.es.stored_int8 import LEVELS, dither, pack, unpack
from eggroll_rl.es.update import GradientLearner, Update, gradient
from eggroll_rl.system.errors import NotFinite, UsageError

MATRIX = EvolvedParameter("a.weight", (24, 36), "lowrank")
BIAS = EvolvedParameter("a.bias", (24,), "dense")
EVOLVED = [MATRIX, BIAS]
SGD = OptimizerConfig(name="sgd")


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def parameters_of(matrix: Quantised) -> dict[str, torch.Tensor]:
    return {"a.weight": matrix.q_OI.clone(), "a.weight_scale": matrix.scale_O1.clone(), "a.bias": randn(24, seed=2)}


def update_of(generation: int, lr: float, size: int = 8, reuse: int = 1) -> Update:
    """With ``reuse``, so many generations have the same gradient."""
    chance = torch.Generator().manual_seed(generation // reuse)
    weights = torch.randn(size, generator=chance, dtype=torch.float64).tolist()
    config = PopulationConfig(size=size, sigma=0.1, noise_reuse=reuse)
    return Update(Population(5, generation, config), tuple(weights), lr)


def slope_of(update: Update) -> torch.Tensor:
    weights_K = torch.tensor(update.population.pair_weights(update.weights))
    return gradient(MATRIX, weights_K, Noise(update.population.seed), update.population)


@given(rows=st.integers(1, 9), inner=st.integers(1, 70), outer=st.integers(1, 40), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_a_product_is_that_of_the_matrix_in_float(rows: int, inner: int, outer: int, seed: int) -> None:
    layer = Int8Linear(quantise(randn(outer, inner, seed=seed)), randn(outer, seed=seed + 1))
    x_MI = randn(rows, inner, seed=seed + 2) * 10.0 ** (seed % 7 - 3)
    exact = x_MI.double() @ layer.matrix.dequantised().double().T + layer.bias.double()
    bound = x_MI.abs().amax(1, keepdim=True) / 16256 * layer.matrix.dequantised().abs().sum(1)
    assert ((layer(x_MI) - exact).abs() <= 0.51 * bound + 1e-5 * (1 + exact.abs())).all()


def test_products_in_c_and_in_torch_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    product, x_MI = Product(quantise(randn(33, 50)), 7, randn(33)), randn(7, 50, seed=3)
    x_MI[2] = 0
    compiled = product(x_MI).clone()
    monkeypatch.setattr(int8, "_library", lambda: None)
    torch.testing.assert_close(product(x_MI), compiled, rtol=1e-6, atol=1e-6)


def test_a_rows_product_depends_on_no_other_row_and_no_thread() -> None:
    layer, x_MTI = Int8Linear(quantise(randn(96, 160))), randn(64, 3, 160, seed=3)
    whole = layer(x_MTI)
    assert torch.equal(layer(x_MTI[5:6]), whole[5:6])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(layer(x_MTI), whole)
    finally:
        torch.set_num_threads(threads)


def test_activations_of_bfloat16_come_back_so_and_integers_are_refused() -> None:
    layer, x_MI = Int8Linear(quantise(randn(8, 16)), randn(8)), randn(4, 16, seed=1).bfloat16()
    assert layer(x_MI).dtype == torch.bfloat16
    torch.testing.assert_close(layer(x_MI).float(), layer(x_MI.float()), rtol=1e-2, atol=1e-2)
    with pytest.raises(UsageError, match="received integers"):
        layer(x_MI.to(torch.int8))


def test_quantised_is_the_nearest_and_its_largest_is_127() -> None:
    weight = randn(20, 30) * 10 ** randn(20, 1, seed=1)
    weight[3] = 0
    q, scale = quantise(weight)
    assert ((q * scale - weight).abs() <= 0.5001 * scale).all()
    assert q.abs().amax(1).tolist() == [0 if row == 3 else 127 for row in range(20)]
    assert scale[3] == pytest.approx(scale[torch.arange(20) != 3].mean().item())
    assert (quantise(torch.zeros(4, 9)).scale_O1 > 0).all()


@given(rows=st.integers(1, 5), columns=st.integers(1, 9), seed=st.integers(0, 99))
def test_residuals_come_back_as_the_nearest_levels(rows: int, columns: int, seed: int) -> None:
    residual = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) - 0.5
    packed = pack(residual, 0.5)
    assert packed.shape == (rows, -(-columns // 2))
    assert packed.dtype == torch.uint8
    assert (unpack(packed, columns) - residual).abs().max() <= 0.5001 / (2 * LEVELS)
    levels = torch.arange(-LEVELS, LEVELS + 1)[None] / (2 * LEVELS)
    assert torch.equal(unpack(pack(levels, 0.5), len(levels[0])), levels)
    assert not unpack(pack(torch.zeros(rows, columns)), columns).any()


def test_dither_is_even_over_the_generations_and_another_each_time() -> None:
    drawn = torch.stack([dither("w", Population(1, g, PopulationConfig()), torch.empty(5, 7)) for g in range(2000)])
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert (drawn.mean(0) - 0.5).abs().max() < 5 / math.sqrt(12 * 2000)
    assert (drawn.square().mean(0) - 1 / 3).abs().max() < 0.04
    assert not torch.equal(drawn[0], dither("v", Population(1, 0, PopulationConfig()), drawn[0]))
    assert not torch.equal(drawn[0], dither("w", Population(2, 0, PopulationConfig()), drawn[0]))


@pytest.mark.parametrize("part", [3.0, 0.3, 0.02])  # of a unit, that a step is
def test_small_steps_add_up_as_they_do_in_float(part: float) -> None:
    matrix = quantise(randn(24, 36))
    parameters, steps = parameters_of(matrix), math.ceil(6 / part)
    learner = GradientLearner(parameters, EVOLVED, SGD, Noise(5))
    lr = part * matrix.scale_O1.mean().item() / slope_of(update_of(0, 1.0)).abs().mean().item()
    for generation in range(steps):
        learner.step(update_of(generation, lr, reuse=steps))
    moved = (parameters["a.weight"].float() - matrix.q_OI) * matrix.scale_O1
    expected = -lr * steps * slope_of(update_of(0, 1.0))
    inside = (matrix.q_OI.float() + expected / matrix.scale_O1).abs() < 120
    error = ((moved - expected) / matrix.scale_O1)[inside]
    assert error.square().mean().sqrt() < 0.5 + 0.07 * math.sqrt(steps)  # of a unit: roundings of both
    assert error.mean().abs() < 0.1


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_without_error_feedback_small_steps_are_lost(optimizer: str) -> None:
    matrix = quantise(randn(24, 36))
    unit = matrix.scale_O1.mean().item()
    for feeds in (True, False):
        parameters = parameters_of(matrix)
        config = OptimizerConfig(name=optimizer, error_feedback=feeds)
        learner = GradientLearner(parameters, EVOLVED, config, Noise(5))
        lr = 0.02 * unit / (1 if optimizer == "adam" else slope_of(update_of(0, 1.0)).abs().max().item())
        rms = [learner.step(update_of(generation, lr, reuse=60)) for generation in range(60)]
        assert torch.equal(parameters["a.weight"], matrix.q_OI) == (not feeds)
        assert rms[0] > 0  # the float bias moves in both


@pytest.mark.parametrize(
    "config",
    [
        OptimizerConfig(name="sgd", momentum=0.8, weight_decay=0.1),
        OptimizerConfig(name="adam", betas=(0.8, 0.9)),
        OptimizerConfig(name="adam", betas=(0.0, 0.9), weight_decay=0.1),
        OptimizerConfig(name="adamw", weight_decay=0.1),
    ],
)
def test_steps_are_those_of_the_formulas_in_double(config: OptimizerConfig) -> None:
    """A slow reference whose moments are exact and whose residual is all that was lost."""
    matrix = quantise(randn(24, 36))
    parameters = parameters_of(matrix)
    learner = GradientLearner(parameters, EVOLVED, config, Noise(5))
    scale, wanted = matrix.scale_O1.double(), matrix.q_OI.double()
    first, second = config.betas if config.name != "sgd" else (config.momentum, 0.0)
    moment, rows, columns = torch.zeros(24, 36).double(), torch.zeros(24).double(), torch.zeros(36).double()
    lr = 0.5 * matrix.scale_O1.mean().item() / (slope_of(update_of(0, 1)).abs().mean().item() if second == 0 else 1)
    for generation in range(10):
        update = update_of(generation, lr)
        slope = slope_of(update).double()
        if config.name != "adamw":
            slope += config.weight_decay * scale * wanted
        moment = first * moment + (1.0 if config.name == "sgd" else 1 - first) * slope
        direction = moment
        if config.name != "sgd":
            rows = second * rows + (1 - second) * slope.square().mean(1)
            columns = second * columns + (1 - second) * slope.square().mean(0)
            size = torch.outer(rows, columns) / rows.mean() / (1 - second ** (generation + 1))
            direction = moment / (1 - first ** (generation + 1)) / (size.sqrt() + 1e-8)
        decay = lr * config.weight_decay * wanted if config.name == "adamw" else 0
        wanted = wanted - lr * direction / scale - decay
        learner.step(update)
    inside = wanted.abs() < 115
    error = (parameters["a.weight"] - wanted)[inside]
    assert error.abs().max() < 1.5
    assert error.square().mean().sqrt() < 0.5
    assert (wanted - matrix.q_OI)[inside].square().mean().sqrt() > 1  # it moved by more than that


def test_a_factored_second_moment_steps_as_stock_adam_does() -> None:
    """Of a sum of rank-one noise the squares are about as large everywhere in a matrix."""
    weight = randn(24, 36)
    matrix, stock = quantise(weight), torch.nn.Parameter(weight.clone())
    parameters = parameters_of(matrix)
    config = OptimizerConfig(betas=(0.9, 0.99))
    learner, adam = GradientLearner(parameters, EVOLVED, config, Noise(5)), torch.optim.Adam([stock], betas=(0.9, 0.99))
    for generation in range(30):
        update = update_of(generation, 0.02, size=256)
        stock.grad = slope_of(update)
        adam.param_groups[0]["lr"] = update.lr
        adam.step()
        learner.step(update)
    moved = (parameters["a.weight"].float() - matrix.q_OI) * matrix.scale_O1
    assert torch.nn.functional.cosine_similarity(moved.flatten(), (stock.detach() - weight).flatten(), dim=0) > 0.9


CONFIGS = [SGD, OptimizerConfig(name="sgd", momentum=0.5), OptimizerConfig(), OptimizerConfig(error_feedback=False)]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_restored_learner_continues_bit_for_bit_on_any_number_of_threads(config: OptimizerConfig) -> None:
    matrix = quantise(randn(24, 36))
    one, other = parameters_of(matrix), parameters_of(matrix)
    straight = GradientLearner(one, EVOLVED, config, Noise(5))
    for generation in range(3):
        straight.step(update_of(generation, 0.01))
    saved = {key: tensor.clone() for key, tensor in straight.state_dict().items()}
    restored = GradientLearner(other, EVOLVED, config, Noise(5))
    restored.load_state_dict(saved)
    threads = torch.get_num_threads()
    for generation in range(3, 6):
        straight.step(update_of(generation, 0.01))
        try:
            torch.set_num_threads(3)
            restored.step(update_of(generation, 0.01))
        finally:
            torch.set_num_threads(threads)
    assert all(torch.equal(one[name], other[name]) for name in one)
    for key, tensor in straight.state_dict().items():
        assert torch.equal(tensor, restored.state_dict()[key])


def test_a_state_of_another_kind_is_refused_by_name() -> None:
    matrix = quantise(randn(24, 36))
    learner = GradientLearner(parameters_of(matrix), EVOLVED, OptimizerConfig(), Noise(5))
    floats = GradientLearner({"a.weight": randn(24, 36), "a.bias": randn(24)}, EVOLVED, OptimizerConfig(), Noise(5))
    with pytest.raises(ValueError, match=r"a\.weight differ"):
        learner.load_state_dict(floats.state_dict())
    with pytest.raises(ValueError, match=r"a\.weight differ"):
        floats.load_state_dict(learner.state_dict())


def test_a_step_that_overflows_leaves_everything_as_it_was() -> None:
    matrix = quantise(randn(24, 36))
    parameters = parameters_of(matrix)
    learner = GradientLearner(parameters, EVOLVED, SGD, Noise(5))
    learner.step(update_of(0, 0.01))
    before = {key: tensor.clone() for key, tensor in learner.state_dict().items()}
    update = update_of(1, 1e3)
    with pytest.raises(NotFinite, match=r"overflows in a\.weight"):
        learner.step(Update(update.population, tuple(1e38 * weight for weight in update.weights), 1e3))
    assert all(torch.equal(tensor, before[key]) for key, tensor in learner.state_dict().items())


def test_weights_never_leave_the_range() -> None:
    matrix = quantise(randn(24, 36))
    parameters = parameters_of(matrix)
    learner = GradientLearner(parameters, EVOLVED, SGD, Noise(5))
    for generation in range(4):
        learner.step(update_of(generation, 1e4))
    assert parameters["a.weight"].abs().max() == 127


def test_what_is_kept_takes_two_and_a_half_bytes_for_a_weight() -> None:
    matrix = quantise(randn(256, 512))
    named = {"a.weight": matrix.q_OI, "a.weight_scale": matrix.scale_O1}
    evolved = [EvolvedParameter("a.weight", (256, 512), "lowrank")]
    learner = GradientLearner(named, evolved, OptimizerConfig(), Noise(5))
    learner.step(update_of(0, 0.01))
    kept = sum(tensor.nbytes for tensor in learner.state_dict().values())
    assert kept <= 2.54 * 256 * 512
    assert not learner.masters
