"""Whitening: noise to which every direction of a matrix's inputs matters alike.

Plain noise ``A B^T`` moves the output of a matrix mostly along the few directions in which its inputs vary most; what
could be learned from the others is lost behind what these do to the answers. With ``B = S b``, b of independent
elements and ``S ~ (C / mean(C) + damping)^(-1/2)`` for inputs of second moment C, the matrix reads whitened inputs
``x S`` instead. S is scaled so that a member's outputs differ from the mean's as much, on average, as with plain noise
of the same sigma.

Legend: M rows, T tokens, L positions, K pairs, O out, I in, r rank.
"""

import torch
from torch import Tensor

from eggroll_rl.es.lowrank import add_products_
from eggroll_rl.es.perturbation import Members

_PAIRS = 16  # multiplied at once


class InputMoments:
    """A ``Perturbation`` that changes nothing, and takes the second moment of what its matrix reads.

    Attributes:
        kept_MT: bool, the positions that count, of the batch that comes next.
        total_II: fp64, the sum of ``x x^T`` over these; None: nothing was read yet.
        count: their number.
    """

    def __init__(self) -> None:
        self.kept_MT = torch.ones(0, dtype=torch.bool)
        self.total_II: Tensor | None = None
        self.count = 0

    def add_product_(self, y_M_O: Tensor, x_M_I: Tensor, members: Members) -> None:
        x_LI = x_M_I.flatten(0, -2)[self.kept_MT.flatten()].double()
        product_II = x_LI.mT @ x_LI
        self.total_II = product_II if self.total_II is None else self.total_II.add_(product_II)
        self.count += len(x_LI)

    def add_vector_(self, y_M_O: Tensor, x_M_O: Tensor | None, members: Members) -> None:
        return None  # vectors have dense noise, which stays as it is

    @property
    def pairs(self) -> int:
        return 0

    @property
    def mT(self) -> "InputMoments":
        raise TypeError("whitening is of matrices that are stored [O, I]")

    def add_sum_(self, total: Tensor, weights_K: Tensor) -> None:
        raise TypeError("moments are no noise")

    def added_to(self, weight: Tensor, pair: int, amount: float, rank: int) -> Tensor:
        raise TypeError("moments are no noise")

    def to(self, dtype: torch.dtype) -> "InputMoments":
        return self

    def tensors(self) -> tuple[Tensor, ...]:
        return ()

    def whitening(self, damping: float) -> Tensor:
        """S, fp32 [I, I], symmetric."""
        assert self.total_II is not None and self.count, "inputs were read"
        variance_I, direction_II = torch.linalg.eigh(self.total_II.cpu() / self.count)
        variance_I = variance_I.clamp(min=0)
        mean = variance_I.mean().clamp(min=torch.finfo(torch.float64).tiny)
        scale_I = (variance_I / mean + damping).rsqrt()
        scale_I *= (variance_I.sum() / (variance_I * scale_I.square()).sum()).sqrt().nan_to_num(nan=1.0)
        return ((direction_II * scale_I) @ direction_II.mT).float()


def whitened(b_KIr: Tensor, whitening_II: Tensor, first: int) -> Tensor:
    """``S b`` of K pairs from the pair ``first`` on, fp32 [K, I, r].

    A pair is multiplied in the same place of the same block whichever others are asked for, in sums that BLAS does not
    divide, so that its numbers are the same to the bit, on any number of threads.
    """
    pairs, size, rank = b_KIr.shape
    before, blocks = first % _PAIRS, -(-(first % _PAIRS + pairs) // _PAIRS)
    rows_LI = b_KIr.new_zeros(blocks * _PAIRS, rank, size)
    rows_LI[before : before + pairs] = b_KIr.mT
    products_LI = torch.zeros_like(rows_LI)
    for block, product in zip(rows_LI.split(_PAIRS), products_LI.split(_PAIRS), strict=True):
        add_products_(product.view(-1, size), block.flatten(0, 1).mT.contiguous(), whitening_II)
    return products_LI[before : before + pairs].mT.contiguous()
