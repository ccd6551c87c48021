"""RWKV-7 "Goose" (x070) as a model of vLLM: continuous batches, prompts in chunks, tensor parallel over heads.

vLLM keeps a sequence's state in one block of its cache, as for Mamba: per layer the last input of both mixers and the
WKV matrix, fp32. The tokens of a step lie one after the other, without padding: first one of each sequence that is
decoding, then the prompts. All linear layers take adapters.

Shapes: M tokens of the step, B sequences, T tokens of the longest prompt, D width, H heads of this rank, K head size,
E = H*K this rank's part of the width.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vllm.config import VllmConfig, get_current_vllm_config
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.linear import ColumnParallelLinear, ReplicatedLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.weight_utils import sharded_weight_loader
from vllm.model_executor.models.interfaces import HasInnerState, IsAttentionFree, SupportsLoRA
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, maybe_prefix
from vllm.model_executor.utils import set_weight_attrs
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum

from eggroll_rl.models.rwkv7 import RWKV7Config, wkv7
from eggroll_rl.models.rwkv7.layers import DECAY

UNUSED = ("model.layers.0.attn.v0", "model.layers.0.attn.v1", "model.layers.0.attn.v2")  # which nothing reads
STATE_DTYPES = (torch.float32,) * 3


class Sequences(NamedTuple):
    """The sequences of a step, and where their tokens lie.

    Attributes:
        block_B: the block of the state cache that holds the state of each.
        first_B, last_B: position of each one's first and last token in the step.
        is_new_B: it has no state yet.
        decoding: how many have one token; they come first.
        token_BT: positions of the prompts' tokens, [B - decoding, T]; arbitrary past a prompt's end.
        is_token_BT: whether a position is a token of its prompt.
        tokens: M.
    """

    block_B: Tensor
    first_B: Tensor
    last_B: Tensor
    is_new_B: Tensor
    decoding: int
    token_BT: Tensor
    is_token_BT: Tensor
    tokens: int

    @classmethod
    def of(cls, metadata: Any) -> "Sequences":
        """From vLLM's metadata of linear attention."""
        count = metadata.num_decodes + metadata.num_prefills
        starts = metadata.query_start_loc[: count + 1].long()
        first_B, length_B = starts[:-1], starts.diff()
        prompt_B = length_B[metadata.num_decodes :]
        offset_T = torch.arange(int(prompt_B.max()) if metadata.num_prefills else 0, device=starts.device)
        is_token_BT = offset_T < prompt_B[:, None]
        return cls(
            metadata.state_indices_tensor[:count].long(),
            first_B,
            starts[1:] - 1,
            metadata.seq_lens[:count] == length_B,
            metadata.num_decodes,
            torch.where(is_token_BT, first_B[metadata.num_decodes :, None] + offset_T, 0),
            is_token_BT,
            metadata.num_decode_tokens + metadata.num_prefill_tokens,
        )

    @classmethod
    def one(cls, tokens: int, device: torch.device) -> "Sequences":
        """A single prompt of so many tokens, whose state is in block 0."""
        zero_B, position_BT = torch.zeros(1, dtype=torch.long, device=device), torch.arange(tokens, device=device)[None]
        is_new_B, is_token_BT = torch.ones_like(zero_B).bool(), torch.ones_like(position_BT).bool()
        return cls(zero_B, zero_B, zero_B + tokens - 1, is_new_B, 0, position_BT, is_token_BT, tokens)

    def previous(self, x_MD: Tensor, last_input: Tensor) -> Tensor:
        """The input before each token, [M, D]; each sequence's last input is written into the cache [blocks, D]."""
        before_BD = last_input[self.block_B].to(x_MD.dtype)
        before_BD[self.is_new_B] = 0
        last_input[self.block_B] = x_MD[self.last_B].to(last_input.dtype)
        previous_MD = x_MD.roll(1, dims=0)
        previous_MD[self.first_B] = before_BD
        return previous_MD

    def recur(self, state: Tensor, *x_MHK: Tensor) -> Tensor:
        """``wkv7`` of each sequence from its state in the cache [blocks, H, K, K]; returns y [M, H, K]."""
        state_BHKK = state[self.block_B]
        state_BHKK[self.is_new_B] = 0
        y_MHK = torch.empty_like(x_MHK[0], dtype=torch.float32)
        n = self.decoding
        if n:
            r, log_decay, k, v, a, b = (x[:n, None] for x in x_MHK)
            y, state_BHKK[:n] = wkv7(r, log_decay, k, v, a, b, state_BHKK[:n])
            y_MHK[:n] = y[:, 0]
        if self.token_BT.numel():
            r, log_decay, k, v, a, b = (x[self.token_BT] for x in x_MHK)
            mask = self.is_token_BT[..., None, None]  # past a prompt's end, nothing changes the state
            y, state_BHKK[n:] = wkv7(r, log_decay * mask, k * mask, v, a * mask, b * mask, state_BHKK[n:])
            y_MHK[self.token_BT[self.is_token_BT]] = y[self.is_token_BT]
        state[self.block_B] = state_BHKK
        return y_MHK


