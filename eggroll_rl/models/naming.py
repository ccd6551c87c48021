"""Model names, as recipes and command lines give them, and where they lead. Imports nothing heavy."""

import difflib
import os
from importlib.resources import files
from pathlib import Path

from eggroll_rl.system.errors import UsageError
from eggroll_rl.system.hub import fetch

EMBEDDED = "embedded:"
ADAPTER = "adapter_config.json"
NEW = "egg:"  # prefix of models that a run makes instead of loading
PTH = ".pth"  # suffix of BlinkDL's checkpoints


def embedded_models() -> dict[str, Path]:
    """Names and folders of the models that ship with the package."""
    folder = Path(str(files("eggroll_rl.models") / "embedded"))
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/config.json"))}


def locate_model(name: str) -> str:
    """The folder, file or hub name behind ``name``: an embedded model, a run folder, a Hugging Face folder or hub name,
    or an RWKV-7 checkpoint of BlinkDL's (``.pth``). The name of a new model (``egg:``) is returned as it is.

    Raises:
        UsageError: nothing of that name is there; raised before anything is loaded.
    """
    if is_new(name):
        return name
    if name.startswith(EMBEDDED):
        return str(_embedded(name.removeprefix(EMBEDDED)))
    name = os.path.expanduser(name)
    path = Path(name)
    if (path / "config.json").is_file() or (path.suffix == PTH and path.is_file()):
        return name
    if (path / "model" / "config.json").is_file():  # a run folder
        return str(path / "model")
    if path.suffix == PTH:
        raise UsageError(f"no file {name!r}; give the path of an RWKV-7 {PTH} checkpoint")
    if (path / ADAPTER).is_file():
        raise UsageError(
            f"{name!r} holds an adapter alone: merge it into its base model (peft's merge_and_unload, then "
            "save_pretrained) and name that folder"
        )
    if path.exists():
        raise UsageError(f"{name!r} holds no config.json, so it is no Hugging Face model; name the folder that does")
    if name in embedded_models():
        return str(_embedded(name))
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UsageError(f"no model folder {name!r}; give a Hugging Face folder, a hub name or {_embedded_names()}")
    try:
        fetch(name, "config.json")
    except UsageError as error:
        raise UsageError(
            f"cannot find model {name!r}, neither as a folder nor on the hub or in its cache: {error}; give a Hugging "
            f"Face folder, a hub name, an RWKV-7 {PTH} or {_embedded_names()}"
        ) from error
    return name


def is_new(name: str) -> bool:
    """Whether the name is ``egg:WIDTHxLAYERS``, a model that a run makes instead of loading."""
    return name.startswith(NEW)


def is_hub_name(name: str) -> bool:
    """Whether the name is no model or path on this machine, and may be one on the hub."""
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or ":" in name or name.endswith(PTH)
    return not is_path and not Path(name).exists() and name not in embedded_models()


def _embedded(name: str) -> Path:
    models = embedded_models()
    if name not in models:
        near = difflib.get_close_matches(name, models, n=1)
        hint = f"did you mean {EMBEDDED}{near[0]}?" if near else f"there is {_embedded_names()}"
        raise UsageError(f"no embedded model {name!r}; {hint}")
    return models[name]


def _embedded_names() -> str:
    return " or ".join(f"{EMBEDDED}{name}" for name in embedded_models())
