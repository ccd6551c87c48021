"""Finding and loading a model by the name that a recipe or a command line gives it."""

import difflib
import json
from importlib.resources import files
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from eggroll_rl.errors import UsageError

EMBEDDED = "embedded:"


def embedded_models() -> dict[str, Path]:
    """Names and folders of the models that ship with the package."""
    folder = Path(str(files("eggroll_rl.models") / "embedded"))
    return {path.name: path for path in sorted(folder.iterdir()) if (path / "config.json").is_file()}


def locate_model(name: str) -> str:
    """The folder or hub name behind ``name``: an embedded model, a run folder, a Hugging Face folder or hub name.

    Raises:
        UsageError: nothing of that name is there; raised before anything is loaded.
    """
    if name.startswith(EMBEDDED):
        return str(_embedded(name.removeprefix(EMBEDDED)))
    path = Path(name)
    if (path / "config.json").is_file():
        return name
    if (path / "model" / "config.json").is_file():  # a run folder
        return str(path / "model")
    if path.exists():
        raise UsageError(f"{name!r} holds no config.json, so it is no Hugging Face model; name the folder that does")
    if name in embedded_models():
        return str(_embedded(name))
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UsageError(f"no model folder {name!r}; give a Hugging Face folder, a hub name or {_embedded_names()}")
    try:
        AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot find model {name!r}, neither as a folder nor on the hub or in its cache; give a Hugging Face folder, "
            f"a hub name or {_embedded_names()}"
        ) from error
    return name


def _embedded(name: str) -> Path:
    models = embedded_models()
    if name not in models:
        near = difflib.get_close_matches(name, models, n=1)
        raise UsageError(
            f"no embedded model {name!r}; " + (f"did you mean {EMBEDDED}{near[0]}?" if near else f"there is {_embedded_names()}")
        )
    return models[name]


def _embedded_names() -> str:
    return " or ".join(f"{EMBEDDED}{name}" for name in embedded_models())


def load_config(name: str) -> AutoConfig:
    """A model's configuration alone.

    Raises:
        UsageError: its architecture is unknown to transformers and to this package.
    """
    _register_own_models()
    source = locate_model(name)
    try:
        return AutoConfig.from_pretrained(source)
    except (ValueError, OSError, KeyError) as error:
        kind = _model_type(source)
        raise UsageError(
            f"{name!r}: transformers knows no architecture {kind!r}; use a causal language model that "
            "AutoModelForCausalLM loads, or an RWKV-7"
        ) from error


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A model's tokenizer, with left padding.

    Raises:
        UsageError: the folder has none.
    """
    source = locate_model(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
    except (ValueError, OSError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise UsageError(f"{name!r} has no tokenizer that loads; save one into the folder with tokenizer.save_pretrained") from error
    if len(tokenizer) == 0:
        raise UsageError(f"{name!r} has an empty tokenizer; save one into the folder with tokenizer.save_pretrained")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def load_model(name: str, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer in evaluation mode, on the CPU."""
    config, tokenizer = load_config(name), load_tokenizer(name)
    try:
        model = AutoModelForCausalLM.from_pretrained(locate_model(name), config=config, dtype=dtype)
    except (ValueError, OSError) as error:
        raise UsageError(f"{name!r} does not load as a causal language model: {str(error).splitlines()[0]}") from error
    return model.eval(), tokenizer


def empty_model(name: str) -> PreTrainedModel:
    """The model without its weights (on the meta device): shapes and names only."""
    config = load_config(name)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _model_type(source: str) -> str:
    path = Path(source) / "config.json"
    return json.loads(path.read_text()).get("model_type", "?") if path.is_file() else "?"


def _register_own_models() -> None:
    import eggroll_rl.models.rwkv7  # noqa: F401  registers itself with transformers' Auto classes
