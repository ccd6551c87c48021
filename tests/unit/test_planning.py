"""The plan's arithmetic, against the model, the noise and the tokenizer themselves; no weights are read for it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from eggroll_rl.config import Recipe
from eggroll_rl.data.dataset import load_data
from eggroll_rl.es.noise import Noise
from eggroll_rl.es.parameters import select
from eggroll_rl.es.population import Population
from eggroll_rl.es.tensor_file import TensorFile, write_hashed
from eggroll_rl.es.update import GradientLearner, Update
from eggroll_rl.models.blueprint import inspect
from eggroll_rl.models.int8 import to_int8
from eggroll_rl.planning.memory import plan
from eggroll_rl.system.errors import UsageError

ModelFolder = Callable[[str], Path]
FREE = 2**30


@pytest.fixture(autouse=True)
def no_weights_and_a_gibibyte(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    monkeypatch.setattr("eggroll_rl.planning.memory.free_bytes", lambda device: FREE)


def recipe_of(folder: Path, **changes: Any) -> Recipe:
    small = {
        "model": str(folder),
        "rewards": [{"fn": "eggroll_rl.rewards.countdown:countdown"}],
        "population": {"size": 16, "rank": 2},
        "data": {"prompts": 4},
        "sampling": {"max_new_tokens": 30},
        "output_dir": "runs/planned",
    }
    return Recipe.model_validate(small | changes)


def lines(folder: Path, **changes: Any) -> dict[str, str]:
    return dict(plan(recipe_of(folder, **changes)))


def size_of(text: str, what: str) -> float:
    """Bytes of one part of the memory line."""
    found = re.search(rf"{what} ([0-9.]+) (B|KiB|MiB|GiB)\b", text)
    assert found is not None, text
    return float(found[1]) * 1024 ** ["B", "KiB", "MiB", "GiB"].index(found[2])


@pytest.mark.parametrize(
    ("architecture", "parameters"),
    [
        ("llama", {}),
        ("gpt2", {}),
        ("rwkv7", {}),
        ("qwen2", {"frozen": ["*embed*", "*k_proj*"], "dense": ["*.bias", "*norm*"]}),
    ],
)
def test_what_evolves_is_counted_right(
    model_folder: ModelFolder,
    new_model: Callable[[str], PreTrainedModel],
    architecture: str,
    parameters: dict[str, Any],
) -> None:
    folder, model = model_folder(architecture), new_model(architecture)
    recipe = recipe_of(folder, parameters=parameters)
    evolved = select({name: tuple(p.shape) for name, p in model.named_parameters()}, recipe.parameters)
    count, total = sum(p.numel for p in evolved), sum(p.numel() for p in model.parameters())
    matrices = sum(p.kind == "lowrank" for p in evolved)
    told = dict(plan(recipe))
    assert told["model"] == f"{folder} ({type(model).__name__}, {total:,} parameters, float32)"
    assert told["evolving"] == (
        f"{count:,} parameters ({count / total:.0%}): {matrices} matrices of rank-2 noise, "
        f"{len(evolved) - matrices} tensors of dense noise"
    )
    drawn = Noise(0, rank=2).draw(evolved, 0, range(8)).values()
    held = sum(4 * t.numel() for noise in drawn for t in noise.tensors())
    memory = told["memory"]
    assert size_of(memory, "noise") == pytest.approx(held, rel=0.02)
    assert size_of(memory, "optimizer") == pytest.approx(2 * 4 * count, rel=0.02)
    assert size_of(memory, "weights") == pytest.approx(4 * total, rel=0.02)
    parts = [size_of(memory, what) for what in ("weights", "noise", "optimizer", "rows")]
    assert size_of(memory, "about") == pytest.approx(sum(parts), rel=0.05)  # parts are rounded to whole units


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": {"name": "sgd"}},
        {"optimizer": {"name": "sgd", "momentum": 0.9, "average": 0.5}},
        {"optimizer": {"name": "adam"}, "engine": {"dtype": "bfloat16"}},
        {"optimizer": {"name": "adam"}, "weights": "int8"},
    ],
)
def test_a_snapshot_is_as_large_as_the_plan_says(
    model_folder: ModelFolder, new_model: Callable[[str], PreTrainedModel], tmp_path: Path, changes: dict[str, Any]
) -> None:
    frozen = {"frozen": ["*embed*", "*norm*", "*lm_head*", "*.bias"]}
    recipe = recipe_of(model_folder("llama"), parameters=frozen, snapshots={"every": 5, "keep": 3}, **changes)
    model = new_model("llama")
    if recipe.weights == "int8":
        to_int8(model)
    evolved = inspect(recipe).evolved
    learner = GradientLearner(dict(model.named_parameters()), evolved, recipe.optimizer, Noise(0, rank=2))
    learner.step(Update(Population(0, 0, recipe.population), (1.0, -1.0) * 8, 1e-3))
    write_hashed(tmp_path / "file", learner.state_dict(), {}, "hash")
    specs = TensorFile(tmp_path / "file").specs.values()
    told, written = dict(plan(recipe))["snapshots"], (tmp_path / "file").stat().st_size
    assert size_of(f"size {told}", "size") == pytest.approx(sum(spec.nbytes for spec in specs), rel=0.03)
    assert 0 <= written - sum(spec.nbytes for spec in specs) < 200 * len(specs)  # names and shapes
    assert "every 5 generations, 3 stay; at most 64 MiB of memory" in told


def test_no_snapshots_are_planned_where_none_are_written(model_folder: ModelFolder) -> None:
    assert "snapshots" not in lines(model_folder("llama"), snapshots={"every": 0})


def test_what_is_generated(model_folder: ModelFolder, tokenizer: PreTrainedTokenizerFast) -> None:
    told = lines(model_folder("llama"), generations=1500, minutes=2.5)
    prompts = load_data(recipe_of(model_folder("llama")).data, 0).batch(0).prompts
    longest = max(len(tokenizer(prompt)["input_ids"]) for prompt in prompts)
    assert told["rollouts"] == "64 per generation: 16 members x 4 prompts"
    assert told["tokens"].startswith("at most 1,920 generated per generation (30 each)")
    assert told["tokens"].endswith(f"after {64 * longest:,} of prompts (about {longest} each)")
    assert told["budget"] == "1,500 generations or 2.5 minutes"
    assert lines(model_folder("llama"))["budget"] == "1,000 generations"
    assert told["output"] == "runs/planned"
    assert not Path(told["output"]).exists()


def test_chat_prompts_are_measured_as_they_are_rendered(
    model_folder: ModelFolder, tokenizer: PreTrainedTokenizerFast
) -> None:
    data = {"prompts": 1, "prompt": [{"role": "user", "content": "reach {target}"}]}
    recipe = recipe_of(model_folder("llama"), data=data)
    target = load_data(recipe.data, 0).batch(0).columns["target"][0]
    length = len(tokenizer(f"[user] reach {target}\n[assistant] ")["input_ids"])
    assert f"(about {length} each)" in dict(plan(recipe))["tokens"]


def test_memory_follows_dtype_optimizer_and_pairs(model_folder: ModelFolder) -> None:
    folder = model_folder("llama")
    plain = lines(folder)["memory"]
    assert "fp32 masters" not in plain
    half = lines(folder, engine={"dtype": "bfloat16"})["memory"]
    assert size_of(half, "weights") == pytest.approx(size_of(plain, "weights") / 2, rel=0.02)
    assert size_of(half, "fp32 masters") == pytest.approx(size_of(plain, "optimizer") / 2, rel=0.02)
    assert "optimizer" not in lines(folder, optimizer={"name": "sgd"})["memory"]
    alone = lines(folder, population={"size": 16, "rank": 2, "antithetic": False})["memory"]
    assert size_of(alone, "noise") == pytest.approx(2 * size_of(plain, "noise"), rel=0.02)


def test_rows_are_bounded_by_the_recipe_and_by_memory(
    model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_folder("llama")
    assert "a batch of 64 rows" in lines(folder)["memory"]
    assert "a batch of 10 rows" in lines(folder, engine={"max_rows": 10})["memory"]
    monkeypatch.setattr("eggroll_rl.planning.memory.free_bytes", lambda device: 2**20)
    few = lines(folder)["memory"]
    assert size_of(few, "rows") <= 2**19
    assert any(f"a batch of {rows} rows" in few for rows in range(1, 64))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"parameters": {"lowrank": ["*nothing*"]}}, "no parameter evolves"),
        ({"parameters": {"dense": ["*q_prj*"]}}, "parameters.dense '*q_prj*' matches nothing"),
        ({"data": {"prompt": "{nmbers}"}}, "data.prompt names a column 'nmbers'"),
        ({"model": "embedded:zzz"}, "no embedded model 'zzz'"),
    ],
)
def test_mistakes_are_told(model_folder: ModelFolder, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=re.escape(expected)):
        lines(model_folder("llama"), **changes)


def test_planning_draws_nothing_from_torch(model_folder: ModelFolder) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    lines(model_folder("llama"))
    assert torch.equal(torch.get_rng_state(), before)
