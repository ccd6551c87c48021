"""Models with linear layers of int8: their answers against those of the same numbers in float, saved and loaded by
transformers alone; and how checkpoints of int8 are read."""

import copy
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from eggroll_rl import grpo
from eggroll_rl.config import ParametersConfig, PopulationConfig, Recipe, SamplingConfig, build_recipe
from eggroll_rl.engines.build import check_model
from eggroll_rl.engines.local.choice import Choice, for_any, for_rwkv
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.engines.needs import model_bytes
from eggroll_rl.es.hashing import tensors_hash
from eggroll_rl.es.int8 import Int8Linear
from eggroll_rl.es.population import Population
from eggroll_rl.es.update import Update
from eggroll_rl.models.blueprint import Blueprint, check_int8, dissect
from eggroll_rl.models.int8 import quantisation_config, to_int8
from eggroll_rl.models.loading import load_model, save_float
from eggroll_rl.system.errors import UsageError

PROMPTS = ("a", "is 12 in the </answer>?", "12 + 34 =")
SAMPLING = SamplingConfig(max_new_tokens=8)
POPULATION = PopulationConfig(size=6, sigma=0.05)
ENGINES = [(for_any, "llama"), (for_any, "qwen2"), (for_any, "gemma2"), (for_any, "rwkv7"), (for_rwkv, "rwkv7")]

NewModel = Callable[..., PreTrainedModel]
ModelFolder = Callable[[str], Path]


def engine_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, choice: Choice = for_any, dense: tuple[str, ...] = ()
) -> LocalEngine:
    parameters = ParametersConfig(dense=dense)
    return LocalEngine(model, tokenizer, seed=3, population=POPULATION, parameters=parameters, choice=choice)


def differing(one: LocalEngine, other: LocalEngine, population: Population) -> int:
    """Of 21 greedy answers, the members' and the mean's, how many differ. Products with int8 round activations to
    1/16256 of their largest, so that a choice between two tokens that are nearly as good may fall the other way."""
    answers = [
        [*engine.generate(PROMPTS, SAMPLING, population), *engine.generate(PROMPTS, SAMPLING)]
        for engine in (one, other)
    ]
    return sum(mine != its for rows in zip(*answers, strict=True) for mine, its in zip(*rows, strict=True))


def recipe_of(model: str, **changes: Any) -> Recipe:
    rewards = [{"fn": "eggroll_rl.rewards.text:exact_match"}]
    return Recipe.model_validate({"model": model, "weights": "int8", "rewards": rewards, **changes})


@pytest.mark.parametrize(("choice", "architecture"), ENGINES)
def test_members_answer_as_the_same_numbers_do_in_float(
    new_model: NewModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, choice: Choice, architecture: str
) -> None:
    """Before and after updates, and the saved floats without a population in transformers alone."""
    int8 = engine_of(to_int8(new_model(architecture)), tokenizer, choice)
    assert any(isinstance(layer, Int8Linear) for layer in int8.model.modules())
    for generation in range(2):
        save_float(int8.model, tmp_path / str(generation))
        floats = engine_of(AutoModelForCausalLM.from_pretrained(tmp_path / str(generation)).eval(), tokenizer)
        population = Population(3, generation, POPULATION)
        assert differing(int8, floats, population) <= 1
        answers = int8.generate(PROMPTS, SAMPLING, population)
        assert len({row[2].token_ids for row in answers}) > 1
        before = int8.weights_hash()
        int8.apply(Update(population, (1.0, -1.0, 0.5, -0.5, 0.3, -0.3), 0.01))
        assert int8.weights_hash() != before


