"""What a recipe wants of vLLM's adapters: arithmetic on shapes, without vLLM."""

from collections.abc import Sequence

import torch

from eggroll_rl.config import Recipe
from eggroll_rl.es.parameters import EvolvedParameter, select
from eggroll_rl.models.loading import empty_model
from eggroll_rl.system.errors import UsageError

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has adapters of; a rank between is padded with zeros


def evolved_of(recipe: Recipe) -> list[EvolvedParameter]:
    """What evolves of the recipe's model, all of it low-rank.

    Raises:
        UsageError: dense noise, which adapters cannot hold.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in empty_model(recipe.model).named_parameters()}
    evolved = select(shapes, recipe.parameters)
    dense = [parameter.name for parameter in evolved if parameter.kind == "dense"]
    if dense:
        more = f" and {len(dense) - 8} more" if len(dense) > 8 else ""
        raise UsageError(
            f"engine vllm perturbs matrices with low-rank noise alone, not {', '.join(dense[:8])}{more}: take the glob "
            "out of parameters.dense and add it to parameters.frozen, or set engine.name=transformers"
        )
    return evolved


def adapter_rank(rank: int) -> int:
    """The smallest rank of adapters in vLLM that holds ``rank``.

    Raises:
        UsageError: there is none.
    """
    held = next((size for size in RANKS if size >= rank), None)
    if held is None:
        raise UsageError(f"population.rank={rank}: vLLM holds adapters of rank {RANKS[-1]} at most")
    return held


def slots_of(recipe: Recipe) -> int:
    """How many members answer at a time."""
    return min(recipe.engine.vllm.slots or recipe.population.size, recipe.population.size)


def slot_bytes(recipe: Recipe, evolved: Sequence[EvolvedParameter]) -> int:
    """Memory of one slot: rank x (in + out) of every matrix."""
    element = torch.empty((), dtype=getattr(torch, recipe.engine.dtype)).element_size()
    return adapter_rank(recipe.population.rank) * sum(sum(parameter.shape) for parameter in evolved) * element
