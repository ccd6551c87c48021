"""How far training moved a model."""

import math
from pathlib import Path

from safetensors import safe_open

from eggroll_rl.models.loading import EMBEDDED, locate_model


def drift(base: str, trained: Path) -> float | None:
    """``||W - W0|| / ||W0||`` over all tensors, in fp32, one in memory at a time.

    None where there are no safetensors of both: ``base`` is not a folder or an embedded model, or nothing is trained.
    """
    source = Path(locate_model(base)) if base.startswith(EMBEDDED) else Path(base)
    before, after = (sorted(folder.glob("*.safetensors")) for folder in (source, trained))
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


def _names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())
