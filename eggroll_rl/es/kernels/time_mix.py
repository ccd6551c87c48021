"""One token of RWKV-7's mixers: what lies between two matrix products is one kernel, where plain torch has dozens.

Sums are fp32, whatever the dtype of the activations.

Shapes: B batch, D width, H heads, K head size (keys and values alike), a power of two.
"""

# What Triton compiles has types of its own.
# mypy: allow-untyped-defs

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_PARAMETERS = 6  # of one mixing
BLOCK = 1024  # channels of a program
DECAY = tl.constexpr(-math.exp(-0.5))  # log of the strongest decay


@triton.jit
def _mix(out, x, before, stride, p0, p1, p2, p3, p4, p5, D, N: tl.constexpr, BLOCK: tl.constexpr):
    row, d = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside, at, shift = d < D, row * D + d, before + row * stride + d
    size = tl.num_programs(0).to(tl.int64) * D  # of one mixture
    own = tl.load(x + at, inside, other=0.0)
    x_D = own.to(tl.float32)
    dx_D = tl.load(shift, inside, other=0.0).to(tl.float32) - x_D
    tl.store(shift, own, inside)
    _put(out + at, x_D, dx_D, p0 + d, inside)
    if N > 1:
        _put(out + size + at, x_D, dx_D, p1 + d, inside)
    if N > 2:
        _put(out + 2 * size + at, x_D, dx_D, p2 + d, inside)
    if N > 3:
        _put(out + 3 * size + at, x_D, dx_D, p3 + d, inside)
    if N > 4:
        _put(out + 4 * size + at, x_D, dx_D, p4 + d, inside)
    if N > 5:
        _put(out + 5 * size + at, x_D, dx_D, p5 + d, inside)


@triton.jit
def _put(target, x_D, dx_D, parameter, inside):
    mixed = x_D + dx_D * tl.load(parameter, inside, other=0.0).to(tl.float32)
    tl.store(target, mixed.to(target.dtype.element_ty), inside)


def mixed_(x_B1D: Tensor, before_BD: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """``x + (before - x) * p`` for each of up to six parameters p of D numbers, each [B, 1, D]; x takes the place of
    ``before``, whose rows are contiguous."""
    batch, _, width = x_B1D.shape
    out = x_B1D.new_empty(len(parameters), batch, 1, width)
    filled = [*parameters, *[parameters[0]] * (MOST_PARAMETERS - len(parameters))]
    block = min(BLOCK, triton.next_power_of_2(width))
    grid = (batch, triton.cdiv(width, block))
    _mix[grid](out, x_B1D.contiguous(), before_BD, before_BD.stride(0), *filled, width, N=len(parameters), BLOCK=block)
    return out.unbind()


@triton.jit
def _attend(
    y, r, decay, k, v, rate, gate, v_first, v_gate, k_k, k_a, r_k, weight, bias, state, H, eps,
    K: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)  # a row's head
    i = tl.arange(0, K)
    at, channel = program * K + i, (program % H) * K + i
    r_K = tl.load(r + at).to(tl.float32)
    k_K = tl.load(k + at).to(tl.float32)
    v_K = tl.load(v + at).to(tl.float32)
    rate_K = tl.sigmoid(tl.load(rate + at).to(tl.float32))
    decay_K = tl.exp(tl.sigmoid(tl.load(decay + at).to(tl.float32)) * DECAY)
    if not FIRST:
        first_K = tl.load(v_first + at).to(tl.float32)
        v_K += (first_K - v_K) * tl.sigmoid(tl.load(v_gate + at).to(tl.float32))
    kk_K = k_K * tl.load(k_k + channel).to(tl.float32)
    kk_K = kk_K / tl.maximum(tl.sqrt_rn(tl.sum(kk_K * kk_K, axis=0)), 1e-12)
    k_K = k_K * (1.0 + (rate_K - 1.0) * tl.load(k_a + channel).to(tl.float32))

    place = program * K * K + i[:, None] * K + i[None, :]
    S = tl.load(state + place)
    u_K = tl.sum(kk_K[:, None] * S, axis=0)
    S = decay_K[:, None] * S - (kk_K * rate_K)[:, None] * u_K[None, :] + k_K[:, None] * v_K[None, :]
    tl.store(state + place, S)

    y_K = tl.sum(r_K[:, None] * S, axis=0)
    y_K -= tl.sum(y_K, axis=0) / K
    y_K = y_K / tl.sqrt_rn(tl.sum(y_K * y_K, axis=0) / K + eps)
    y_K = y_K * tl.load(weight + channel).to(tl.float32) + tl.load(bias + channel).to(tl.float32)
    bonus = tl.sum(r_K * k_K * tl.load(r_k + channel).to(tl.float32), axis=0)
    y_K = (y_K + bonus * v_K) * tl.load(gate + at).to(tl.float32)
    tl.store(y + at, y_K.to(y.dtype.element_ty))


def attended_(
    r: Tensor,
    decay: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    gate: Tensor,
    v_first: Tensor | None,
    v_gate: Tensor | None,
    parameters: tuple[Tensor, Tensor, Tensor],
    norm: torch.nn.GroupNorm,
    state_BHKK: Tensor,
) -> Tensor:
    """What the matrix ``o_proj`` of ``TimeMix`` multiplies, from what its other matrices gave, and the new state, which
    takes the place of the old.

    Args:
        r, decay, k, v, rate, gate: [B, 1, D], as the matrices gave them.
        v_first, v_gate: likewise; None in the first layer.
        parameters: ``k_k``, ``k_a`` and ``r_k``, of D numbers each.
        norm: of the heads.
        state_BHKK: fp32, contiguous.

    Returns:
        [B, 1, D].
    """
    batch, heads, size, _ = state_BHKK.shape
    given = [x if x is None else x.contiguous() for x in (r, decay, k, v, rate, gate, v_first, v_gate)]
    y = r.new_empty(r.shape)
    _attend[(batch * heads,)](
        y, *given, *parameters, norm.weight, norm.bias, state_BHKK, heads, norm.eps, K=size, FIRST=v_first is None
    )
    return y