def test_members_with_dense_noise_answer_as_the_same_numbers_do_in_float(
    new_model: NewModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    int8 = engine_of(to_int8(new_model("llama")), tokenizer, dense=("*v_proj*",))
    assert sum(parameter.kind == "dense" and len(parameter.shape) == 2 for parameter in int8.evolved) == 2
    for generation in range(2):
        save_float(int8.model, tmp_path / str(generation))
        floats = AutoModelForCausalLM.from_pretrained(tmp_path / str(generation)).eval()
        population = Population(3, generation, POPULATION)
        assert differing(int8, engine_of(floats, tokenizer, dense=("*v_proj*",)), population) <= 1
        int8.apply(Update(population, (1.0, -1.0, 0.5, -0.5, 0.3, -0.3), 0.01))


@pytest.mark.parametrize("sampling", [SAMPLING, SamplingConfig(max_new_tokens=16, temperature=1.0, top_p=0.95)])
def test_the_fused_step_answers_as_transformers_layers_do(
    new_model: NewModel, tokenizer: PreTrainedTokenizerFast, sampling: SamplingConfig
) -> None:
    """Both in int8, greedy and drawn, members and the mean, before and after an update."""
    model = new_model("rwkv7")
    fused, eager = (engine_of(to_int8(copy.deepcopy(model)), tokenizer, choice) for choice in (for_rwkv, for_any))
    assert "int8" in fused.decode_path()
    for generation in range(2):
        population = Population(3, generation, POPULATION)
        answers = fused.generate(PROMPTS, sampling, population)
        assert answers == eager.generate(PROMPTS, sampling, population)
        assert fused.generate(PROMPTS, sampling) == eager.generate(PROMPTS, sampling)
        assert len({tuple(row) for row in answers}) > 1
        for engine in (fused, eager):
            engine.apply(Update(population, (1.0, -1.0, 0.5, -0.5, 0.3, -0.3), 0.01))
        assert fused.weights_hash() == eager.weights_hash()


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "rwkv7"])
def test_a_saved_int8_model_is_loaded_to_the_bit(
    new_model: NewModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, architecture: str
) -> None:
    engine = engine_of(to_int8(new_model(architecture)), tokenizer)
    engine.apply(Update(Population(3, 0, POPULATION), (1.0, -1.0, 0.5, -0.5, 0.3, -0.3), 0.01))
    engine.save(tmp_path / "saved")
    again, _ = load_model(str(tmp_path / "saved"), weights="int8")
    assert tensors_hash(dict(again.named_parameters())) == tensors_hash(dict(engine.model.named_parameters()))
    assert again.generation_config.eos_token_id == engine.model.generation_config.eos_token_id
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["quantization_config"]["quant_method"] == "compressed-tensors"
    assert not hasattr(engine.model.config, "quantization_config")


@pytest.fixture
def int8_folder(new_model: NewModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    engine_of(to_int8(new_model("llama")), tokenizer).save(tmp_path / "int8")
    return tmp_path / "int8"


def configured(folder: Path, change: Callable[[dict[str, Any]], object]) -> str:
    config = json.loads((folder / "config.json").read_text())
    change(config["quantization_config"])
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda q: q.update(format="pack-quantized"), "format pack-quantized"),
        (lambda q: q["config_groups"]["group_0"]["weights"].update(num_bits=4), "num_bits 4"),
        (lambda q: q["config_groups"]["group_0"]["weights"].update(type="float"), "type float"),
        (lambda q: q["config_groups"]["group_0"]["weights"].update(symmetric=False), "symmetric False"),
        (lambda q: q["config_groups"]["group_0"]["weights"].update(strategy="group", group_size=32), "strategy group"),
        (lambda q: q["config_groups"]["group_0"].update(input_activations={"dynamic": False}), "static activations"),
        (lambda q: q.update(kv_cache_scheme={"num_bits": 8}), "format"),
        (lambda q: q.update(config_groups={}), "format"),
        (lambda q: q.update(quant_method="gptq"), "quantised by gptq"),
    ],
)
def test_other_quantisations_are_refused_by_their_name(int8_folder: Path, change: Any, named: str) -> None:
    folder = configured(int8_folder, change)
    with pytest.raises(UsageError, match=named) as refused:
        check_model(recipe_of(folder))
    assert "name the model in floating point" in str(refused.value)


def test_what_servers_of_int8_activations_are_told_is_taken_too(int8_folder: Path) -> None:
    before = tensors_hash(dict(load_model(str(int8_folder), weights="int8")[0].named_parameters()))
    folder = configured(int8_folder, lambda q: q.update(quantisation_config(["lm_head"], "int8")))
    assert tensors_hash(dict(load_model(folder, weights="int8")[0].named_parameters())) == before


def test_one_scale_for_a_matrix_is_that_of_each_output(int8_folder: Path) -> None:
    path = int8_folder / "model.safetensors"
    state = load_file(path)
    name = "model.layers.0.self_attn.q_proj.weight_scale"
    save_file(state | {name: torch.tensor([0.01])}, path, {"format": "pt"})
    model, _ = load_model(str(int8_folder), weights="int8")
    scale = model.get_parameter(name)
    assert scale.shape == state[name].shape
    assert (scale == 0.01).all()


LAYERS = [
    f"model.layers.{n}.{layer}" for n in (0, 1) for layer in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
]
NO_SCALES = {  # of a matrix with so many rows
    "missing": lambda rows: None,
    "no matrix's": lambda rows: torch.ones(rows + 1, 1),
    "of groups": lambda rows: torch.ones(rows, 4),
    "whole": lambda rows: torch.ones(rows, 1, dtype=torch.int32),
    **{
        f"with {value}": lambda rows, value=value: torch.ones(rows, 1).index_fill(0, torch.tensor(rows - 1), value)
        for value in (0.0, -0.5, math.inf, math.nan, 3e38)
    },
}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layer=st.sampled_from(LAYERS), fault=st.sampled_from(sorted(NO_SCALES)))
def test_scales_that_are_none_are_refused_by_their_name_before_anything_loads(
    int8_folder: Path, layer: str, fault: str
) -> None:
    path = int8_folder / "model.safetensors"
    whole, state = path.read_bytes(), load_file(path)
    scale = NO_SCALES[fault](len(state[f"{layer}.weight"]))
    changed = {key: tensor for key, tensor in state.items() if key != f"{layer}.weight_scale"}
    save_file(changed | ({} if scale is None else {f"{layer}.weight_scale": scale}), path, {"format": "pt"})
    try:
        for refused in (lambda name: check_model(recipe_of(name)), lambda name: load_model(name, weights="int8")):
            with pytest.raises(UsageError, match=re.escape(f"{layer}.weight_scale")) as caught:
                refused(str(int8_folder))
            assert "quantise the model anew" in str(caught.value)
            assert "\n" not in str(caught.value)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(-1,), (-1, 1), (1, -1)])
