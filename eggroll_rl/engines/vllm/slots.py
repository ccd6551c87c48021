"""The adapter slots of a wave of members, whose noise is drawn from seeds and held nowhere else.

B^T is an adapter's A, and ``sign * sigma / sqrt(r) * A`` its B. On a CPU ``slots.c`` draws each pair once and writes it
into the slots of its members, rounded to their dtype; elsewhere the noise of one layer exists at a time.

Legend: S slots in use, K pairs, O out, I in, r rank.
"""

import ctypes
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from eggroll_rl.es.noise import Noise
from eggroll_rl.es.parameters import EvolvedParameter
from eggroll_rl.es.perturbation import Factors
from eggroll_rl.es.philox import key_of
from eggroll_rl.es.population import Population
from eggroll_rl.es.streams import streams_of
from eggroll_rl.system.native import kernels_or_none

KERNELS = {torch.float32: "fill_slots_float", torch.bfloat16: "fill_slots_bf16"}


class Matrix(NamedTuple):
    """An evolved matrix as it is perturbed, and the A and B of its adapters."""

    parameter: EvolvedParameter
    a_SrI: Tensor
    b_SOr: Tensor


class Slots:
    """The slots of all evolved matrices.

    Args:
        layers: the matrices of each layer, by name. Ranks of adapters beyond that of the noise stay as they are.
        noise: draws the perturbations.
    """

    def __init__(self, layers: Sequence[Mapping[str, Matrix]], noise: Noise):
        self.layers, self.noise = layers, noise
        matrices = [matrix for layer in layers for matrix in layer.values()]
        self._table = torch.tensor([row for matrix in matrices for row in _rows(matrix, noise.rank)])
        dtypes = {matrix.b_SOr.dtype for matrix in matrices}
        has_kernel = noise.device.type == "cpu" and len(dtypes) == 1 and dtypes <= KERNELS.keys() and _library()
        self._kernel = KERNELS[dtypes.pop()] if has_kernel else None

    @torch.inference_mode()
    def fill(self, population: Population, members: range) -> None:
        """Write the noise of these members into the first slots."""
        pairs = population.pairs_of(members)
        pair_S = torch.tensor([population.pair(member) - pairs.start for member in members])
        coefficient_S = torch.tensor([population.sign(member) * population.scale for member in members])
        if self._kernel:
            self._fill_by_kernel(population.epoch, pairs, pair_S, coefficient_S)
        else:
            device = self.noise.device
            self._fill_by_torch(population.epoch, pairs, pair_S.to(device), coefficient_S.to(device))

    def _fill_by_torch(self, epoch: int, pairs: range, pair_S: Tensor, coefficient_S: Tensor) -> None:
        S, rank = len(pair_S), self.noise.rank
        for layer in self.layers:
            drawn = self.noise.draw([matrix.parameter for matrix in layer.values()], epoch, pairs, torch.float32)
            for name, (_, a_SrI, b_SOr) in layer.items():
                factors = drawn[name]
                assert isinstance(factors, Factors)
                A_SOr, B_SIr = (factor.index_select(0, pair_S) for factor in factors)
                a_SrI[:S, :rank] = B_SIr.mT
                b_SOr[:S, :, :rank] = A_SOr.mul_(coefficient_S[:, None, None])

    def _fill_by_kernel(self, epoch: int, pairs: range, pair_S: Tensor, coefficient_S: Tensor) -> None:
        library, noise = _library(), self.noise
        assert library is not None and self._kernel is not None
        first_slot = torch.searchsorted(pair_S, torch.arange(len(pairs) + 1))  # of each pair
        getattr(library, self._kernel)(
            len(self._table), self._table.data_ptr(), len(pairs), first_slot.data_ptr(), coefficient_S.data_ptr(),
            pairs.start, noise.rank, epoch, *key_of(noise.seed), noise.distribution == "normal",
        )  # fmt: skip


def _rows(matrix: Matrix, rank: int) -> list[list[int]]:
    """What ``slots.c`` calls a ``Factor``: that of A, in the adapters' B, and that of B."""
    (A, B), a_SrI, b_SOr = streams_of(matrix.parameter, rank), matrix.a_SrI, matrix.b_SOr
    assert (A.elements, B.elements) == (b_SOr.shape[1] * rank, a_SrI.shape[2] * rank)
    places = [
        (A, b_SOr.data_ptr(), b_SOr.stride(), True),
        (B, a_SrI.data_ptr(), a_SrI.mT.stride(), False),
    ]
    return [
        [address, stream.word, 4 * stream.first + stream.skipped, stream.elements // rank, *strides, is_scaled]
        for stream, address, strides, is_scaled in places
    ]


@cache
def _library() -> ctypes.CDLL | None:
    size, pointer, word = ctypes.c_int64, ctypes.c_void_p, ctypes.c_uint32
    arguments = [size, pointer, size, pointer, pointer, size, size, size, word, word, size]
    source, without = Path(__file__).with_suffix(".c"), "vLLM's slots are filled by torch, more slowly"
    return kernels_or_none(source, dict.fromkeys(KERNELS.values(), arguments), without)
