"""Tiny random models and their tokenizer, built once a session: width 32, two layers, a vocabulary of 150."""

import os
import string
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # files that need no model do not wait for these
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SCRATCH = tempfile.TemporaryDirectory(prefix="trackio-", ignore_cleanup_errors=True)
os.environ["HF_HUB_OFFLINE"] = "1"  # before the first import of huggingface_hub, which reads it once
os.environ["TRACKIO_DIR"] = SCRATCH.name  # likewise of trackio, whose projects outlive the tests elsewhere
RAY = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
os.environ["RAY_TMPDIR"] = RAY.name  # a test that runs beside this one joins no cluster of this one

PAIRS = ("th", "he", "in", "er", "12", "34", ". ", "</", "ans")  # tokens of more than one character
WIDTH = 32
ATTENTION = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
RWKV = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "head_dim": 16,
    "decay_low_rank_dim": 8,
    "a_low_rank_dim": 8,
    "v_low_rank_dim": 8,
    "gate_low_rank_dim": 8,
}
SLIDING = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
GEOMETRY: dict[str, dict[str, Any]] = {
    "llama": {**ATTENTION, "tie_word_embeddings": False},
    "qwen2": {**ATTENTION, "tie_word_embeddings": True},
    "qwen3": {**ATTENTION, "tie_word_embeddings": False},
    "gemma": ATTENTION,
    "gemma2": {**ATTENTION, **SLIDING},
    "gemma3_text": {**ATTENTION, **SLIDING},
    "gpt2": {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "rwkv7": RWKV,
}


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """Printable characters and a few longer tokens; text goes in and comes out unchanged."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    special, characters = ["<pad>", "<end>"], list(string.printable)
    merges, pieces = [], []
    for word in PAIRS:
        for size in range(2, len(word) + 1):
            merges.append((word[: size - 1], word[size - 1]))
            pieces.append(word[:size])
    vocabulary = {token: index for index, token in enumerate([*special, *characters, *dict.fromkeys(pieces)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        chat_template="{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant] ",
        clean_up_tokenization_spaces=False,
    )


def build_model(architecture: str, spread: float = 0.3, **changes: Any) -> "PreTrainedModel":
    """Random weights that are large, norms and biases included, so that greedy answers vary and hold few near ties."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    import eggroll_rl.models.rwkv7  # noqa: F401  registers itself

    special = {"vocab_size": 150, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    config = AutoConfig.for_model(architecture, **{**GEOMETRY[architecture], **special, **changes})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        scaled_later = architecture.startswith("gemma") and "embed" in name  # by the square root of the width
        scale = 1 / 6 if scaled_later else 1 if parameter.ndim == 2 else 1 / 2
        parameter.add_(torch.randn_like(parameter), alpha=spread * scale)
    return model


@pytest.fixture(scope="session")
def tokenizer() -> "PreTrainedTokenizerFast":
    return build_tokenizer()


@pytest.fixture(scope="session")
def new_model() -> "Callable[..., PreTrainedModel]":
    """``new_model(architecture, spread of the weights, **changes of its config)``: the same weights each time."""
    return build_model


@pytest.fixture(scope="session")
def model_folder(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: "PreTrainedTokenizerFast"
) -> Callable[[str], Path]:
    """``model_folder(architecture)``: a Hugging Face folder, not to be written to."""

    @cache
    def folder(architecture: str) -> Path:
        path = tmp_path_factory.mktemp(architecture)
        build_model(architecture).save_pretrained(path)
        tokenizer.save_pretrained(path)
        return path

    return folder