class LoRA(nn.Module):
    """Two thin matrices with an activation between them; the checkpoints name them ``lora.0`` and ``lora.2``, which
    vLLM's adapters would take for layers of the model."""

    def __init__(self, width: int, rank: int, activation: nn.Module, quant: Any, prefix: str, bias: bool = True):
        super().__init__()
        self.down = ReplicatedLinear(width, rank, bias=False, quant_config=quant, prefix=f"{prefix}.down")
        self.up = ColumnParallelLinear(rank, width, bias=bias, quant_config=quant, prefix=f"{prefix}.up")
        self.activation = activation

    def forward(self, x_MD: Tensor) -> Tensor:
        return self.up(self.activation(self.down(x_MD)[0]))[0]


def sharded(*shape: int) -> nn.Parameter:
    """A parameter of which each rank has its part of the first dimension."""
    parameter = nn.Parameter(torch.zeros(shape), requires_grad=False)
    set_weight_attrs(parameter, {"weight_loader": sharded_weight_loader(0)})
    return parameter


class HeadNorm(nn.Module):
    """Group norm over each head of this rank."""

    def __init__(self, heads: int, width: int, eps: float):
        super().__init__()
        self.heads, self.eps = heads, eps
        self.weight, self.bias = sharded(width), sharded(width)

    def forward(self, y_ME: Tensor) -> Tensor:
        return F.group_norm(y_ME, self.heads, self.weight, self.bias, self.eps)


