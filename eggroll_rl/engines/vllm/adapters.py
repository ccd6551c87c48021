"""The adapters that a recipe needs in vLLM: their rank, number and bytes, from shapes alone, without vLLM."""

from collections.abc import Sequence

import torch
from torch import nn

from eggroll_rl.config import Recipe
from eggroll_rl.es.parameters import EvolvedParameter
from eggroll_rl.es.perturbable import override, summarised
from eggroll_rl.models.blueprint import Blueprint
from eggroll_rl.system.errors import UsageError

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # of vLLM's adapters; ranks between are padded with zeros


def evolved_of(blueprint: Blueprint) -> list[EvolvedParameter]:
    """The evolved parameters of a model, all of them matrices with low-rank noise.

    Raises:
        UsageError: dense noise, or stacks of experts, which adapters cannot hold.
    """
    others = [p.name for p in blueprint.evolved if p.kind == "dense" or len(p.shape) > 2]
    if others:
        matrices = [parameter.name for parameter in blueprint.evolved if parameter.name not in others]
        raise UsageError(
            f"engine vllm perturbs matrices with low-rank noise alone, not {summarised(others)}: set "
            f"engine.name=transformers, or take the glob out of parameters.dense and "
            f"{override(others, matrices, blueprint.parameters)}"
        )
    return list(blueprint.evolved)


def slotted_of(blueprint: Blueprint) -> list[EvolvedParameter]:
    """The matrices that have slots: those that evolve and, beside a head alone, one kind of the layers', because vLLM
    makes no adapters of a head alone. The slots of these stay zero.

    Raises:
        UsageError: see ``evolved_of``; or beside a head alone there is no such matrix.
    """
    evolved, model = evolved_of(blueprint), blueprint.model
    head = model.get_output_embeddings().weight
    if any(model.get_parameter(parameter.name) is not head for parameter in evolved):
        return evolved
    linears = {
        name: module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.weight is not head
    }
    last = next((name for name in reversed(linears) if linears[name].shape[0] == head.shape[1]), None)
    if last is None:  # such as write to the residual stream are neither fused with others nor routers
        raise UsageError(
            f"vLLM makes no adapters of the head alone ({evolved[0].name}): let matrices of the layers evolve, too, by "
            "parameters.frozen, or set engine.name=local"
        )
    kind = last.rpartition(".")[2]  # vLLM chooses layers by their last name
    return evolved + [
        EvolvedParameter(f"{name}.weight", tuple(weight.shape), "lowrank")
        for name, weight in linears.items()
        if name.rpartition(".")[2] == kind
    ]


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
    """How many members answer at a time, each in a slot."""
    return min(recipe.engine.vllm.slots or recipe.population.size, recipe.population.size)


def slot_bytes(recipe: Recipe, slotted: Sequence[EvolvedParameter]) -> int:
    """Memory of one slot: rank x (in + out) of every matrix that has slots."""
    element = torch.empty((), dtype=getattr(torch, recipe.engine.dtype)).element_size()
    return adapter_rank(recipe.population.rank) * sum(sum(parameter.shape) for parameter in slotted) * element
