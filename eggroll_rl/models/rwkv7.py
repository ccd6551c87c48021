"""RWKV-7 "Goose" (x070) as a Hugging Face model: batched, differentiable, with recurrent state and left padding.

Parameter names are those of the published Hugging Face checkpoints (``model.layers.0.attn.r_proj.weight``). The
sequence form works in chunks of 16 tokens with matrix products (arXiv 2503.14456 section 3; the WY form of the delta
rule), so that prompts and training take a handful of passes; one token takes the recurrence itself.

Shapes: B batch, T tokens, D width, H heads, K head size (keys and values alike), C tokens of a chunk.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from eggroll_rl.es import kernels

CHUNK = 16
STATE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"  # transformers' name
DECAY = -math.exp(-0.5)  # log of the strongest decay per token


class RWKV7Config(PretrainedConfig):
    """Geometry of an RWKV-7; the ``*_low_rank_dim`` are the ranks of the decay, in-context rate, value and gate LoRAs.

    ``head_norm_eps`` is the epsilon of the norm over heads: ``head_dim * norm_eps`` unless given (BlinkDL's code has
    64e-5). ``unused_v_lora``: the first layer carries a value LoRA that nothing reads, as in BlinkDL's files.
    ``pth_order``: the tensors' names in the file that the model comes from, where their order is not the usual one.
    """

    model_type = "rwkv7"
    keys_to_ignore_at_inference = ("cache", "past_key_values")

    def __init__(
        self,
        vocab_size: int = 65536,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        head_dim: int = 64,
        intermediate_size: int | None = None,
        decay_low_rank_dim: int = 64,
        a_low_rank_dim: int = 64,
        v_low_rank_dim: int = 32,
        gate_low_rank_dim: int = 128,
        norm_eps: float = 1e-5,
        head_norm_eps: float | None = None,
        use_cache: bool = True,
        unused_v_lora: bool = False,
        pth_order: list[str] | None = None,
        **kwargs: Any,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.head_dim = head_dim
        self.num_heads = hidden_size // head_dim
        self.intermediate_size = intermediate_size or 4 * hidden_size
        self.decay_low_rank_dim = decay_low_rank_dim
        self.a_low_rank_dim = a_low_rank_dim
        self.v_low_rank_dim = v_low_rank_dim
        self.gate_low_rank_dim = gate_low_rank_dim
        self.norm_eps = norm_eps
        self.head_norm_eps = head_norm_eps or head_dim * norm_eps
        self.use_cache = use_cache
        self.unused_v_lora = unused_v_lora
        self.pth_order = pth_order
        for derived in ("num_heads", "num_attention_heads"):
            kwargs.pop(derived, None)
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)


class RWKV7State:
    """Recurrent state: for each layer the last input of both mixers [B, D] and the WKV matrix [B, H, K, K]
    (fp32; rows are keys, columns values)."""

    is_compileable = False

    def __init__(self, layers: int):
        self.att_shift_BD: list[Tensor | None] = [None] * layers
        self.ffn_shift_BD: list[Tensor | None] = [None] * layers
        self.wkv_BHKK: list[Tensor | None] = [None] * layers
        self.tokens = 0

    def get_seq_length(self, layer: int = 0) -> int:
        return self.tokens

    def select_rows(self, rows: Tensor) -> None:
        """Keep (and reorder to) the given rows of the batch."""
        for layers in (self.att_shift_BD, self.ffn_shift_BD, self.wkv_BHKK):
            layers[:] = [None if tensor is None else tensor.index_select(0, rows) for tensor in layers]

    reorder_cache = batch_select_indices = select_rows

    def reset_rows(self, rows: Tensor) -> None:
        """Put the given rows back to the start of a sequence."""
        if len(rows):
            for tensor in (*self.att_shift_BD, *self.ffn_shift_BD, *self.wkv_BHKK):
                if tensor is not None:
                    tensor[rows] = 0


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


class ChannelMix(nn.Module):
    """The feed-forward mixer: squared ReLU over a token-shifted input."""

    def __init__(self, config: RWKV7Config):
        super().__init__()
        self.x_k = nn.Parameter(torch.zeros(config.hidden_size))
        self.key = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.value = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor, shift_BD: Tensor | None) -> Tensor:
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
        state.att_shift_BD[layer] = h_BTD[:, -1]
        x_BTD = x_BTD + out
        h_BTD = masked(self.ffn_norm(x_BTD), mask_BT1)
        x_BTD = x_BTD + self.ffn(h_BTD, state.ffn_shift_BD[layer])
        state.ffn_shift_BD[layer] = h_BTD[:, -1]
        return x_BTD, v_first_BTD


def masked(x_BTD: Tensor, mask_BT1: Tensor | None) -> Tensor:
    return x_BTD if mask_BT1 is None else x_BTD * mask_BT1


def token_shift(x_BTD: Tensor, shift_BD: Tensor | None) -> Tensor:
    """Each token's predecessor; the first token's is the state, or zero at the start of a sequence."""
    first = torch.zeros_like(x_BTD[:, :1]) if shift_BD is None else shift_BD[:, None]
    return first if x_BTD.shape[1] == 1 else torch.cat((first, x_BTD[:, :-1]), dim=1)


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
    if kernels.serve(r.device) and not torch.is_grad_enabled():
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


class RWKV7PreTrainedModel(PreTrainedModel):
    config_class = RWKV7Config
    base_model_prefix = "model"
    _no_split_modules = ["Block"]  # noqa: RUF012  an attribute of the base class
    _is_stateful = True

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _init_weights(self, module: nn.Module) -> None:
        """Start values after BlinkDL's: mixing and decay spread over channels and depth, zero output matrices."""
        if isinstance(module, nn.Linear):
            nn.init.orthogonal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, TimeMix):
            self._init_time_mix(module)
        elif isinstance(module, Block):
            channel = torch.linspace(0, 1, self.config.hidden_size)
            module.ffn.x_k.data.copy_(1 - channel ** (1 - module.layer / self.config.num_hidden_layers) ** 4)
            nn.init.zeros_(module.ffn.value.weight)

    def _init_time_mix(self, module: TimeMix) -> None:
        layers = self.config.num_hidden_layers
        depth = module.layer / max(layers - 1, 1)
        remaining = 1 - module.layer / layers
        channel = torch.linspace(0, 1, self.config.hidden_size)
        powers = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}
        for name, power in powers.items():
            getattr(module, f"x_{name}").data.copy_(1 - channel ** (power * remaining))
        module.w_lora.up.bias.data.copy_(-6 + 6 * channel ** (0.85 + depth**0.5) + 0.5)
        module.k_k.data.fill_(0.85)
        module.k_a.data.fill_(1.0)
        module.r_k.data.fill_(-0.04)
        for lora in (module.w_lora, module.a_lora, module.g_lora, getattr(module, "v_lora", None)):
            if lora is not None:
                nn.init.zeros_(lora.down.weight)
                nn.init.orthogonal_(lora.up.weight, gain=0.1)
        if module.layer > 0:
            module.v_lora.up.bias.data.fill_(0.73)
        nn.init.zeros_(module.o_proj.weight)


