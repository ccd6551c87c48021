"""Models by name: what is found, and the one line that a user gets where nothing loads, before any weight is read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, T5Config

from eggroll_rl.models import naming
from eggroll_rl.models.loading import empty_model, load_config, load_model, load_tokenizer
from eggroll_rl.models.naming import locate_model
from eggroll_rl.system.errors import UsageError

ModelFolder = Callable[[str], Path]
ARCHITECTURES = ("llama", "gpt2", "gemma2", "rwkv7")


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)


@pytest.fixture
def folder(model_folder: ModelFolder, tmp_path: Path) -> Path:
    """A model to break."""
    return shutil.copytree(model_folder("llama"), tmp_path / "model")


def failure(function: Callable[[str], object], name: str | Path) -> str:
    with pytest.raises(UsageError) as error:
        function(str(name))
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_saved_model_loads_again(model_folder: ModelFolder, architecture: str) -> None:
    path = model_folder(architecture)
    model, tokenizer = load_model(str(path))
    saved, named = load_file(path / "model.safetensors"), dict(model.named_parameters())
    assert saved
    assert all(torch.equal(named[name], tensor) for name, tensor in saved.items())
    assert {parameter.dtype for parameter in named.values()} == {torch.float32}
    assert not model.training
    assert tokenizer.padding_side == "left"
    assert tokenizer.decode(tokenizer("1 + 2")["input_ids"]) == "1 + 2"
    assert load_model(str(path), torch.bfloat16)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.usefixtures("no_weights")
def test_an_empty_model_has_names_and_shapes_and_no_weights(
    model_folder: ModelFolder, new_model: Callable[[str], torch.nn.Module], architecture: str
) -> None:
    empty = empty_model(str(model_folder(architecture)))
    assert {name: p.shape for name, p in empty.named_parameters()} == {
        name: p.shape for name, p in new_model(architecture).named_parameters()
    }
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}


def test_where_models_are_found(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate_model(str(folder)) == str(folder)
    assert locate_model(str(folder.parent)) == str(folder)  # a run folder holds its model in model/
    shipped = tmp_path / "shipped"
    monkeypatch.setattr(naming, "embedded_models", lambda: {"rwkv7-countdown": shipped})
    assert locate_model("embedded:rwkv7-countdown") == locate_model("rwkv7-countdown") == str(shipped)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "rwkv7-countdown")
    assert locate_model("rwkv7-countdown") == "rwkv7-countdown"  # a folder of the same name goes first
    assert locate_model("embedded:rwkv7-countdown") == str(shipped)


@pytest.mark.usefixtures("no_weights")
def test_names_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"rwkv7-countdown": tmp_path, "llama-countdown": tmp_path}
    monkeypatch.setattr(naming, "embedded_models", lambda: names)
    for function in (locate_model, load_config, load_tokenizer, load_model, empty_model):
        assert failure(function, "embedded:rwkv7-cuntdown") == (
            "no embedded model 'rwkv7-cuntdown'; did you mean embedded:rwkv7-countdown?"
        )
        assert "there is embedded:rwkv7-countdown or embedded:llama-countdown" in failure(function, "embedded:zzz")
        assert f"no model folder '{tmp_path}/nowhere'; give" in failure(function, tmp_path / "nowhere")
        assert "no model folder 'a/b/c'; give" in failure(function, "a/b/c")
        assert "cannot find model 'nobody/nothing'" in failure(function, "nobody/nothing")
        assert f"'{tmp_path}' holds no config.json" in failure(function, tmp_path)


def test_without_embedded_models_names_still_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(naming, "files", lambda package: tmp_path)
    assert naming.embedded_models() == {}
    assert "no embedded model 'a'" in failure(locate_model, "embedded:a")
    assert "cannot find model 'nobody/nothing'" in failure(locate_model, "nobody/nothing")


@pytest.mark.usefixtures("no_weights")
def test_an_unknown_architecture(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"model_type": "llamma9"}))
    for function in (load_config, load_model, empty_model):
        assert "transformers knows no architecture 'llamma9'; use a causal language model" in failure(function, folder)


@pytest.mark.parametrize("content", ['{"model_type": "llama",', "", "[]", "{}"])
@pytest.mark.usefixtures("no_weights")
def test_a_config_that_is_none(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    for function in (load_config, load_model, empty_model):
        assert str(folder) in failure(function, folder)


@pytest.mark.usefixtures("no_weights")
def test_an_architecture_that_is_no_causal_language_model(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    T5Config(vocab_size=150).save_pretrained(folder)
    for function in (load_config, load_model, empty_model):
        assert "'t5' is no causal language model" in failure(function, folder)


@pytest.mark.usefixtures("no_weights")
def test_a_folder_without_tokenizer(folder: Path) -> None:
    for file in folder.glob("token*"):
        file.unlink()
    for function in (load_tokenizer, load_model):
        assert f"'{folder}' has no tokenizer that loads; save one into the folder" in failure(function, folder)


@pytest.mark.usefixtures("no_weights")
def test_a_broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0"')
    for function in (load_tokenizer, load_model):
        assert f"'{folder}' has no tokenizer that loads" in failure(function, folder)


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert f"'{folder}' does not load as a causal language model" in failure(load_model, folder)


def test_truncated_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert f"'{folder}' does not load as a causal language model" in failure(load_model, folder)


def test_weights_of_another_geometry(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"intermediate_size": 24}))
    message = failure(load_model, folder)
    assert (
        "no weights of the right shape for model.layers.0.mlp.down_proj.weight, model.layers.0.mlp.gate_proj" in message
    )


def test_weights_that_lack_some_are_never_filled_with_random_numbers(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "has no weights of the right shape for model.layers.1.mlp.up_proj.weight" in failure(load_model, folder)


def test_a_tokenizer_without_pad_token_pads_with_its_end_token(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_tokenizer(str(folder)).pad_token == "<end>"


@pytest.mark.parametrize(
    "quantisation", [{"quant_method": "bitsandbytes", "load_in_4bit": True}, {"quant_method": "x"}]
)
@pytest.mark.usefixtures("no_weights")
def test_a_quantised_checkpoint_is_refused_by_its_method(folder: Path, quantisation: dict[str, object]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantisation}))
    for function in (load_config, load_model, empty_model):
        assert f"quantised by {quantisation['quant_method']}" in failure(function, folder)


@pytest.mark.usefixtures("no_weights")
def test_an_adapter_is_refused_beside_its_model_and_alone(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    for function in (load_config, load_model, empty_model):
        assert "holds an adapter (adapter_config.json) beside the model" in failure(function, folder)
    (folder / "config.json").unlink()
    for function in (locate_model, load_config, load_model, empty_model):
        assert "holds an adapter alone: merge it into its base model" in failure(function, folder)
