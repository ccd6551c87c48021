"""The Triton kernels against plain torch: compiled where a CUDA device is, else run by Triton's interpreter."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from eggroll_rl.config import ParametersConfig, PopulationConfig, SamplingConfig
from eggroll_rl.engines.local.choice import Choice, for_any, for_rwkv
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.engines.local.static import StaticDecoder
from eggroll_rl.es import kernels
from eggroll_rl.es.kernels import Rates, choose
from eggroll_rl.es.layers import PopulationLayers, materialized_state
from eggroll_rl.es.lowrank import add_lowrank_
from eggroll_rl.es.noise import Noise
from eggroll_rl.es.parameters import EvolvedParameter
from eggroll_rl.es.philox import philox4x32
from eggroll_rl.es.population import Population
from eggroll_rl.models.rwkv7 import wkv7

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BF16 = 2**-7  # one unit in the last place: the interpreter truncates where a GPU rounds
SEED = 2**63 + 12345  # above what a signed integer holds
EVOLVED = [
    EvolvedParameter("layers.0.weight", (13, 7), "lowrank"),
    EvolvedParameter("layers.0.bias", (13,), "dense"),
    EvolvedParameter("layers.1.weight", (5, 130), "lowrank"),
]


def is_triton(name: str) -> bool:
    """Modules that depend on whether the interpreter is on, which decorators ask when they are imported."""
    ours = name.startswith("eggroll_rl.es.kernels.")
    return ours or (f"{name}.".startswith("triton.") and not name.startswith("triton._C"))


@pytest.fixture(scope="module", autouse=True)
def interpreter() -> Iterator[None]:
    """Imports of Triton and of the kernels are new and interpreted, here alone; nothing changes on CUDA."""
    if DEVICE.type == "cuda":
        yield
        return
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if is_triton(name)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        yield
    for name in [name for name in sys.modules if is_triton(name)]:
        sys.modules[f"interpreted.{name}"] = sys.modules.pop(name)  # Triton complains at exit if it is not listed there
    sys.modules.update(before)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library takes the kernels, on the CPU too."""
    monkeypatch.setattr(kernels, "run_on", lambda device: device.type != "meta")


def some(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def test_the_words_are_those_of_philox() -> None:
    from eggroll_rl.es.kernels.noise import whereabouts

    spec = importlib.util.spec_from_file_location("philox_words", Path(__file__).with_name("philox_words.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pair, epoch, stream, first = 2**31 - 5, 2**31 + 9, 2**32 - 2, 2**30 + 1
    out = torch.empty(4, 64, dtype=torch.long, device=DEVICE)
    module.store_words[(1,)](out, whereabouts(SEED, epoch, pair - 3, DEVICE), 3, stream, first, BLOCK=64)
    counter = [torch.arange(first, first + 64), *map(torch.tensor, (pair, stream, epoch))]
    assert torch.equal(out.cpu(), torch.stack(philox4x32(counter, (SEED % 2**32, SEED >> 32))))


@pytest.mark.parametrize("distribution", ["normal", "rademacher"])
@pytest.mark.parametrize("rank", [1, 3])
def test_noise_is_the_same_within_rounding(monkeypatch: pytest.MonkeyPatch, distribution: Any, rank: int) -> None:
    expected = Noise(SEED, distribution, rank=rank).draw(EVOLVED, 7, range(3, 6))
    monkeypatch.setattr(kernels, "run_on", lambda device: device.type != "meta")
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, BF16)):
        noise = Noise(SEED, distribution, DEVICE, dtype, rank)
        drawn = noise.draw(EVOLVED, 7, range(3, 6))
        for name, tensors in expected.items():
            for ours, theirs in zip(drawn[name], tensors, strict=True):
                torch.testing.assert_close(ours.cpu(), theirs.to(dtype), rtol=tolerance, atol=1e-6)
        assert drawn["layers.0.bias"].E_K.dtype == dtype


@pytest.mark.usefixtures("served")
def test_a_new_draw_takes_the_place_of_the_last() -> None:
    noise = Noise(SEED, device=DEVICE)
    first = noise.draw(EVOLVED, 0, range(4))["layers.0.bias"].E_K
    other = noise.element_range("else", "A", 0, range(4), 0, 800)  # which leaves the memo alone
    kept = first.clone()
    assert torch.equal(noise.draw(EVOLVED, 0, range(4))["layers.0.bias"].E_K, kept)
    second = noise.draw(EVOLVED, 1, range(4))["layers.0.bias"].E_K
    assert second.data_ptr() == first.data_ptr() != other.data_ptr()
    assert not torch.equal(second, kept)
    of_others = noise.draw(EVOLVED, 1, range(4, 8))["layers.0.bias"].E_K  # a pool's next chunk of the population
    assert of_others.data_ptr() == first.data_ptr()
    assert torch.equal(of_others, Noise(SEED, device=DEVICE).draw(EVOLVED, 1, range(8))["layers.0.bias"].E_K[4:])


@pytest.mark.parametrize(
    ("rank", "dtype"),
    [(1, torch.float32), (1, torch.bfloat16), (2, torch.bfloat16), (3, torch.float32), (4, torch.float32)],
)
@pytest.mark.parametrize(
    ("rows", "middle", "pair", "size_O", "size_I"),
    [(4, (), None, 37, 70), (3, (5,), [2, 0, 2], 16, 33), (2, (2, 3), None, 130, 9)],
)
def test_lowrank_rows_meet_their_own_matrix(
    rows: int, middle: tuple[int, ...], pair: Any, size_O: int, size_I: int, rank: int, dtype: torch.dtype
) -> None:
    from eggroll_rl.es.kernels.lowrank import add_lowrank_ as fused

    pairs = 2 if pair is None else 3
    A = some(pairs, size_O * rank + 3, dtype=dtype, seed=1)[:, : size_O * rank].unflatten(1, (size_O, rank))
    B = some(pairs, size_I, rank, dtype=dtype, seed=2)
    x, y = some(rows, *middle, size_I, dtype=dtype, seed=3), some(rows, *middle, size_O, dtype=dtype, seed=4)
    coefficient = some(rows, seed=5)
    pair_M = None if pair is None else torch.tensor(pair, device=DEVICE)
    exact = [tensor.double() for tensor in (y, x, A, B, coefficient)]
    expected = add_lowrank_(*exact, pair_M).to(dtype)
    result = fused(y, x, A, B, coefficient, pair_M)
    assert result is y
    tolerance = 1e-5 if dtype == torch.float32 else BF16
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)


