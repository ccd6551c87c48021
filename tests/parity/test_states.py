"""Rows of any kind of state: some end early and leave, whatever the prompts' lengths; what each says stays the same."""

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from eggroll_rl.config import ParametersConfig, PopulationConfig, SamplingConfig
from eggroll_rl.engines.local.eager import EagerDecoder
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.es.layers import PopulationLayers, materialized_state
from eggroll_rl.es.population import Population

SEED, SIGMA, TOKENS = 3, 0.05, 12
ENDS = [1, *range(2, 150, 6)]  # the tokenizer's, and so many others that answers end at all lengths
CLOSE = 1e-3  # two logits this near may change places by rounding
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
KINDS: dict[str, dict[str, Any]] = {
    "qwen3_5_text": {**SIZES, "head_dim": 8, **DELTA},
    "lfm2": {**SIZES, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "bamba": {**SIZES, **MAMBA, "attn_layer_indices": [1]},
    "falcon_h1": {**SIZES, "head_dim": 8, **MAMBA, "mamba_d_ssm": 64},
    "granitemoehybrid": {
        **SIZES, **MAMBA, "num_local_experts": 0, "shared_intermediate_size": 48, "layer_types": ["mamba", "attention"]
    },
    "jamba": {
        **SIZES, "num_experts": 1, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4,
        "mamba_dt_rank": 4,
    },
    "minimax": {**SIZES, "head_dim": 8, **EXPERTS, "layer_types": ["linear_attention", "full_attention"]},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "time_step_rank": 4},
    "falcon_mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "time_step_rank": 4},
    "mamba2": {
        "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1,
        "expand": 2, "chunk_size": 16,
    },
    "rwkv": {
        "hidden_size": 32, "attention_hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "context_length": 256,
    },
    "recurrent_gemma": {
        **SIZES, "lru_width": 32, "attention_window_size": 8, "block_types": ["recurrent", "attention"]
    },
    "openai-gpt": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "bart": {
        "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48,
        "max_position_embeddings": 256,
    },
    "gemma3n_text": {
        **SIZES, "head_dim": 8, "sliding_window": 8, "vocab_size_per_layer_input": 150,
        "hidden_size_per_layer_input": 8, "layer_types": ["sliding_attention", "full_attention"],
        "num_kv_shared_layers": 0, "laurel_rank": 4, "activation_sparsity_pattern": [0.0, 0.0],
    },
}  # fmt: skip
READ_AGAIN = {"rwkv", "recurrent_gemma", "openai-gpt"}  # kinds whose state nobody can choose rows from
CALLED = (
    "*_proj.weight",
    "*fc1.weight",
    "*fc2.weight",
    "*key.weight",
    "*value.weight",
    "*dense*.weight",
    "*c_*.weight",
)
READ_PAST = ("*feed_forward.value*", "*dt_proj*", "*x_proj*", "*lm_head*", "*embed*", "*per_layer*", "*experts*")


@cache
def model_of(kind: str) -> PreTrainedModel:
    special = {"vocab_size": 150, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    config = AutoConfig.for_model(kind, **{**KINDS[kind], **special})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float().eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        scale = 0.1 if name.endswith(("A_log", "dt_bias", "conv1d.weight", ".D")) else 1 if parameter.ndim > 1 else 0.5
        parameter.add_(torch.randn_like(parameter), alpha=0.3 * scale)
    model.generation_config.eos_token_id = ENDS
    return model


@cache
def engine_of(kind: str, tokenizer: PreTrainedTokenizerFast) -> LocalEngine:
    parameters = ParametersConfig(frozen=READ_PAST, lowrank=CALLED)
    population = PopulationConfig(size=4, sigma=SIGMA)
    return LocalEngine(model_of(kind), tokenizer, seed=SEED, population=population, parameters=parameters)


@torch.inference_mode()
def alone(model: PreTrainedModel, ids: Sequence[int], state: dict[str, torch.Tensor]) -> tuple[list[int], list[float]]:
    """One member's greedy answer to one prompt, everything read again for each token; and how clear each token was."""
    made: list[int] = []
    clear = []
    while len(made) < TOKENS and not (made and made[-1] in ENDS):
        row = torch.tensor([[*ids, *made]])
        logits = torch.func.functional_call(model, state, (row,), {"use_cache": False}).logits[0, -1]
        first, second = logits.topk(2).values.tolist()
        clear.append(first - second)
        made.append(int(logits.argmax()))
    return [token for token in made if token not in ENDS], clear


@pytest.mark.parametrize("kind", KINDS)
@given(prompts=st.lists(st.text("abc 123", min_size=1, max_size=9), min_size=1, max_size=4), rows=st.integers(1, 20))
@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_that_end_early_change_nobodys_answer(
    kind: str, prompts: list[str], rows: int, tokenizer: PreTrainedTokenizerFast
) -> None:
    engine, model = engine_of(kind, tokenizer), model_of(kind)
    assert engine.evolved
    population = Population(SEED, 0, PopulationConfig(size=4, sigma=SIGMA))
    sampling = SamplingConfig(max_new_tokens=TOKENS)
    engine.max_rows = rows
    answers = engine.generate(prompts, sampling, population)
    weights = dict(model.named_parameters())
    for member, row in enumerate(answers):
        state = materialized_state(weights, engine.evolved, engine.noise, population, member)
        for prompt, answer in zip(prompts, row, strict=True):
            expected, clear = alone(model, tokenizer(prompt)["input_ids"], state)
            given = list(answer.token_ids)
            if given != expected:  # only where two tokens were as good as each other
                pairs = itertools.zip_longest(given, expected)
                assert clear[next(place for place, (a, b) in enumerate(pairs) if a != b)] < CLOSE


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_is_used_where_its_rows_can_be_chosen(kind: str) -> None:
    model = model_of(kind)
    assert (EagerDecoder(model, PopulationLayers(model, [])).name is None) == (kind in READ_AGAIN)
