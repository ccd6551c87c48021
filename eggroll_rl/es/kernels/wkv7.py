"""The recurrence of RWKV-7: the state of a head stays in registers from the first token to the last.

``S_t = (diag(exp(log_decay_t)) + b_t a_t^T) S_{t-1} + k_t v_t^T``, ``y_t = S_t^T r_t``. The columns of S are
independent, so several programs may share a head. A token whose log_decay, k, a and b are zero leaves S as it is.

Shapes: B batch, T tokens, H heads, K head size (keys and values alike), a power of two.
"""

# What Triton compiles has types of its own.
# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

HEADS = 1024  # with fewer heads in the batch, a head's values are divided among several programs


@triton.jit
def _wkv7(
    y, r, log_decay, k, v, a, b, state, new_state, T, H, K: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    batch, head = tl.program_id(0) // H, tl.program_id(0) % H
    i = tl.arange(0, K)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place = tl.program_id(0).to(tl.int64) * K * K + i[:, None] * K + j[None, :]
    S = tl.load(state + place)
    for t in range(T):
        at = ((batch.to(tl.int64) * T + t) * H + head) * K
        a_K = tl.load(a + at + i).to(tl.float32)
        b_K = tl.load(b + at + i).to(tl.float32)
        k_K = tl.load(k + at + i).to(tl.float32)
        r_K = tl.load(r + at + i).to(tl.float32)
        decay_K = tl.exp(tl.load(log_decay + at + i).to(tl.float32))
        v_K = tl.load(v + at + j).to(tl.float32)
        u_K = tl.sum(a_K[:, None] * S, axis=0)
        S = decay_K[:, None] * S + b_K[:, None] * u_K[None, :] + k_K[:, None] * v_K[None, :]
        tl.store(y + at + j, tl.sum(r_K[:, None] * S, axis=0))
    tl.store(new_state + place, S)


def wkv7(
    r: Tensor,
    log_decay: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state_BHKK: Tensor,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As ``eggroll_rl.models.rwkv7.wkv7``, without gradients.

    Args:
        r, log_decay, k, v, a, b: [B, T, H, K], of any float dtype.
        state_BHKK: fp32, contiguous.
        out: where the new state goes, ``state_BHKK`` itself if so wished; None: a new tensor.

    Returns:
        y [B, T, H, K] fp32, and the new state.
    """
    batch, tokens, heads, size = r.shape
    out = torch.empty_like(state_BHKK) if out is None else out
    y = torch.empty(r.shape, dtype=torch.float32, device=r.device)
    block = size if batch * heads >= HEADS else max(min(16, size), size // 4)
    _wkv7[(batch * heads, size // block)](
        y, *(x.contiguous() for x in (r, log_decay, k, v, a, b)), state_BHKK, out, tokens, heads, K=size, BLOCK=block
    )
    return y, out
