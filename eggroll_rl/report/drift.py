"""How far training moved a model."""

import math
from contextlib import suppress
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import safe_open

from eggroll_rl.models.naming import EMBEDDED, locate_model


def drift(base: str, trained: Path) -> float | None:
    """``||W - W0|| / ||W0||`` over all tensors, in fp32, one in memory at a time.

    None if either model has no safetensors here: ``base`` is a single file or a hub model that is not in the cache, or
    the run has saved no model.
    """
    before, after = (sorted(folder.glob("*.safetensors")) for folder in (_folder(base), trained))
    where = {name: file for file in after for name in _names(file)}

    moved = norm = 0.0
    for file in before:
        with safe_open(file, framework="pt") as tensors:
            for name in where.keys() & set(tensors.keys()):
                with safe_open(where[name], framework="pt") as others:
                    old, new = tensors.get_tensor(name).float(), others.get_tensor(name).float()
                moved += float((new - old).double().square().sum())
                norm += float(old.double().square().sum())
    return math.sqrt(moved / norm) if norm else None


def _folder(model: str) -> Path:
    """Where the files of a model lie; of the hub's, in its cache."""
    if model.startswith(EMBEDDED):
        return Path(locate_model(model))
    if not Path(model).exists():
        with suppress(HFValidationError, LocalEntryNotFoundError):
            return Path(snapshot_download(model, local_files_only=True))
    return Path(model)


def _names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())
