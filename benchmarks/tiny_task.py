"""A task that takes milliseconds a generation, and all that a run of it leaves, to be compared with another's.

A tiny random model learns to write high character codes.
"""

import json
import string
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from eggroll_rl.config import Weights
from eggroll_rl.es.hashing import tensors_hash
from eggroll_rl.models.rwkv7 import RWKV7Config, RWKV7ForCausalLM

PARTS = ("generation", "generate", "score", "update")
INCIDENTAL = (
    "seconds",
    *(f"seconds_{part}" for part in PARTS),
    "tokens_per_second",
    "output_dir",
    "batch_bytes",
    "crc32",
)
REWARD = """
def late(prompts, completions, **columns):
    return [sum(map(ord, text)) / (128 * max(1, len(text))) for text in completions]
"""
COPIES = ", average: 0.8, anchor: 0.01"  # of float weights, which int8 learns without
RECIPE = """
model: $folder/base
weights: $weights
engine: {name: $engine}
data: {name: $folder/train.jsonl, test_name: $folder/test.jsonl, prompt: "{text}", prompts: 2}
rewards: [{fn: "$folder/reward.py:late"}]
population: {size: 32, sigma: 0.05, final_sigma: 0.02, whitening: 0.1}
optimizer: {name: adam, lr: 0.01, schedule: cosine, warmup: 2$copies}
sampling: {max_new_tokens: 8}
evaluation: {n: 4, every: 7}
snapshots: {every: 5, keep: 2}
generations: 24
"""


def write_task(folder: Path, engine: str = "transformers", weights: Weights = "float") -> Path:
    """Write the model, data, reward and recipe of a task that takes milliseconds a generation; returns the recipe."""
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<end>", *string.printable])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")
    fast.save_pretrained(folder / "base")
    sizes: Any = {"vocab_size": len(vocabulary), "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
    sizes |= {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    torch.manual_seed(0)
    model: Any
    if engine == "rwkv":
        ranks: Any = dict.fromkeys(("decay_low_rank_dim", "a_low_rank_dim", "v_low_rank_dim", "gate_low_rank_dim"), 8)
        model = RWKV7ForCausalLM(RWKV7Config(**sizes, **ranks, head_dim=16, head_norm_eps=64e-5))
    else:
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model.save_pretrained(folder / "base")
    for name, words in {"train": ("one", "two", "three", "four"), "test": ("five", "six", "seven", "eight")}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": word}) + "\n" for word in words))
    (folder / "reward.py").write_text(REWARD)
    recipe = folder / "recipe.yaml"
    copies = COPIES if weights == "float" else ""
    values = {"folder": folder, "engine": engine, "weights": weights, "copies": copies}
    recipe.write_text(string.Template(RECIPE).substitute(values))
    return recipe


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run leaves, but for times, places and free memory: names, records, and hashes of tensors."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    left: dict[str, Any] = {
        "names": names,
        "recipe.yaml": _essential(yaml.safe_load((folder / "recipe.yaml").read_text())),
    }
    for name in ("metrics.jsonl", "samples.jsonl", "answers.jsonl", "journal.jsonl"):
        left[name] = [_essential(json.loads(line)) for line in (folder / name).read_text().splitlines()]
    for path in (*folder.glob("snapshots/*"), *folder.glob("model/*.safetensors")):
        left[str(path.relative_to(folder))] = tensors_hash(load_file(path))
    return left


def _essential(record: Any) -> Any:
    if isinstance(record, dict):
        return {key: _essential(value) for key, value in record.items() if key not in INCIDENTAL}
    return record
