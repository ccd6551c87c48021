"""Every causal architecture that the installed transformers knows, built small: width 32, two layers of each kind."""

from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

KINDS = sorted(
    {
        config.model_type
        for config in MODEL_FOR_CAUSAL_LM_MAPPING
        if config.model_type in CONFIG_MAPPING and config.__module__.startswith("transformers.")  # not ours
    }
)
SPECIAL = {"vocab_size": 150, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embedding_size", "word_embed_proj_dim", "lru_width"), 32),
    **dict.fromkeys(("attention_hidden_size", "dim_model", "emb_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "dff", "decoder_ffn_dim", "encoder_ffn_dim", "dim_ff"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 24),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_head", "n_heads", "attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_key_value_heads", "num_kv_heads", "moe_topk"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "context_length"), 256),
    "head_dim": 8,
    "global_head_dim": 8,
    "intermediate_size_mlp": 48,
    "sliding_window": 8,
    "local_attention": 8,
    "window_size": 8,
    "attention_window_size": 8,
    "rotary_dim": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "state_size": 8,
    "time_step_rank": 4,
    "mamba_d_state": 8,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
    "mamba_dt_rank": 4,
    "mamba_d_ssm": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "vocab_size_per_layer_input": 150,
    "hidden_size_per_layer_input": 8,
    "is_decoder": True,
}
FIXED: dict[str, dict[str, Any]] = {  # what does not follow from the names
    "bamba": {"attn_layer_indices": [1]},
    "dots1": {"n_shared_experts": 1},
    "falcon": {"new_decoder_architecture": True},
    "gemma3n_text": {"num_kv_shared_layers": 0, "laurel_rank": 4, "activation_sparsity_pattern": [0.0, 0.0]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {
        "num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 1,
        "expert_layer_period": 2, "expert_layer_offset": 1, "use_mamba_kernels": False,
    },
    "jetmoe": {"kv_channels": 8},
    "kimi_linear": {"head_dim": None},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1, "expand": 2, "chunk_size": 16},
    "minimax": {"num_local_experts": 2, "num_experts_per_tok": 1, "block_size": 16},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
}  # fmt: skip


LARGEST = 1_000_000  # parameters of what is small
VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
BESIDE: dict[str, dict[str, Any]] = {"gemma3": {"vision_config": VISION, "mm_tokens_per_image": 4}}  # language models


def small_config(kind: str) -> PretrainedConfig:
    """The configuration of a small model; of one with other senses, its language part is small."""
    default = CONFIG_MAPPING[kind]()
    text = default.get_text_config(decoder=True)
    part = next((name for name in default.sub_configs if getattr(default, name, None) is text), None)
    if part is None:
        return CONFIG_MAPPING[kind](**_small(kind, default))
    values = {name: value for name, value in SPECIAL.items() if hasattr(default, name) and name != "vocab_size"}
    return CONFIG_MAPPING[kind](**{part: _small(text.model_type, text), **values, **BESIDE.get(kind, {})})


def cannot_be_small(kind: str) -> str:
    """Why there is no small model of a kind; empty if there is one."""
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(small_config(kind))
    except (ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError, StrictDataclassError) as error:
        return f"{type(error).__name__}: its sizes depend on each other, or a package is missing"
    size = sum(parameter.numel() for parameter in model.parameters())
    if size > LARGEST:
        return f"{size:,} parameters at least"
    try:
        small_model(kind)(input_ids=torch.tensor([[3, 4, 5]]), use_cache=False)
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__} when it runs: its sizes depend on each other"
    return ""


def small_model(kind: str) -> PreTrainedModel:
    """Random weights, large enough that greedy answers vary."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small_config(kind)).float().eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            spread = 0.3 if parameter.ndim > 1 else 0.15
            if name.endswith(("A_log", "dt_bias", "conv1d.weight", ".D")) or "embed" in name:
                spread = 0.05
            parameter.add_(torch.randn_like(parameter), alpha=spread)
    return model


def _small(kind: str, config: PretrainedConfig) -> dict[str, Any]:
    has = config.to_dict() | dict.fromkeys(config.attribute_map)
    values = {name: value for name, value in {**SPECIAL, **SIZES}.items() if name in has}
    if "kv_lora_rank" in has:  # latent attention, whose head size follows from its parts
        values.pop("head_dim", None)
        values |= {name: 4 for name in ("num_key_value_heads",) if name in has}
    for name in ("layer_types", "mlp_layer_types", "layers_block_type"):
        if isinstance(has.get(name), list):
            kinds = list(dict.fromkeys(has[name]))
            values["num_hidden_layers"] = max(2, len(kinds))
            values[name] = (kinds * 2)[: values["num_hidden_layers"]]
    return values | FIXED.get(kind, {})
