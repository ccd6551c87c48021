"""The product with a member's weights: ``y = x W^T + s * sigma / sqrt(r) * (x B) A^T``, batched over members.

EGGROLL (arXiv 2511.16652), section 3: one shared GEMM gives ``x W^T``, two thin products add what is each member's own.

Legend: M rows (members x prompts, member-major), K pairs, T tokens or other middle dimensions, O out, I in, r rank.
"""

import torch
from torch import Tensor


def add_lowrank_(
    y_M_O: Tensor,
    x_M_I: Tensor,
    A_KOr: Tensor,
    B_KIr: Tensor,
    coefficient_M: Tensor,
    pair_M: Tensor | None = None,
) -> Tensor:
    """Add ``coefficient * (x B) A^T`` to y in place, each row with the factors of its pair.

    Args:
        y_M_O: [M, ..., O], contiguous.
        x_M_I: [M, ..., I].
        A_KOr: [K, O, r], of the dtype of y, and so are the others.
        B_KIr: [K, I, r].
        coefficient_M: [M], sign * sigma / sqrt(r).
        pair_M: [M] int64, the pair of each row; None: M / K consecutive rows for each pair, in order.
    """
    if pair_M is not None:
        A_KOr, B_KIr = A_KOr.index_select(0, pair_M), B_KIr.index_select(0, pair_M)
    y_KTO = by_pair(y_M_O, len(A_KOr))
    h_KTr = torch.bmm(by_pair(x_M_I.contiguous(), len(A_KOr)), B_KIr)
    h_KTr.view(len(coefficient_M), -1).mul_(coefficient_M[:, None])
    if A_KOr.shape[-1] == 1:
        y_KTO.addcmul_(h_KTr, A_KOr.mT)
    else:
        y_KTO.baddbmm_(h_KTr, A_KOr.mT)
    return y_M_O


def by_pair(rows_M_D: Tensor, pairs: int) -> Tensor:
    """View contiguous rows [M, ..., D] as [K, M / K * T, D]: all tokens of a pair's rows together."""
    return rows_M_D.view(pairs, rows_M_D.numel() // (pairs * rows_M_D.shape[-1]), -1)


def materialize(weight_OI: Tensor, A_Or: Tensor, B_Ir: Tensor, coefficient: float) -> Tensor:
    """``W + coefficient * A B^T``: one member's weights, whole."""
    return torch.addmm(weight_OI, A_Or, B_Ir.mT, alpha=coefficient)