def test_scales_come_in_any_floating_point_and_either_shape(
    int8_folder: Path, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    path = int8_folder / "model.safetensors"
    state = load_file(path)
    stored = {key: tensor.to(dtype).view(shape) for key, tensor in state.items() if key.endswith("_scale")}
    save_file(state | stored, path, {"format": "pt"})
    model, _ = load_model(str(int8_folder), weights="int8")
    for key, scale in stored.items():
        assert torch.equal(model.get_parameter(key), scale.float().view(-1, 1))


def test_a_scale_without_its_matrix_and_damaged_files_are_refused(int8_folder: Path) -> None:
    path = int8_folder / "model.safetensors"
    state, whole = load_file(path), path.read_bytes()
    name = "model.layers.0.self_attn.q_proj"
    save_file(state | {f"{name}.weight": torch.ones(32, 32)}, path, {"format": "pt"})
    with pytest.raises(UsageError, match=rf"{name}\.weight_scale is the scale of no int8 matrix"):
        check_model(recipe_of(str(int8_folder)))
    for content in (whole[: len(whole) // 2], b"", b"<!DOCTYPE html>"):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"model\.safetensors is no safetensors file .*: fetch or save it again"):
            check_model(recipe_of(str(int8_folder)))


def test_a_checkpoint_of_int8_is_not_taken_for_float(int8_folder: Path) -> None:
    for refused in (lambda name: check_model(recipe_of(name, weights="float")), load_model):
        with pytest.raises(UsageError, match="holds int8 weights, and this is for float ones: set weights=int8"):
            refused(str(int8_folder))


@pytest.mark.parametrize(
    ("architecture", "changes", "named"),
    [
        ("llama", {"engine": {"name": "egg"}}, "weights=int8: engine egg learns no such weights"),
        ("gpt2", {}, "a GPT2LMHeadModel has none"),
        ("llama", {"parameters": {"frozen": [], "lowrank": ["*"]}}, r"model\.embed_tokens\.weight of LlamaForCausalLM"),
    ],
)
def test_what_cannot_be_int8_is_refused_before_it_is_loaded(
    model_folder: ModelFolder, architecture: str, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        check_model(recipe_of(str(model_folder(architecture)), **changes))


def test_weights_and_learner_take_less_than_a_third_of_what_float_takes(tokenizer: PreTrainedTokenizerFast) -> None:
    """On the shape of SmolLM2-135M."""
    config = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=49152, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        anatomy = dissect(LlamaForCausalLM(config).eval(), ParametersConfig())
    blueprint = Blueprint(**vars(anatomy), source="", tokenizer=tokenizer)
    held = {weights: model_bytes(recipe_of("smollm2", weights=weights), blueprint) for weights in ("float", "int8")}
    assert sum(held["int8"].values()) <= 0.30 * sum(held["float"].values())
    assert held["int8"]["fp32 masters"] == 0


def test_what_wants_copies_or_gradients_of_the_weights_is_refused(model_folder: ModelFolder) -> None:
    for key in ("average", "anchor"):
        with pytest.raises(UsageError, match=rf"weights int8 learn without a copy: drop optimizer\.{key}"):
            build_recipe(recipe_of("x").model_dump(), [f"optimizer.{key}=0.5"])
    with pytest.raises(UsageError, match=r"optimizer\.error_feedback false is for weights=int8"):
        build_recipe(recipe_of("x").model_dump(), ["optimizer.error_feedback=false", "weights=float"])
    with pytest.raises(UsageError, match=r"unknown key 'optimizer\.window'"):  # the residual is stored
        build_recipe(recipe_of("x").model_dump(), ["optimizer.window=50"])
    with pytest.raises(UsageError, match="GRPO's gradients are of floats: set weights=float"):
        grpo.check_grpo(recipe_of(str(model_folder("llama")), engine={"name": "local"}))


def test_a_model_that_reads_a_layers_matrix_itself_is_refused() -> None:
    config = MambaConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, state_size=8, time_step_rank=4)
    with torch.device("meta"):
        model = MambaForCausalLM(config).eval()
    with pytest.raises(UsageError, match="a MambaForCausalLM reads matrices without calling their layers"):
        check_int8(dissect(model, ParametersConfig(lowrank=("*proj.weight",))))
