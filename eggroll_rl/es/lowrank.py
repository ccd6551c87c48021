"""The product with a member's weights: ``y = x W^T + s * sigma / sqrt(r) * (x B) A^T``, batched over members.

EGGROLL (arXiv 2511.16652), section 3: one shared GEMM gives ``x W^T``, two thin products add what is each member's own:
by torch, or for rank 1 in fp32 on the CPU by ``lowrank.c`` in one pass over the rows.

Legend: M rows (members x prompts, member-major), K pairs, T tokens or other middle dimensions, O out, I in, r rank.
"""

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from eggroll_rl.es import kernels
from eggroll_rl.system.native import kernels_or_none

_TERMS = {"cpu": 128}  # terms of a sum in one call: BLAS divides longer sums by its number of threads


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
    if pair_M is None and len(coefficient_M) % len(A_KOr):
        raise ValueError(f"{len(coefficient_M)} rows are not as many for each of {len(A_KOr)} pairs")
    if kernels.run_on(y_M_O.device):
        from eggroll_rl.es.kernels.lowrank import add_lowrank_ as fused

        return fused(y_M_O, x_M_I, A_KOr, B_KIr, coefficient_M, pair_M)
    if y_M_O.device.type == "cpu" and y_M_O.dtype == torch.float32 and A_KOr.shape[-1] == 1 and _library():
        return _add_rank_one_(y_M_O, x_M_I.contiguous(), A_KOr, B_KIr, coefficient_M, pair_M)
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


def _add_rank_one_(
    y_M_O: Tensor, x_M_I: Tensor, A_KO1: Tensor, B_KI1: Tensor, coefficient_M: Tensor, pair_M: Tensor | None
) -> Tensor:
    rows, pairs, size_O, size_I = len(coefficient_M), len(A_KO1), y_M_O.shape[-1], x_M_I.shape[-1]
    assert y_M_O.is_contiguous() and A_KO1.stride(1) == B_KI1.stride(1) == 1 and coefficient_M.is_contiguous()
    library = _library()
    assert library is not None
    library.add_rank_one(
        rows, y_M_O.numel() // (rows * size_O), size_I, size_O, pairs, x_M_I.data_ptr(), y_M_O.data_ptr(),
        A_KO1.data_ptr(), A_KO1.stride(0), B_KI1.data_ptr(), B_KI1.stride(0), coefficient_M.data_ptr(),
        None if pair_M is None else pair_M.data_ptr(),
    )  # fmt: skip
    return y_M_O


@cache
def _library() -> ctypes.CDLL | None:
    size, pointer = ctypes.c_int64, ctypes.c_void_p
    arguments = [*[size] * 5, pointer, pointer, pointer, size, pointer, size, pointer, pointer]
    source = Path(__file__).with_suffix(".c")
    return kernels_or_none(source, {"add_rank_one": arguments}, "perturbations run in torch, more slowly")


def by_pair(rows_M_D: Tensor, pairs: int) -> Tensor:
    """View contiguous rows [M, ..., D] as [K, M / K * T, D]: all tokens of a pair's rows together."""
    return rows_M_D.view(pairs, rows_M_D.numel() // (pairs * rows_M_D.shape[-1]), -1)


def materialize(weight_OI: Tensor, A_Or: Tensor, B_Ir: Tensor, coefficient: float) -> Tensor:
    """``W + coefficient * A B^T``: one member's weights, whole; of a stack [E, O, I] too, with [E, O, r] and so on."""
    add = torch.addmm if weight_OI.ndim == 2 else torch.baddbmm
    return add(weight_OI, A_Or, B_Ir.mT, alpha=coefficient)


def add_products_(total_OI: Tensor, left_LO: Tensor, right_LI: Tensor) -> None:
    """``total += left^T right``, some terms after others.

    Operands are contiguous and sums short, so that the result is the same to the bit whether the noise was drawn alone
    or as part of a bulk, and on any number of threads.
    """
    terms = _TERMS.get(total_OI.device.type, len(left_LO))
    for left, right in zip(left_LO.split(terms), right_LI.split(terms), strict=True):
        total_OI.addmm_(left.mT, right)
