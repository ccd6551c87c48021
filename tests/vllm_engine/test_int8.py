"""int8 weights in vLLM, with activations rounded to int8 by its own kernels: the steps are to the bit those of the
transformers engine, answers those of a slow reference and of plain vLLM that loads what was saved."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from eggroll_rl import train as training
from eggroll_rl.config import Recipe, load_recipe
from eggroll_rl.engines.vllm.engine import VLLMEngine
from eggroll_rl.es.hashing import tensors_hash
from eggroll_rl.es.int8 import Int8Linear
from eggroll_rl.es.update import Update
from eggroll_rl.models.loading import save_float
from eggroll_rl.runs.rebuild import export, verify

from .conftest import SLOTS, Engines, back_to_base, both, recipe_of
from .test_engine import GREEDY, WEIGHTS, population_of, prompts_of

INT8 = {"weights": "int8", "optimizer": {"name": "adam"}, "parameters": {"frozen": ["*embed*", "*norm*", "*.r_k"]}}


def int8_recipe(model: str) -> Recipe:
    engine = {"name": "vllm", "vllm": {"slots": SLOTS, "kv_cache_gib": 0.25, "max_model_len": 512}}
    return recipe_of(model, engine=engine, **INT8)


@pytest.fixture(scope="module", params=["embedded:llama-countdown", "rwkv7"])
def int8_engines(request: pytest.FixtureRequest, model_folder: Callable[[str], Path]) -> Iterator[Engines]:
    """Queries, keys and values fused; and an RWKV-7, of whom the head evolves in float as well."""
    name = request.param
    engines = both(int8_recipe(name if ":" in name else str(model_folder(name))))
    yield engines
    engines.vllm.close()


@pytest.fixture
def engines(int8_engines: Engines) -> Engines:
    return back_to_base(int8_engines)


def of_rounded_activations(layer: Int8Linear, x: Tensor) -> Tensor:
    """A row of activations is rounded to 1/127 of its largest."""
    unit = x.abs().amax(-1, keepdim=True) / 127
    x = (x / unit.clamp_min(1e-30)).round()
    return F.linear(x, layer.weight.to(x.dtype), None) * unit * layer.weight_scale.mT + (
        0 if layer.bias is None else layer.bias
    )


def test_members_answer_as_with_rounded_activations(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly all: where a sum's last bit differs, so may an activation that is rounded, by one."""
    monkeypatch.setattr(Int8Linear, "forward", of_rounded_activations)
    prompts, same, seen = prompts_of(engines), [], []
    for generation in range(3):
        population = population_of(engines, generation)
        for asked in (population, None):
            given, expected = (engine.generate(prompts, GREEDY, asked) for engine in engines[1:3])
            same += [a == b for rows in zip(given, expected, strict=True) for a, b in zip(*rows, strict=True)]
            seen += given
        update = Update(population, WEIGHTS, lr=2e-3)
        assert engines.vllm.apply(update) == pytest.approx(engines.transformers.apply(update), rel=1e-6)
    assert sum(same) >= 0.95 * len(same)
    assert len({tuple(row) for row in seen}) > len(seen) // 2


def test_steps_are_to_the_bit_those_of_the_transformers_engine(engines: Engines) -> None:
    """And go on where a state was saved, in either engine."""
    base = engines.vllm.weights_hash()
    assert base == engines.transformers.weights_hash()
    for generation in range(6):
        update = Update(population_of(engines, generation), WEIGHTS, lr=1e-3)
        if generation == 3:
            kept, state = engines.vllm.weights_hash(), dict(engines.vllm.state_dict())
        for engine in engines[1:3]:
            engine.apply(update)
    last = engines.vllm.weights_hash()
    assert len({base, kept, last}) == 3
    given, expected = engines.vllm.state_dict(), engines.transformers.state_dict()
    assert tensors_hash(given) == tensors_hash(expected)
    assert {"residual", "moment", "rows", "weight"} <= {key.partition(".")[0] for key in given}
    for engine in engines[1:3]:
        engine.load_state_dict(state)
        assert engine.weights_hash() == kept
        for generation in range(3, 6):
            engine.apply(Update(population_of(engines, generation), WEIGHTS, lr=1e-3))
        assert engine.weights_hash() == last


