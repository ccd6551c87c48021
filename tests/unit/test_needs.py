"""Memory: what control groups leave, and recipes that are larger than all there is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eggroll_rl.config import OptimizerConfig, Recipe
from eggroll_rl.engines.build import check_engine
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.engines.local.fused_rwkv import FusedDecoder
from eggroll_rl.engines.memory import left_by_limits
from eggroll_rl.engines.needs import model_bytes, states_of
from eggroll_rl.es.population import Population
from eggroll_rl.es.update import Update
from eggroll_rl.models.blueprint import inspect
from eggroll_rl.system.errors import UsageError


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_each_group_around_the_process_bounds_it(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/pods/mine\n")
    stat = "anon 5\ninactive_file 30\nactive_file 10\n"
    group(tmp_path / "pods" / "mine", memory__max="max\n", memory__current="60\n", memory__stat=stat)
    group(tmp_path / "pods", memory__max="1000\n", memory__current="500\n", memory__stat=stat)
    assert list(left_by_limits(tmp_path, own)) == [540]
    group(tmp_path / "pods" / "mine", memory__max="100\n")
    assert list(left_by_limits(tmp_path, own)) == [80, 540]
    group(tmp_path / "pods" / "mine", memory__current="300\n")
    assert list(left_by_limits(tmp_path, own)) == [0, 540]


def test_groups_of_version_1_bound_too(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("12:cpu,cpuacct:/x\n4:memory:/mine\n1:name=systemd:/x\n")
    files = {"memory__usage_in_bytes": "70", "memory__stat": "total_inactive_file 20\ntotal_active_file 0\n"}
    group(tmp_path / "memory" / "mine", memory__limit_in_bytes="100", **files)
    assert list(left_by_limits(tmp_path, own)) == [50]
    assert list(left_by_limits(tmp_path, tmp_path / "none")) == []


def test_momentum_is_a_state_of_its_own() -> None:
    rules = [OptimizerConfig(name="sgd"), OptimizerConfig(name="sgd", momentum=0.9), OptimizerConfig(name="adam")]
    assert [states_of(rule) for rule in rules] == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"population": {"size": 10**8}}, r"for all answers, and .* are free: lower population\.size or data\.prompts"),
        ({"model": "rank"}, r"for the noise of a pair, and .* are free: lower population\.rank"),
        ({"engine": {"device": "meta"}}, r"engine\.device=meta: there is none here"),
        ({"engine": {"device": "nonsense"}}, r"engine\.device=nonsense: there is none here"),
    ],
)
def test_what_cannot_be_allocated_is_refused_in_one_line(
    model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("eggroll_rl.engines.needs.free_bytes", lambda device: 2**22)
    small = {"model": str(model_folder("llama")), "rewards": [{"fn": "eggroll_rl.rewards.countdown:countdown"}]}
    small |= {"population": {"size": 16}, "sampling": {"max_new_tokens": 16}, "data": {"prompts": 1}}
    if changes.pop("model", ""):
        changes = {"population": {"size": 2, "rank": 2**12}}
    with pytest.raises(UsageError, match=message) as error:
        check_engine(Recipe.model_validate(small | changes))
    assert "\n" not in str(error.value)


def counted(folder: Path, **changes: Any) -> tuple[Recipe, dict[str, int]]:
    rewards = [{"fn": "eggroll_rl.rewards.countdown:countdown"}]
    recipe = Recipe.model_validate({"model": str(folder), "rewards": rewards, **changes})
    return recipe, model_bytes(recipe, inspect(recipe))


@pytest.mark.parametrize("weights", ["float", "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["rwkv", "local"])
def test_what_the_fused_step_holds_besides_the_weights_is_counted(
    model_folder: Callable[[str], Path], name: str, dtype: str, weights: str
) -> None:
    recipe, parts = counted(
        model_folder("rwkv7"), engine={"name": name, "dtype": dtype, "device": "cpu"}, weights=weights
    )
    with LocalEngine.from_recipe(recipe) as engine:
        assert isinstance(engine.decoder, FusedDecoder)
        fused = engine.decoder.fused
        assert bool(fused.packed) == (dtype == "float32")
        unfilled = sum(panels.nbytes - 4 * linear.weight.numel() for linear, panels in fused.packed.items())
        held = fused.embedded_VD.nbytes + sum(panels.nbytes for panels in fused.packed.values())
        assert parts["the fused step"] == held - unfilled


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "optimizer",
    [
        {"name": "sgd"},
        {"name": "sgd", "momentum": 0.9, "average": 0.5},
        {"name": "adam", "average": 0.9, "anchor": 0.1},
    ],
)
def test_what_learns_is_counted(model_folder: Callable[[str], Path], optimizer: dict[str, Any], dtype: str) -> None:
    """All tensors that a learner holds, masters that are the weights themselves but once."""
    recipe, parts = counted(model_folder("llama"), engine={"name": "local", "dtype": dtype}, optimizer=optimizer)
    with LocalEngine.from_recipe(recipe) as engine:
        engine.apply(Update(Population(0, 0, recipe.population), (1.0, -1.0) * (recipe.population.size // 2), 1e-6))
        weights = {parameter.data_ptr(): parameter for parameter in engine.model.parameters()}
        held = [stored._base for stored in engine.learner._floats().values()] + list(engine.state_dict().values())
        more = {t.data_ptr(): t for t in held if t is not None and t.numel() > 1 and t.data_ptr() not in weights}
        learned = [sum(tensor.nbytes for tensor in tensors.values()) for tensors in (weights, more)]
    assert learned == [parts.pop("weights"), sum(parts.values())]


@pytest.mark.parametrize(
    "changes",
    [
        {"engine": {"name": "transformers", "device": "cpu"}},
        {"engine": {"name": "rwkv", "device": "cuda"}},
        {"engine": {"name": "rwkv", "device": "cpu"}, "parameters": {"frozen": [], "dense": ["*g_norm*"]}},
    ],
)
def test_decoders_without_a_fused_step_hold_the_weights_once(
    model_folder: Callable[[str], Path], changes: dict[str, Any]
) -> None:
    assert counted(model_folder("rwkv7"), **changes)[1]["the fused step"] == 0
