"""The recurrence of RWKV-7 over many tokens, in chunks of matrix products, or over one.

Chunks are the WY form of the delta rule (arXiv 2503.14456 section 3), so that prompts and training take a handful of
passes.

Shapes: B batch, T tokens, H heads, K head size (keys and values alike), C tokens of a chunk.
"""

import torch
from torch import Tensor

from eggroll_rl.es import kernels

CHUNK = 16


def runs_kernels(x: Tensor) -> bool:
    """Whether the kernels, which know no gradients, can be used where x is."""
    return kernels.run_on(x.device) and not torch.is_grad_enabled()


def wkv7(
    r: Tensor, log_decay: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state_BHKK: Tensor
) -> tuple[Tensor, Tensor]:
    """``S_t = (diag(exp(log_decay_t)) + b_t a_t^T) S_{t-1} + k_t v_t^T``, ``y_t = S_t^T r_t``, in fp32.

    Args:
        r, log_decay, k, v, a, b: [B, T, H, K].
        state_BHKK: S before the first token; rows are keys, columns values. A single token without gradients on CUDA
            overwrites it.

    Returns:
        y [B, T, H, K] and the state after the last token.
    """
    if runs_kernels(r):
        from eggroll_rl.es.kernels.wkv7 import wkv7 as fused

        return fused(r, log_decay, k, v, a, b, state_BHKK, out=state_BHKK if r.shape[1] == 1 else None)
    r, log_decay, k, v, a, b = (x.float().transpose(1, 2) for x in (r, log_decay, k, v, a, b))
    if r.shape[2] == 1:
        state_BHKK = log_decay.exp().mT * state_BHKK + b.mT @ (a @ state_BHKK) + k.mT @ v
        return (r @ state_BHKK).transpose(1, 2), state_BHKK
    outputs = []
    for chunk in zip(*(x.split(CHUNK, dim=2) for x in (r, log_decay, k, v, a, b)), strict=True):
        y, state_BHKK = _wkv7_chunk(state_BHKK, *chunk)
        outputs.append(y)
    return torch.cat(outputs, dim=2).transpose(1, 2), state_BHKK


def _wkv7_chunk(
    state: Tensor, r: Tensor, log_decay: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    """One chunk [B, H, C, K]: with keys measured against the decay since the chunk's start, S_t = diag(decay_t) S'_t,
    the rank-one corrections u_t = S'_{t-1}^T a_t solve a unit lower triangular system."""
    cumulative = log_decay.cumsum(dim=2)
    grow, shrink = torch.exp(-cumulative), torch.exp(cumulative)
    k, b, r, a = k * grow, b * grow, r * shrink, a * torch.exp(cumulative - log_decay)
    past = a @ state + (a @ k.mT).tril(-1) @ v
    u = torch.linalg.solve_triangular(-(a @ b.mT).tril(-1), past, upper=False, unitriangular=True)
    y = r @ state + (r @ b.mT).tril() @ u + (r @ k.mT).tril() @ v
    return y, shrink[:, :, -1:].mT * (state + b.mT @ u + k.mT @ v)