def test_rows_that_do_not_divide_into_pairs_are_refused() -> None:
    from eggroll_rl.es.kernels.lowrank import add_lowrank_ as fused

    with pytest.raises(ValueError, match="5 rows are not as many for each of 2 pairs"):
        fused(some(5, 4), some(5, 4), some(2, 4, 1), some(2, 4, 1), some(5))


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(("rank", "distribution"), [(1, "normal"), (2, "rademacher"), (4, "normal")])
@torch.no_grad()
def test_layers_with_noise_made_on_the_fly(rank: int, distribution: Any) -> None:
    """Both orders of a weight's dimensions, biases too, against each member's own module."""
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(70, 13), nn.Tanh(), Conv1D(5, 13)).to(DEVICE)
    evolved = [
        EvolvedParameter("0.weight", (13, 70), "lowrank"),
        EvolvedParameter("0.bias", (13,), "dense"),
        EvolvedParameter("2.weight", (13, 5), "lowrank"),
    ]
    population = Population(SEED, 2, PopulationConfig(size=6, rank=rank, sigma=0.1, noise=distribution))
    noise = Noise(SEED, distribution, DEVICE, rank=rank)
    member_M, x_M = [5, 0, 2, 3], some(4, 2, 70)
    sign_M = torch.tensor([population.sign(member) for member in member_M], device=DEVICE)
    pair_M = torch.tensor([population.pair(member) - 1 for member in member_M], device=DEVICE).clamp_min(0)
    member_M[1] = 2  # pair 0 is not among those drawn
    layers = PopulationLayers(module, evolved)
    seeds = noise.seeds(evolved, population.epoch, range(1, 3))
    with layers.members(seeds, sign_M * population.scale, pair_M, sign_M * population.config.sigma):
        batched = module(x_M)
    layers.remove()
    parameters = dict(module.named_parameters())
    for row, (member, x) in enumerate(zip(member_M, x_M, strict=True)):
        state = materialized_state(parameters, evolved, noise, population, member)
        expected = torch.func.functional_call(module, state, x[None])
        torch.testing.assert_close(batched[row : row + 1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "size"), [(1, 16), (1, 64), (5, 32), (19, 16)])
