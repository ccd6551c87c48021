"""The layers of an RWKV-7, under the names of the published checkpoints.

Shapes: B batch, T tokens, D width, H heads, K head size (keys and values alike).
"""

import math
from typing import TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eggroll_rl.models.rwkv7.config import RWKV7Config
from eggroll_rl.models.rwkv7.recurrence import runs_kernels, wkv7
from eggroll_rl.models.rwkv7.state import RWKV7State

DECAY = -math.exp(-0.5)  # log of the strongest decay per token


class LoRA(nn.Module):
    """Two thin matrices with an activation between them, under the checkpoints' names ``lora.0`` and ``lora.2``."""

    def __init__(self, width: int, rank: int, activation: nn.Module, bias: bool = True):
        super().__init__()
        self.lora = nn.Sequential(nn.Linear(width, rank, bias=False), activation, nn.Linear(rank, width, bias=bias))

    @property
    def down(self) -> nn.Linear:
        return cast(nn.Linear, self.lora[0])

    @property
    def up(self) -> nn.Linear:
        return cast(nn.Linear, self.lora[2])

    def forward(self, x: Tensor) -> Tensor:
        return self.lora(x)


class TimeMix(nn.Module):
    """The recurrent mixer: a state matrix per head with a vector-valued decay and an in-context learning rate."""

    def __init__(self, config: RWKV7Config, layer: int):
        super().__init__()
        width = config.hidden_size
        self.layer, self.heads = layer, config.num_heads
        self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g = (
            nn.Parameter(torch.zeros(1, 1, width)) for _ in "rwkvag"
        )
        self.k_k = nn.Parameter(torch.zeros(width))
        self.k_a = nn.Parameter(torch.zeros(width))
        self.r_k = nn.Parameter(torch.zeros(config.num_heads, config.head_dim))
        self.r_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.w_lora = LoRA(width, config.decay_low_rank_dim, nn.Tanh())
        self.a_lora = LoRA(width, config.a_low_rank_dim, nn.Identity())
        self.g_lora = LoRA(width, config.gate_low_rank_dim, nn.Sigmoid(), bias=False)
        if layer > 0:
            self.v_lora = LoRA(width, config.v_low_rank_dim, nn.Identity())
        elif config.unused_v_lora:
            rank = config.v_low_rank_dim
            for name, shape in (("v0", (1, 1, width)), ("v1", (width, rank)), ("v2", (rank, width))):
                self.register_buffer(name, torch.zeros(shape))
        self.g_norm = nn.GroupNorm(config.num_heads, width, eps=config.head_norm_eps)

    def forward(
        self,
        x_BTD: Tensor,
        shift_BD: Tensor | None,
        state_BHKK: Tensor,
        v_first_BTD: Tensor | None,
        mask_BT1: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if runs_fused(shift_BD, x_BTD):
            return self._fused(x_BTD, shift_BD, state_BHKK, v_first_BTD)
        batch, tokens, width = x_BTD.shape
        heads = (batch, tokens, self.heads, -1)
        dx = token_shift(x_BTD, shift_BD) - x_BTD
        r = self.r_proj(torch.addcmul(x_BTD, dx, self.x_r))
        k = self.k_proj(torch.addcmul(x_BTD, dx, self.x_k))
        x_v = torch.addcmul(x_BTD, dx, self.x_v)
        v = self.v_proj(x_v)
        log_decay = DECAY * torch.sigmoid(self.w_lora(torch.addcmul(x_BTD, dx, self.x_w)).float())
        rate = torch.sigmoid(self.a_lora(torch.addcmul(x_BTD, dx, self.x_a)))
        gate = self.g_lora(torch.addcmul(x_BTD, dx, self.x_g))

        kk = F.normalize((k * self.k_k).view(heads), dim=-1)
        k = k * (1 + (rate - 1) * self.k_a)
        if v_first_BTD is None:
            v_first_BTD = v
        else:
            v = v + (v_first_BTD - v) * torch.sigmoid(self.v_lora(x_v))
        if mask_BT1 is not None:  # padding leaves the state untouched
            log_decay, k, kk = log_decay * mask_BT1, k * mask_BT1, kk * mask_BT1[..., None]

        r, k, v = r.view(heads), k.view(heads), v.view(heads)
        y, state_BHKK = wkv7(r, log_decay.view(heads), k, v, -kk, kk * rate.view(heads), state_BHKK)
        y = self.g_norm(y.to(x_BTD.dtype).reshape(batch * tokens, width)).view(batch, tokens, width)
        y = y + ((r * k * self.r_k).sum(-1, keepdim=True) * v).view(batch, tokens, width)
        return self.o_proj(y * gate), state_BHKK, v_first_BTD

    def _fused(
        self, x_BTD: Tensor, shift_BD: Tensor, state_BHKK: Tensor, v_first_BTD: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same of one token, by kernels: x takes the place of the shift, and the new state that of the old."""
        from eggroll_rl.es.kernels.time_mix import attended_, mixed_

        mixes = self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g
        x_r, x_w, x_k, x_v, x_a, x_g = mixed_(x_BTD, shift_BD, mixes)
        r, k, v = self.r_proj(x_r), self.k_proj(x_k), self.v_proj(x_v)
        given = r, self.w_lora(x_w), k, v, self.a_lora(x_a), self.g_lora(x_g)
        v_gate = None if v_first_BTD is None else self.v_lora(x_v)
        y = attended_(*given, v_first_BTD, v_gate, (self.k_k, self.k_a, self.r_k), self.g_norm, state_BHKK)
        return self.o_proj(y), state_BHKK, v if v_first_BTD is None else v_first_BTD


class ChannelMix(nn.Module):
    """The feed-forward mixer: squared ReLU over a token-shifted input."""

    def __init__(self, config: RWKV7Config):
        super().__init__()
        self.x_k = nn.Parameter(torch.zeros(config.hidden_size))
        self.key = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.value = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor, shift_BD: Tensor | None) -> Tensor:
        if runs_fused(shift_BD, x_BTD):
            from eggroll_rl.es.kernels.time_mix import mixed_

            (mixed,) = mixed_(x_BTD, shift_BD, (self.x_k,))
        else:
            mixed = torch.addcmul(x_BTD, token_shift(x_BTD, shift_BD) - x_BTD, self.x_k)
        return self.value(torch.relu(self.key(mixed)).square())


class Block(nn.Module):
    """Both mixers, each behind its norm; the first block also normalises the embedding."""

    def __init__(self, config: RWKV7Config, layer: int):
        super().__init__()
        self.layer = layer
        if layer == 0:
            self.pre_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.attn_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.attn = TimeMix(config, layer)
        self.ffn_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.ffn = ChannelMix(config)

    def forward(
        self, x_BTD: Tensor, state: RWKV7State, v_first_BTD: Tensor | None, mask_BT1: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        layer = self.layer
        if layer == 0:
            x_BTD = self.pre_norm(x_BTD)
        wkv = state.wkv_BHKK[layer]
        if wkv is None:
            size = self.attn.r_k.shape[1]
            wkv = x_BTD.new_zeros(len(x_BTD), self.attn.heads, size, size, dtype=torch.float32)
        h_BTD = masked(self.attn_norm(x_BTD), mask_BT1)
        out, state.wkv_BHKK[layer], v_first_BTD = self.attn(
            h_BTD, state.att_shift_BD[layer], wkv, v_first_BTD, mask_BT1
        )
        state.att_shift_BD[layer] = new_shift(state.att_shift_BD[layer], h_BTD)
        x_BTD = x_BTD + out
        h_BTD = masked(self.ffn_norm(x_BTD), mask_BT1)
        x_BTD = x_BTD + self.ffn(h_BTD, state.ffn_shift_BD[layer])
        state.ffn_shift_BD[layer] = new_shift(state.ffn_shift_BD[layer], h_BTD)
        return x_BTD, v_first_BTD


def runs_fused(shift_BD: Tensor | None, x_BTD: Tensor) -> TypeGuard[Tensor]:
    """Whether the kernels for one token after others can be used."""
    return shift_BD is not None and x_BTD.shape[1] == 1 and runs_kernels(x_BTD)


def new_shift(shift_BD: Tensor | None, x_BTD: Tensor) -> Tensor:
    """The last token, which the kernels have left where the shift was."""
    return shift_BD if runs_fused(shift_BD, x_BTD) else x_BTD[:, -1]


def masked(x_BTD: Tensor, mask_BT1: Tensor | None) -> Tensor:
    return x_BTD if mask_BT1 is None else x_BTD * mask_BT1


def token_shift(x_BTD: Tensor, shift_BD: Tensor | None) -> Tensor:
    """Each token's predecessor; the first token's is the state, or zero at the start of a sequence."""
    first = torch.zeros_like(x_BTD[:, :1]) if shift_BD is None else shift_BD[:, None]
    return first if x_BTD.shape[1] == 1 else torch.cat((first, x_BTD[:, :-1]), dim=1)
