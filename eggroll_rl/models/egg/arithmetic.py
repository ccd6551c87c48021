"""The arithmetic of EGG, a byte-level recurrent language model of integers: weights, activations, state and logits.

A minimal gated recurrent unit and a linear MLP in each layer, after arXiv 2511.16652, v2 appendix G: no float and no
activation function; what is not linear is the clipping. A number is stored as 16 times its value in int8, from -127 to
127; products add up in int32, ``>>`` and ``//`` round down. Byte 0 begins a document and clears the state.

This is plain torch, for any rows of any members; ``population.c`` is the same for a whole population.

Legend: M rows (of as many members, or of the model itself), T tokens, D width, L layers, O out, I in, V = 256 bytes.
"""

import math
from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from eggroll_rl.es.integers import IntegerNoise, clip8

DOCUMENT = 0  # the byte before each document
BYTES = 256
ONE = 16  # what is stored for 1; likelihoods too are in 1/16 bits
SHIFT = 4  # sigma = 1/16


class Weights:
    """The parameters of a model as each of M rows sees them: its own, or with a member's noise.

    Args:
        parameters: name -> int8.
        noise: of M members, one for each row.
        shift: sigma is 2 ** -shift.
    """

    def __init__(self, parameters: Mapping[str, Tensor], noise: IntegerNoise | None = None, shift: int = SHIFT):
        self._parameters = {name: parameter.detach().int() for name, parameter in parameters.items()}
        self._noise, self._down = noise or {}, 4 + shift

    def product(self, name: str, x_MI: Tensor) -> Tensor:
        """``x W^T / sqrt(I)``, int32 [M, O] like all that follows."""
        y_MO = self.multiplied(name, x_MI)
        if name in self._noise:
            A_MO, B_MI = (side.int() for side in self._noise[name])
            y_MO += (x_MI * B_MI).sum(1, keepdim=True, dtype=torch.int32) * A_MO >> self._down
        return clip8(y_MO // (ONE * math.isqrt(x_MI.shape[1])))

    def multiplied(self, name: str, x_MI: Tensor) -> Tensor:
        """``x W^T``, before the member's own joins."""
        return x_MI @ self._parameters[name].T

    def row(self, name: str, index_M: Tensor) -> Tensor:
        """One row of a matrix for each, [M, I]."""
        row_MI = self._parameters[name][index_M]
        if name in self._noise:
            A_MO, B_MI = (side.int() for side in self._noise[name])
            row_MI = row_MI + (A_MO.gather(1, index_M[:, None]) * B_MI >> self._down)
        return clip8(row_MI)

    def vector(self, name: str) -> Tensor:
        """[n], or [M, n] where each row has its own."""
        vector = self._parameters[name]
        if name in self._noise:
            e_Mn = self._noise[name]
            assert isinstance(e_Mn, Tensor)
            vector = vector + (e_Mn.int() >> self._down)
        return clip8(vector)


def norm(x_MD: Tensor, weight: Tensor) -> Tensor:
    """x over its mean magnitude, times the weight."""
    mean_M1 = (x_MD.abs().sum(1, keepdim=True, dtype=torch.int32) // x_MD.shape[1]).clamp(min=1)
    return clip8(x_MD * weight // mean_M1)


def gated(weights: Weights, layer: str, x_MD: Tensor, state_MD: Tensor) -> Tensor:
    """The recurrent unit: its output, which is its new state, [M, D]."""
    f_MD = weights.product(layer + "Wf", x_MD) + weights.product(layer + "Uf", state_MD) + weights.vector(layer + "bf")
    open_MD = clip8(f_MD) + 127  # the gate, of 256
    past_MD = clip8(open_MD * state_MD >> 8)
    h_MD = weights.product(layer + "Wh", x_MD) + weights.product(layer + "Uh", past_MD) + weights.vector(layer + "bh")
    return state_MD + (open_MD * (clip8(h_MD) - state_MD) >> 8)


def step(weights: Weights, byte_M: Tensor, state_MLD: Tensor) -> tuple[Tensor, Tensor]:
    """Read one byte in each row: the logits of the next, [M, V], and the new state; all int32."""
    state_MLD = state_MLD.int() * (byte_M != DOCUMENT)[:, None, None]
    x_MD = weights.row("emb", byte_M)
    states = []
    for index, state_MD in enumerate(state_MLD.unbind(1)):
        layer = f"layers.{index}."
        states.append(gated(weights, layer, norm(x_MD, weights.vector(layer + "ln1")), state_MD))
        x_MD = clip8(x_MD + states[-1])
        hidden_M4D = weights.product(layer + "W1", norm(x_MD, weights.vector(layer + "ln2")))
        x_MD = clip8(x_MD + weights.product(layer + "W2", hidden_M4D))
    return weights.product("head", norm(x_MD, weights.vector("ln_out"))), torch.stack(states, dim=1)


@cache
def powers() -> Tensor:
    """``floor(16 * 2 ** (i / 16))`` for i from 0 to 255, int64: a root of the 16th degree, by four square roots."""
    return torch.tensor([_root16(2 ** (64 + i)) for i in range(256)])


@cache
def log_steps() -> Tensor:
    """The least k of which ``floor(16 * log2(k / 16))`` is i, for i from 0 to 384, int64."""
    return torch.tensor([_root16(2 ** (64 + i) - 1) + 1 for i in range(385)])


@cache
def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    return powers().to(device), log_steps().to(device)


def _root16(value: int) -> int:
    for _ in range(4):
        value = math.isqrt(value)
    return value


def log_likelihood(logits_MV: Tensor, next_M: Tensor) -> Tensor:
    """Of the next byte under ``2 ** (logit / 16)``, normalised; in 1/16 bits, int64 [M], below zero."""
    y_MV = logits_MV.long() + 128
    powers_V, steps = _tables(logits_MV.device)
    log_M = torch.searchsorted(steps, powers_V[y_MV].sum(1), right=True) - 1
    return y_MV.gather(1, next_M[:, None])[:, 0] - log_M


def read(weights: Weights, byte_MT: Tensor, state_MLD: Tensor) -> tuple[Tensor, Tensor]:
    """Log-likelihoods [M, T - 1] (1/16 bits) of all bytes but the first, each after those before it; the new state.

    The last byte is only foretold: it begins the next call's.
    """
    likelihoods = []
    for byte_M, next_M in zip(byte_MT.long().unbind(1), byte_MT.long()[:, 1:].unbind(1), strict=False):
        logits_MV, state_MLD = step(weights, byte_M, state_MLD)
        likelihoods.append(log_likelihood(logits_MV, next_M))
    return torch.stack(likelihoods, dim=1), state_MLD