def test_what_is_saved_answers_in_plain_vllm_exactly_as_in_training(engines: Engines, tmp_path: Path) -> None:
    from vllm import LLM, SamplingParams

    for generation in range(3):
        engines.vllm.apply(Update(population_of(engines, generation), WEIGHTS, lr=4e-3))
    engines.vllm.save(tmp_path)
    group = json.loads((tmp_path / "config.json").read_text())["quantization_config"]["config_groups"]["group_0"]
    assert group["input_activations"]["num_bits"] == 8
    prompts = prompts_of(engines)
    expected = [list(answer.token_ids) for answer in engines.vllm.generate(prompts, GREEDY)[0]]
    plain = LLM(
        str(tmp_path), dtype="float32", enforce_eager=True, kv_cache_memory_bytes=2**28, max_model_len=512,
        generation_config="vllm",
    )  # fmt: skip
    asked = [{"prompt_token_ids": engines.vllm.tokenizer(prompt)["input_ids"]} for prompt in prompts]
    stop = sorted(engines.vllm.end_ids)
    how = SamplingParams(temperature=0, max_tokens=GREEDY.max_new_tokens, ignore_eos=True, stop_token_ids=stop)
    outputs = plain.generate(asked, how, use_tqdm=False)
    plain.llm_engine.engine_core.shutdown()
    given = [[token for token in output.outputs[0].token_ids if token not in stop] for output in outputs]
    assert given == [[token for token in ids if token not in stop] for ids in expected]


def test_two_ranks_learn_the_same_integers(int8_engines: Engines) -> None:
    """Each rounds its part of the activations, so answers are not compared."""
    engines = back_to_base(int8_engines)
    options = engines.recipe.engine.vllm.model_copy(update={"tensor_parallel_size": 2})
    config = engines.recipe.engine.model_copy(update={"vllm": options})
    with VLLMEngine(engines.recipe.model_copy(update={"engine": config})) as divided:
        assert divided.weights_hash() == engines.vllm.weights_hash()
        for generation in range(2):
            update = Update(population_of(engines, generation), WEIGHTS, lr=2e-3)
            assert divided.apply(update) == pytest.approx(engines.vllm.apply(update), rel=1e-6)
        assert tensors_hash(divided.state_dict()) == tensors_hash(engines.vllm.state_dict())
        answers = divided.generate(prompts_of(engines), GREEDY)
        engines.vllm.load_state_dict(engines.base)
        divided.load_state_dict(engines.base)
        assert divided.weights_hash() == engines.vllm.weights_hash()
        assert divided.generate(prompts_of(engines), GREEDY) != answers


def test_a_run_is_verified_and_exported_as_it_is_served(tmp_path: Path) -> None:
    run, frozen = tmp_path / "run", 'parameters.frozen=["*embed*", "*norm*"]'
    small = ["generations=3", "minutes=null", "population.size=8", "data.prompts=2", "evaluation={n: 8}"]
    more = ["weights=int8", "optimizer={name: adam, lr: 2.0e-3}", frozen, f"output_dir={run}"]
    training.train(load_recipe("countdown_tiny_vllm", [*small, *more, "engine.vllm={slots: 8, kv_cache_gib: 0.5}"]))
    assert {finding.fault for finding in verify(run)} == {None}
    export(run, tmp_path / "exported")
    assert (tmp_path / "exported/config.json").read_text() == (run / "model/config.json").read_text()
    state, trained = (load_file(path / "model.safetensors") for path in (tmp_path / "exported", run / "model"))
    assert tensors_hash(state) == tensors_hash(trained)
    assert sum(tensor.dtype == torch.int8 for tensor in state.values()) == 21


@pytest.mark.parametrize("weights", ["int8", "float"])
def test_what_is_saved_answers_in_plain_transformers_exactly_as_in_training(
    engines: Engines, tmp_path: Path, weights: str
) -> None:
    """In the layout of compressed-tensors, whose package comes with vLLM, and as floats."""
    local = engines.transformers
    for generation in range(3):
        local.apply(Update(population_of(engines, generation), WEIGHTS, lr=4e-3))
    local.save(tmp_path) if weights == "int8" else save_float(local.model, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    prompts, ends = prompts_of(engines), engines.vllm.end_ids
    for prompt, answer in zip(prompts, local.generate(prompts, GREEDY)[0], strict=True):
        ids = local.tokenizer(prompt, return_tensors="pt").input_ids
        made = plain.generate(ids, max_new_tokens=GREEDY.max_new_tokens, do_sample=False, eos_token_id=ends)
        given, expected = made[0, ids.shape[1] :].tolist(), list(answer.token_ids)
        assert [token for token in given if token not in ends] == [token for token in expected if token not in ends]
