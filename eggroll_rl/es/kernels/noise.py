"""The noise of ``eggroll_rl.es.noise`` in Triton: the same integers, the same formulas in fp32.

``where`` is an int64 tensor [3] on the device: seed, noise epoch, first pair. It is read by the kernel, so a captured
CUDA graph draws other noise once the tensor says so.
"""

# What Triton compiles has types of its own.
# mypy: allow-untyped-defs

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from eggroll_rl.es.perturbation import Distribution

BLOCK = 256  # Philox blocks of a program, four elements each
TURN = tl.constexpr(2 * math.pi * 2.0**-32)


@triton.jit
def words(where, pair, stream, block):
    """The four words of each block [B] of one stream, uint32. ``pair``, a scalar or one for each block, counts from the
    one in ``where``."""
    zero = tl.zeros_like(block).to(tl.uint32)
    pair = (tl.load(where + 2) + pair).to(tl.uint32) + zero
    epoch = tl.load(where + 1).to(tl.uint32) + zero
    stream = (zero.to(tl.int64) + stream).to(tl.uint32)  # which may be a plain number
    return tl.philox(tl.load(where), block.to(tl.uint32), pair, stream, epoch)


@triton.jit
def draw4(where, pair, stream, block, SIGNS: tl.constexpr):
    """Elements ``4 * block`` to ``4 * block + 3`` of each block, in order: fp32 [4 * B]."""
    w0, w1, w2, w3 = words(where, pair, stream, block)
    if SIGNS:
        z0, z1, z2, z3 = _sign(w0), _sign(w1), _sign(w2), _sign(w3)
    else:
        z0, z1 = _normals(w0, w1)
        z2, z3 = _normals(w2, w3)
    return tl.reshape(tl.join(tl.join(z0, z2), tl.join(z1, z3)), [4 * block.shape[0]])


@triton.jit
def _normals(first, second):
    radius = tl.sqrt_rn(-2.0 * tl.log(first.to(tl.float32) * 2.0**-32 + 2.0**-33))
    angle = second.to(tl.float32) * TURN
    return radius * tl.cos(angle), radius * tl.sin(angle)


@triton.jit
def _sign(word):
    return 1.0 - 2.0 * (word & 1).to(tl.float32)


@triton.jit
def _fill(out, where, table, pairs, BLOCK: tl.constexpr, SIGNS: tl.constexpr):
    entry = table + tl.program_id(1) * 4
    stream, first, blocks, start = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2), tl.load(entry + 3)
    tile = tl.program_id(0).to(tl.int64) * BLOCK
    if tile < blocks * pairs:
        n = tile + tl.arange(0, BLOCK)
        z = draw4(where, n // blocks, stream, first + n % blocks, SIGNS)
        element = 4 * tile + tl.arange(0, 4 * BLOCK)
        tl.store(out + 4 * start + element, z.to(out.dtype.element_ty), element < 4 * blocks * pairs)


def fill_(
    out: Tensor, streams: Sequence[tuple[int, int, int]], pairs: int, where: Tensor, distribution: Distribution
) -> Tensor:
    """Write stream after stream, each for K pairs, into ``out``, flat and of any float dtype.

    Args:
        streams: for each the third word of its counter, its first block, and how many blocks of a pair.
        pairs: K, counted from the one in ``where``.
    """
    if not out.numel():
        return out
    starts = accumulate((blocks * pairs for *_, blocks in streams), initial=0)
    table = [[*stream, start] for stream, start in zip(streams, starts, strict=False)]
    tiles = triton.cdiv(max(blocks for *_, blocks in streams) * pairs, BLOCK)
    _fill[(tiles, len(streams))](
        out, where, torch.tensor(table, device=out.device), pairs, BLOCK=BLOCK, SIGNS=distribution == "rademacher"
    )
    return out


def whereabouts(seed: int, epoch: int, first_pair: int, device: torch.device) -> Tensor:
    """``where`` for these numbers."""
    signed = (seed + 2**63) % 2**64 - 2**63  # the same 64 bits
    return torch.tensor([signed, epoch, first_pair], device=device)
