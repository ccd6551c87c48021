"""``y += c * (x B) A^T`` in one pass over x and y, where plain torch takes three and keeps ``x B``.

The noise is read from memory, or made from its seed in registers. Sums are fp32.

Legend: G groups of S consecutive rows (tokens included) that share a pair, M rows, K pairs, O out, I in, r rank.
"""

# What Triton compiles has types of its own.
# mypy: allow-untyped-defs

import triton
import triton.language as tl
from torch import Tensor

from eggroll_rl.es.kernels import REGENERATED_RANKS
from eggroll_rl.es.kernels.noise import draw4
from eggroll_rl.es.perturbation import Seeds

TILE = 2048  # elements of x or y at a time, times r
PROGRAMS = 512  # with fewer programs, each group's outputs are divided among several


@triton.jit
def _factor(
    pointer, stride, stream, where, pair, start, size,
    R: tl.constexpr, RP: tl.constexpr, BLOCK: tl.constexpr, SEEDED: tl.constexpr, SIGNS: tl.constexpr,
):  # fmt: skip
    """Rows ``start`` to ``start + BLOCK`` of one pair's A or B [size, r]: fp32 [BLOCK, RP], zero beyond r."""
    if SEEDED:
        block = start * R // 4 + tl.arange(0, BLOCK * R // 4)
        return tl.reshape(draw4(where, pair, stream, block, SIGNS), [BLOCK, R])
    else:  # Triton compiles what follows a return within a branch
        i = start + tl.arange(0, BLOCK)[:, None]
        j = tl.arange(0, RP)[None, :]
        return tl.load(pointer + pair.to(tl.int64) * stride + i * R + j, (i < size) & (j < R), other=0.0).to(tl.float32)


@triton.jit
def _add_lowrank(
    y, x, a, b, coefficient, pair, where, stride_a, stride_b, stream_a, stream_b, S, T, size_I, size_O,
    R: tl.constexpr, RP: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK: tl.constexpr,
    INDEXED: tl.constexpr, SEEDED: tl.constexpr, SIGNS: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0)
    k = tl.load(pair + group) if INDEXED else group
    s = tl.program_id(1) * BLOCK_S + tl.arange(0, BLOCK_S)
    row = group.to(tl.int64) * S + s
    here = (s < S)[:, None]
    terms = tl.zeros([BLOCK_S, BLOCK, RP], tl.float32)  # added up once, at the end
    for start in range(0, size_I, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x_SI = tl.load(x + row[:, None] * size_I + i[None, :], here & (i < size_I)[None, :], other=0.0).to(tl.float32)
        b_IR = _factor(b, stride_b, stream_b, where, k, start, size_I, R, RP, BLOCK, SEEDED, SIGNS)
        b_IR = b_IR.to(x.dtype.element_ty).to(tl.float32)
        terms += x_SI[:, :, None] * b_IR[None, :, :]
    h = tl.sum(terms, axis=1)
    h *= tl.load(coefficient + row // T, s < S, other=0.0).to(tl.float32)[:, None]
    for start in range(tl.program_id(2) * BLOCK, size_O, tl.num_programs(2) * BLOCK):
        o = start + tl.arange(0, BLOCK)
        a_OR = _factor(a, stride_a, stream_a, where, k, start, size_O, R, RP, BLOCK, SEEDED, SIGNS)
        a_OR = a_OR.to(x.dtype.element_ty).to(tl.float32)
        inside = here & (o < size_O)[None, :]
        target = y + row[:, None] * size_O + o[None, :]
        y_SO = tl.load(target, inside, other=0.0).to(tl.float32) + tl.sum(h[:, None, :] * a_OR[None, :, :], axis=2)
        tl.store(target, y_SO.to(y.dtype.element_ty), inside)


def add_lowrank_(
    y_M_O: Tensor, x_M_I: Tensor, A_KOr: Tensor, B_KIr: Tensor, coefficient_M: Tensor, pair_M: Tensor | None = None
) -> Tensor:
    """As ``eggroll_rl.es.lowrank.add_lowrank_``."""
    return _launch(y_M_O, x_M_I, _dense(A_KOr), _dense(B_KIr), None, len(A_KOr), coefficient_M, pair_M)


def add_regenerated_(
    y_M_O: Tensor, x_M_I: Tensor, seeds: Seeds, coefficient_M: Tensor, pair_M: Tensor | None = None
) -> Tensor:
    """The same with noise made in registers, rounded to the dtype of y as drawn noise is; r is 1, 2 or 4."""
    assert seeds.rank in REGENERATED_RANKS
    return _launch(y_M_O, x_M_I, None, None, seeds, seeds.pairs, coefficient_M, pair_M)


def _launch(
    y: Tensor,
    x: Tensor,
    A_KOr: Tensor | None,
    B_KIr: Tensor | None,
    seeds: Seeds | None,
    pairs: int,
    coefficient_M: Tensor,
    pair_M: Tensor | None,
) -> Tensor:
    M, size_I, size_O = len(coefficient_M), x.shape[-1], y.shape[-1]
    T = y.numel() // (M * size_O)
    G = pairs if pair_M is None else M
    if M % G:
        raise ValueError(f"{M} rows are not as many for each of {pairs} pairs")
    S = M // G * T
    rank = seeds.rank if seeds else A_KOr.shape[2]  # type: ignore[union-attr]
    padded = triton.next_power_of_2(rank)
    block_s = min(16, triton.next_power_of_2(S))
    block = max(4, min(triton.next_power_of_2(max(size_I, size_O)), TILE // (block_s * padded)))
    tiles = triton.cdiv(S, block_s)
    splits = max(1, min(triton.cdiv(size_O, block), PROGRAMS // (G * tiles)))
    x = x.contiguous()
    _add_lowrank[(G, tiles, splits)](
        y, x, A_KOr, B_KIr, coefficient_M, pair_M, seeds.where if seeds else None,
        0 if A_KOr is None else A_KOr.stride(0), 0 if B_KIr is None else B_KIr.stride(0),
        seeds.stream_A if seeds else 0, seeds.stream_B if seeds else 0, S, T, size_I, size_O,
        R=rank, RP=padded, BLOCK_S=block_s, BLOCK=block, INDEXED=pair_M is not None,
        SEEDED=seeds is not None, SIGNS=seeds is not None and seeds.distribution == "rademacher",
    )  # fmt: skip
    return y


def _dense(factor: Tensor) -> Tensor:
    """A factor [K, D, r] whose pairs are contiguous, wherever each of them is."""
    rank = factor.shape[2]
    return factor if factor.stride()[1:] == (rank, 1) or factor[0].is_contiguous() else factor.contiguous()