@torch.no_grad()
def test_the_recurrence(dtype: torch.dtype, tokens: int, size: int) -> None:
    from eggroll_rl.es.kernels.wkv7 import wkv7 as fused

    r, k, v, a, b = (0.3 * some(2, tokens, 3, size, dtype=dtype, seed=seed) for seed in range(5))
    log_decay, state = -some(2, tokens, 3, size).abs(), some(2, 3, size, size)
    kept = state.clone()
    y, new = fused(r, log_decay, k, v, a, b, state)
    assert torch.equal(state, kept)
    expected = wkv7(*(x.cpu() for x in (r, log_decay, k, v, a, b, state)))
    for ours, theirs in zip((y, new), expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-4, atol=1e-5)
    assert torch.equal(fused(r, log_decay, k, v, a, b, state, out=state)[0], y)
    assert torch.equal(state, new)


@pytest.mark.parametrize("parameters", [1, 6])
def test_tokens_mixed_with_those_before(parameters: int) -> None:
    from eggroll_rl.es.kernels.time_mix import mixed_

    x, before, weights = some(3, 1, 70), some(3, 4, 70, seed=1)[:, -1], list(some(parameters, 70, seed=2))
    expected = [torch.addcmul(x, before[:, None] - x, weight) for weight in weights]
    for ours, theirs in zip(mixed_(x, before, weights), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch.equal(before, x[:, 0])


@pytest.mark.parametrize("geometry", [{}, {"hidden_size": 128, "head_dim": 64}])
@torch.no_grad()
def test_rwkv_logits_with_padded_prompts(
    monkeypatch: pytest.MonkeyPatch, new_model: Callable[..., PreTrainedModel], geometry: dict[str, int]
) -> None:
    model: Any = new_model("rwkv7", 0.2, **geometry)
    ids, mask = torch.randint(150, (3, 6)), torch.tensor([[0, 0, 0, 1, 1, 1], [1] * 6, [0, 1, 1, 1, 1, 1]])

    def logits() -> list[torch.Tensor]:
        found = []
        for length in (6, 1):  # of the prompt
            begun = model(ids[:, :length].to(model.device), attention_mask=mask[:, -length:].to(model.device))
            found.append(begun.logits[:, -1].cpu())
            for n in range(3):
                token_B1 = ids[:, n : n + 1].to(model.device)
                found.append(model(token_B1, past_key_values=begun.past_key_values).logits[:, -1].cpu())
        return found

    expected = logits()
    model.to(DEVICE)
    monkeypatch.setattr(kernels, "run_on", lambda device: device.type != "meta")
    for ours, theirs in zip(logits(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "architecture", "regenerates"), [(for_any, "llama", True), (for_rwkv, "rwkv7", False)]
)
def test_engines_with_kernels_answer_alike(
    monkeypatch: pytest.MonkeyPatch,
    new_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    kind: Choice,
    architecture: str,
    regenerates: bool,
) -> None:
    """On CUDA with graphs, elsewhere with the same steps uncaptured."""
    options = {"parameters": ParametersConfig(), "seed": 3}
    population, sampling = Population(3, 0, PopulationConfig(size=2, sigma=0.05)), SamplingConfig(max_new_tokens=2)
    usual = LocalEngine(new_model(architecture), tokenizer, choice=kind, **options)
    expected = usual.generate(["12 +"], sampling, population)
    monkeypatch.setattr(kernels, "run_on", lambda device: device.type != "meta")
    model: Any = new_model(architecture).to(DEVICE)  # type: ignore[arg-type]
    engine = LocalEngine(model, tokenizer, choice=lambda model, layers, _: StaticDecoder(model, layers), **options)
    engine.regenerates = regenerates
    assert engine.generate(["12 +"], sampling, population) == expected


def test_what_is_chosen() -> None:
    rates = Rates(elements=1e11, bytes=1e12)
    assert choose(10**9, 2, uses=64, free=2 * 10**9, rates=rates) == "read"
    assert choose(10**9, 2, uses=64, free=10**8, rates=rates) == "regenerate"  # it does not fit
    assert choose(10**9, 2, uses=1, free=2 * 10**9, rates=rates) == "regenerate"  # drawn once, used once
    assert choose(10**9, 2, uses=64, free=10**8, rank=3, rates=rates) == "read"  # not in whole blocks
    assert choose(10**9, 2, uses=64, free=2 * 10**9, rates=Rates(elements=1e12, bytes=1e12)) == "regenerate"
