"""Fine-tune the reasoning of language models with EGGROLL: low-rank evolution strategies, no backpropagation."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eggroll_rl.evolution import Evolution

__all__ = ["Evolution", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import ``Evolution``, and with it torch, on first use."""
    if name != "Evolution":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from eggroll_rl.evolution import Evolution

    return Evolution