class RWKV7Model(RWKV7PreTrainedModel):
    """Embedding, blocks and the last norm."""

    def __init__(self, config: RWKV7Config):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings = cast(nn.Embedding, value)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache: RWKV7State | None = None,
        use_cache: bool | None = None,
        past_key_values: RWKV7State | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run tokens [B, T] (left-padded where the mask [B, >= T] is 0) through the model, from the given state on;
        transformers names it ``cache``, or ``past_key_values``."""
        x_BTD = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        state = cache or past_key_values or RWKV7State(len(self.layers))
        mask_BT1 = None
        if attention_mask is not None and x_BTD.shape[1] > 1:
            mask_BT1 = attention_mask[:, -x_BTD.shape[1] :, None].to(x_BTD.dtype)
        v_first = None
        for block in self.layers:
            x_BTD, v_first = block(x_BTD, state, v_first, mask_BT1)
        state.tokens += x_BTD.shape[1]
        keep = self.config.use_cache if use_cache is None else use_cache
        kept: Any = {STATE: state if keep else None}  # no transformers Cache
        return BaseModelOutputWithPast(last_hidden_state=self.norm(x_BTD), **kept)


class RWKV7ForCausalLM(RWKV7PreTrainedModel, GenerationMixin):
    """RWKV-7 with its language-model head."""

    def __init__(self, config: RWKV7Config):
        super().__init__(config)
        self.model = RWKV7Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache: RWKV7State | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        past_key_values: RWKV7State | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As ``RWKV7Model``, with logits [B, T, V] of the last ``logits_to_keep`` tokens (0: all), and a loss."""
        outputs = self.model(input_ids, attention_mask, inputs_embeds, cache or past_key_values, use_cache)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        state: Any = {STATE: outputs.get(STATE)}
        return CausalLMOutputWithPast(loss=loss, logits=logits, **state)

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        state = kwargs.get(STATE)
        return {
            "input_ids": input_ids if state is None else input_ids[:, state.tokens :],
            "attention_mask": attention_mask,
            STATE: state,
            "use_cache": kwargs.get("use_cache", True),
        }


AutoConfig.register("rwkv7", RWKV7Config)
AutoModel.register(RWKV7Config, RWKV7Model)
AutoModelForCausalLM.register(RWKV7Config, RWKV7ForCausalLM)
