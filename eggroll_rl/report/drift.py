"""How far training moved a model."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from eggroll_rl.models.loading import EMBEDDED, locate_model


def drift(base: str, trained: Path) -> float | None:
    """``||W - W0|| / ||W0||`` over all tensors, in fp32, one in memory at a time.

    None where there are no safetensors of both: ``base`` is not a folder or an embedded model, or nothing is trained.
    """
    source = Path(locate_model(base)) if base.startswith(EMBEDDED) else Path(base)
    before, after = (sorted(folder.glob("*.safetensors")) for folder in (source, trained))
    where = {name: file for file in after for name in _names(file)}

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for file in before:
            with safe_open(file, framework="pt") as tensors:
                for name in where.keys() & set(tensors.keys()):
                    with safe_open(where[name], framework="pt") as others:
                        yield tensors.get_tensor(name).float(), others.get_tensor(name).float()

    return relative_change(pairs())


def relative_change(pairs: Iterable[tuple[Tensor, Tensor]]) -> float | None:
    """``||new - old|| / ||old||`` of tensors (old, new) as one vector; None where old is zero or there are none."""
    moved = norm = 0.0
    for old, new in pairs:
        moved += float((new - old).double().square().sum())
        norm += float(old.double().square().sum())
    return math.sqrt(moved / norm) if norm else None


def _names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())
