"""The slots of a wave against the noise of its members, by the kernel and by torch; vLLM is not needed."""

from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from eggroll_rl.config import PopulationConfig
from eggroll_rl.engines.vllm.slots import Matrix, Slots
from eggroll_rl.es.noise import Noise
from eggroll_rl.es.parameters import EvolvedParameter
from eggroll_rl.es.perturbation import Distribution, Factors
from eggroll_rl.es.population import Population

SLOTS = 7
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def matrices_of(shapes: list[tuple[int, int]], offset: tuple[int, int], rank: int, dtype: torch.dtype) -> list[Matrix]:
    """Parts of matrices, with slots of ``rank`` that hold sevens."""
    parameters = [EvolvedParameter(f"m{i}.weight", shape, "lowrank", offset) for i, shape in enumerate(shapes)]
    sevens = [
        (torch.full((SLOTS, rank, I), 7.0, dtype=dtype), torch.full((SLOTS, O, rank), 7.0, dtype=dtype))
        for O, I in shapes  # noqa: E741
    ]
    return [Matrix(parameter, a, b) for parameter, (a, b) in zip(parameters, sevens, strict=True)]


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=3),
    offset=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    rank=st.integers(1, 5),
    padding=st.integers(0, 3),
    first=st.integers(0, 500),
    size=st.integers(1, SLOTS),
    antithetic=st.booleans(),
    distribution=st.sampled_from(["normal", "rademacher"]),
    dtype=st.sampled_from(list(TOLERANCE)),
    has_kernel=st.booleans(),
)
def test_a_slot_holds_the_noise_of_its_member(
    shapes: list[tuple[int, int]],
    offset: tuple[int, int],
    rank: int,
    padding: int,
    first: int,
    size: int,
    antithetic: bool,
    distribution: Distribution,
    dtype: torch.dtype,
    has_kernel: bool,
) -> None:
    noise = Noise(2**63 + 11, distribution, rank=rank, memo_bytes=0)
    config = PopulationConfig(size=512, rank=rank, sigma=0.5, antithetic=antithetic, noise_reuse=2)
    population, members = Population(3, 5, config), range(first, first + size)
    matrices = matrices_of(shapes, offset, rank + padding, dtype)
    layer = {matrix.parameter.name: matrix for matrix in matrices}
    with nullcontext() if has_kernel else patch("eggroll_rl.engines.vllm.slots._library", return_value=None):
        slots = Slots([layer], noise)
    slots.fill(population, members)

    for parameter, a_SrI, b_SOr in matrices:
        for slot, member in enumerate(members):
            pair = population.pair(member)
            drawn = noise.draw([parameter], 2, range(pair, pair + 1))[parameter.name]
            assert isinstance(drawn, Factors)
            A_Or, B_Ir = drawn.A_KOr[0], drawn.B_KIr[0]
            expected = population.sign(member) * population.scale * A_Or
            for written, wanted in ((b_SOr[slot, :, :rank], expected), (a_SrI[slot, :rank], B_Ir.mT)):
                torch.testing.assert_close(
                    written.float(), wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[torch.float32]
                )
        for rest in (a_SrI[size:], b_SOr[size:], a_SrI[:, rank:], b_SOr[..., rank:]):
            assert torch.equal(rest, torch.full_like(rest, 7.0))  # other slots, and what pads a rank


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and not func._schema.is_mutable:
            own = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, torch.Tensor)}
            is_view = made.untyped_storage().data_ptr() in own
            self.bytes = self.bytes if is_view else max(self.bytes, made.untyped_storage().nbytes())
        return made


@pytest.mark.parametrize("has_kernel", [True, False])
def test_filling_takes_memory_for_one_layer_alone(has_kernel: bool) -> None:
    """However many layers and members there are."""
    taken = {}
    for layers, size in ((2, 16), (16, 1024)):
        noise = Noise(1, memo_bytes=0)
        matrices = matrices_of([(4096, 4096)] * layers, (0, 0), 1, torch.float32)
        with nullcontext() if has_kernel else patch("eggroll_rl.engines.vllm.slots._library", return_value=None):
            slots = Slots([{matrix.parameter.name: matrix} for matrix in matrices], noise)
        with Largest() as largest:
            slots.fill(Population(1, 0, PopulationConfig(size=size)), range(size - 6, size))
        taken[size] = largest.bytes
    assert taken[16] == taken[1024]
    assert (taken[16] < 4096) == has_kernel


def test_a_long_stream_is_drawn_in_pieces() -> None:
    """More elements than the kernel draws at a time, from an odd place on."""
    matrix = matrices_of([(9001, 3)], (5, 0), 2, torch.float32)[0]
    noise, config = Noise(1, rank=2, memo_bytes=0), PopulationConfig(size=8, rank=2, sigma=1.0)
    Slots([{"m0.weight": matrix}], noise).fill(Population(1, 0, config), range(8 - SLOTS, 8))
    drawn = noise.draw([matrix.parameter], 0, range(4))["m0.weight"]
    assert isinstance(drawn, Factors)
    torch.testing.assert_close(matrix.b_SOr[1], drawn.A_KOr[1] * 2**-0.5, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("pairs", [3, 400])
def test_normals_are_normal(pairs: int) -> None:
    """Their largest deviation from torch's, over numbers near the ends of the logarithm and the angle."""
    matrix = matrices_of([(4, 50_000)], (0, 0), 1, torch.float32)[0]
    noise, config = Noise(9, memo_bytes=0), PopulationConfig(size=800, sigma=1.0)
    Slots([{"m0.weight": matrix}], noise).fill(Population(9, 0, config), range(2 * pairs - 6, 2 * pairs))
    drawn = noise.draw([matrix.parameter], 0, range(pairs - 3, pairs))["m0.weight"]
    assert isinstance(drawn, Factors)
    exact, given = drawn.B_KIr[..., 0], matrix.a_SrI[:6:2, 0]
    assert (given - exact).abs().max() < 1e-6
    assert given.std().item() == pytest.approx(1, abs=0.01)