class TimeMix(nn.Module):
    """The recurrent mixer, this rank's heads of it."""

    def __init__(self, config: RWKV7Config, layer: int, quant: Any, prefix: str):
        super().__init__()
        ranks, width = get_tensor_model_parallel_world_size(), config.hidden_size
        self.heads = config.num_heads // ranks
        own = width // ranks
        for name in "rwkvag":
            setattr(self, f"x_{name}", nn.Parameter(torch.zeros(1, 1, width), requires_grad=False))
        self.k_k, self.k_a, self.r_k = sharded(own), sharded(own), sharded(self.heads, config.head_dim)
        self.r_proj, self.k_proj, self.v_proj = (
            ColumnParallelLinear(width, width, bias=False, quant_config=quant, prefix=f"{prefix}.{name}_proj")
            for name in "rkv"
        )
        self.o_proj = RowParallelLinear(width, width, bias=False, quant_config=quant, prefix=f"{prefix}.o_proj")
        self.w_lora = LoRA(width, config.decay_low_rank_dim, nn.Tanh(), quant, f"{prefix}.w_lora")
        self.a_lora = LoRA(width, config.a_low_rank_dim, nn.Identity(), quant, f"{prefix}.a_lora")
        self.g_lora = LoRA(width, config.gate_low_rank_dim, nn.Sigmoid(), quant, f"{prefix}.g_lora", bias=False)
        if layer:
            self.v_lora = LoRA(width, config.v_low_rank_dim, nn.Identity(), quant, f"{prefix}.v_lora")
        self.g_norm = HeadNorm(self.heads, own, config.head_norm_eps)

    def forward(
        self, x_MD: Tensor, sequences: Sequences, last_input: Tensor, state: Tensor, v_first_ME: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        heads = (len(x_MD), self.heads, -1)
        dx_MD = sequences.previous(x_MD, last_input) - x_MD
        x_r, x_w, x_k, x_v, x_a, x_g = (torch.addcmul(x_MD, dx_MD, getattr(self, f"x_{name}")[0]) for name in "rwkvag")
        r, k, v = self.r_proj(x_r)[0], self.k_proj(x_k)[0], self.v_proj(x_v)[0]
        log_decay = DECAY * torch.sigmoid(self.w_lora(x_w).float())
        rate, gate = torch.sigmoid(self.a_lora(x_a)), self.g_lora(x_g)
        kk = F.normalize((k * self.k_k).view(heads), dim=-1)
        k = k * (1 + (rate - 1) * self.k_a)
        if v_first_ME is None:
            v_first_ME = v
        else:
            v = v + (v_first_ME - v) * torch.sigmoid(self.v_lora(x_v))
        r, k, v = r.view(heads), k.view(heads), v.view(heads)
        y = sequences.recur(state, r, log_decay.view(heads), k, v, -kk, kk * rate.view(heads))
        y_ME = self.g_norm(y.to(x_MD.dtype).flatten(1))
        y_ME = y_ME + ((r * k * self.r_k).sum(-1, keepdim=True) * v).flatten(1)
        return self.o_proj(y_ME * gate)[0], v_first_ME


class ChannelMix(nn.Module):
    """The feed-forward mixer: squared ReLU over a token-shifted input."""

    def __init__(self, config: RWKV7Config, quant: Any, prefix: str):
        super().__init__()
        self.x_k = nn.Parameter(torch.zeros(config.hidden_size), requires_grad=False)
        width, inner = config.hidden_size, config.intermediate_size
        self.key = ColumnParallelLinear(width, inner, bias=False, quant_config=quant, prefix=f"{prefix}.key")
        self.value = RowParallelLinear(inner, width, bias=False, quant_config=quant, prefix=f"{prefix}.value")

    def forward(self, x_MD: Tensor, sequences: Sequences, last_input: Tensor) -> Tensor:
        mixed_MD = torch.addcmul(x_MD, sequences.previous(x_MD, last_input) - x_MD, self.x_k)
        return self.value(torch.relu(self.key(mixed_MD)[0]).square())[0]


class Block(nn.Module, MambaBase):
    """Both mixers, each behind its norm, and their state; the first block also normalises the embedding."""

    def __init__(self, config: RWKV7Config, layer: int, quant: Any, prefix: str):
        super().__init__()
        width, eps = config.hidden_size, config.norm_eps
        self.layer, self.state_shapes = layer, state_shapes(config)
        self.kv_cache = ()  # vLLM binds it: the two last inputs and the state of every block
        if layer == 0:
            self.pre_norm = nn.LayerNorm(width, eps=eps)
        self.attn_norm = nn.LayerNorm(width, eps=eps)
        self.attn = TimeMix(config, layer, quant, f"{prefix}.attn")
        self.ffn_norm = nn.LayerNorm(width, eps=eps)
        self.ffn = ChannelMix(config, quant, f"{prefix}.ffn")
        get_current_vllm_config().compilation_config.static_forward_context[prefix] = self

    def forward(
        self, x_MD: Tensor, sequences: Sequences, cache: Sequence[Tensor], v_first_ME: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        last_att, last_ffn, state = cache
        if self.layer == 0:
            x_MD = self.pre_norm(x_MD)
        out_MD, v_first_ME = self.attn(self.attn_norm(x_MD), sequences, last_att, state, v_first_ME)
        x_MD = x_MD + out_MD
        return x_MD + self.ffn(self.ffn_norm(x_MD), sequences, last_ffn), v_first_ME

    @property
    def mamba_type(self) -> MambaAttentionBackendEnum:
        return MambaAttentionBackendEnum.LINEAR

    def get_state_shape(self) -> tuple[tuple[int, ...], ...]:
        return self.state_shapes

    def get_state_dtype(self) -> tuple[torch.dtype, ...]:
        return STATE_DTYPES


class RWKV7Model(nn.Module):
    """Embedding, blocks and the last norm."""

    def __init__(self, config: RWKV7Config, quant: Any, prefix: str):
        super().__init__()
        self.prefix = prefix
        self.embeddings = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        layers = range(config.num_hidden_layers)
        self.layers: Any = nn.ModuleList(Block(config, layer, quant, f"{prefix}.layers.{layer}") for layer in layers)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)

    def forward(self, input_ids: Tensor | None, inputs_embeds: Tensor | None = None) -> Tensor:
        """The last hidden state of each token of the step, [M, D]; zeros in rows that pad the step."""
        x_MD = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        metadata: Any = get_forward_context().attn_metadata
        if metadata is None:  # vLLM runs the model once to measure its memory
            sequences = Sequences.one(len(x_MD), x_MD.device)
            caches = [[x_MD.new_zeros(1, *shape).float() for shape in block.state_shapes] for block in self.layers]
        else:
            sequences = Sequences.of(metadata[f"{self.prefix}.layers.0"])
            caches = [block.kv_cache for block in self.layers]
        padded, v_first_ME = len(x_MD), None
        x_MD = x_MD[: sequences.tokens]
        for block, cache in zip(self.layers, caches, strict=True):
            x_MD, v_first_ME = block(x_MD, sequences, cache, v_first_ME)
        return F.pad(self.norm(x_MD), (0, 0, 0, padded - len(x_MD)))


class RWKV7ForCausalLM(nn.Module, HasInnerState, IsAttentionFree, SupportsLoRA):
    """RWKV-7 with its language-model head, as vLLM calls its models."""

    packed_modules_mapping: dict[str, list[str]] = {}  # noqa: RUF012  an attribute of vLLM's protocol
    hf_to_vllm_mapper = WeightsMapper(orig_to_new_substr={".lora.0.": ".down.", ".lora.2.": ".up."})

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        self.config: Any = vllm_config.model_config.hf_config
        self.model = RWKV7Model(self.config, vllm_config.quant_config, maybe_prefix(prefix, "model"))
        width, vocabulary = self.config.hidden_size, self.config.vocab_size
        self.lm_head = ParallelLMHead(vocabulary, width, prefix=maybe_prefix(prefix, "lm_head"))
        self.logits_processor = LogitsProcessor(vocabulary)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return self.model.embeddings(input_ids)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        return self.model(input_ids, inputs_embeds)

    def compute_logits(self, hidden_MD: Tensor) -> Tensor | None:
        return self.logits_processor(self.lm_head, hidden_MD)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        used = ((name, tensor) for name, tensor in weights if name not in UNUSED)
        return AutoWeightsLoader(self).load_weights(used, mapper=self.hf_to_vllm_mapper)

    @classmethod
    def get_mamba_state_dtype_from_config(cls, vllm_config: VllmConfig) -> tuple[torch.dtype, ...]:
        return STATE_DTYPES

    @classmethod
    def get_mamba_state_shape_from_config(cls, vllm_config: VllmConfig) -> tuple[tuple[int, ...], ...]:
        return state_shapes(vllm_config.model_config.hf_config, vllm_config.parallel_config.tensor_parallel_size)


def state_shapes(config: Any, ranks: int | None = None) -> tuple[tuple[int, ...], ...]:
    """Shapes of a sequence's state in one layer: last input of the time mix, last input of the channel mix, and the WKV
    matrices of a rank's heads."""
    heads = config.num_heads // (ranks or get_tensor_model_parallel_world_size())
    return (config.hidden_size,), (config.hidden_size,), (heads, config.head_dim, config.head_dim)
