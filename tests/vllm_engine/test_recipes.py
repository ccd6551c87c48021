"""Two generations of each large recipe, with a small random model of its architecture in the place of the weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from safetensors.torch import load_file

from eggroll_rl.config import load_recipe
from eggroll_rl.train import train

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

GEOMETRY = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 32}
SMALL = {
    "engine.vllm.kv_cache_gib": 0.5,
    "population.size": 8,
    "population.sigma": 0.1,  # random weights are large
    "data.prompts": 2,
    "sampling.max_new_tokens": 8,
    "evaluation.n": 4,
    "generations": 2,
}
DIGITS = """
def digits(prompts, completions, **columns):
    texts = [answer if isinstance(answer, str) else answer[-1]["content"] for answer in completions]
    return [float(sum(map(str.isdigit, text))) for text in texts]
"""


@pytest.mark.parametrize(
    ("name", "architecture"), [("countdown_qwen2.5_3b_vllm", "qwen2"), ("gsm8k_qwen3_4b_vllm", "qwen3")]
)
def test_a_large_recipe_trains(
    tmp_path: Path,
    new_model: "Callable[..., PreTrainedModel]",
    tokenizer: "PreTrainedTokenizerFast",
    name: str,
    architecture: str,
) -> None:
    base = tmp_path / "base"
    new_model(architecture, max_position_embeddings=2048, **GEOMETRY).save_pretrained(base)
    tokenizer.save_pretrained(base)
    changes = {**SMALL, "model": base, "output_dir": tmp_path / "run"}
    if load_recipe(name).data.name != "countdown":
        changes["data.name"] = tmp_path / "rows.jsonl"
        rows = [{"question": f"What is {n} plus {n}?", "answer": f"#### {2 * n}"} for n in range(256)]
        changes["data.name"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.py").write_text(DIGITS)  # random answers are never right: something must tell members apart
    rewards = [load_recipe(name).rewards[0].fn, f"{tmp_path / 'mine.py'}:digits"]
    changes["rewards"] = json.dumps([{"fn": fn} for fn in rewards])
    recipe = load_recipe(name, [f"{key}={value}" for key, value in changes.items()])
    run = train(recipe)
    records = run.metrics()
    generations = [record for record in records if "reward_mean" in record]
    assert len(generations) == 2
    assert all(0 < record["tokens"] <= 8 * 2 * 8 for record in generations)
    assert all(record["reward_std"] > 0 and record["update_rms"] > 0 for record in generations)
    assert all(set(record["rewards"]) == {fn.rpartition(":")[2] for fn in rewards} for record in generations)
    assert not any(sum(record["reward_failures"].values()) for record in generations)
    assert [record["n"] for record in records if "accuracy" in record] == [4, 4]
    before, after = load_file(base / "model.safetensors"), load_file(run.model / "model.safetensors")
    assert before.keys() == after.keys()
