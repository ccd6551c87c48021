"""Fine-tune the reasoning of language models with EGGROLL: low-rank evolution strategies, no backpropagation."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eggroll_rl.evolution import Evolution
    from eggroll_rl.trainer import EggrollConfig, EggrollTrainer

__all__ = ["EggrollConfig", "EggrollTrainer", "Evolution", "__version__"]
__version__ = "0.1.0"

_HOMES = {
    "EggrollConfig": "eggroll_rl.trainer",
    "EggrollTrainer": "eggroll_rl.trainer",
    "Evolution": "eggroll_rl.evolution",
}


def __getattr__(name: str) -> Any:
    """Import a class on first use: ``Evolution`` brings torch with it, the trainer much more."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
