"""The least memory that a run needs, compared with what is free before anything is allocated."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from eggroll_rl.config import OptimizerConfig, Recipe
from eggroll_rl.engines.device import device_name, device_of
from eggroll_rl.engines.local.choice import is_fused
from eggroll_rl.engines.memory import free_bytes, row_bytes
from eggroll_rl.es.int8 import Quantised
from eggroll_rl.es.stored_int8 import Int8Parameter
from eggroll_rl.models.blueprint import Blueprint
from eggroll_rl.models.int8 import empty_matrix, int8_linears
from eggroll_rl.system.errors import UsageError

ANSWER = 1024  # bytes of an answer and its records, at the least
REMEDIES = {
    "weights": "take a smaller model, engine.dtype=bfloat16 or weights=int8",
    "the fused step": "set engine.name=transformers, engine.dtype=bfloat16 or weights=int8",
    "fp32 masters": "add to parameters.frozen",
    "residuals": "add to parameters.frozen",
    "averages": "set optimizer.average=0, or add to parameters.frozen",
    "base weights": "set optimizer.anchor=0, or add to parameters.frozen",
    "optimizer": "set optimizer.name=sgd, or add to parameters.frozen",
    "the noise of a pair": "lower population.rank, or take from parameters.dense",
    "whitening": "set population.whitening=null, or add to parameters.frozen",
    "a row": "lower sampling.max_new_tokens, and evaluation.max_new_tokens where it is set",
    "all answers": "lower population.size or data.prompts",
    "votes": "take a smaller model",
    "states of the members": "lower population.size",
}


def least_bytes(recipe: Recipe, blueprint: Blueprint) -> dict[str, int]:
    """Bytes by part (the keys of ``REMEDIES``) where one row and one pair of the population run at a time."""
    element = torch.empty((), dtype=getattr(torch, recipe.engine.dtype)).element_size()
    population = recipe.population
    return {
        **model_bytes(recipe, blueprint),
        "the noise of a pair": 4 * sum(p.noise_elements(population.rank) for p in blueprint.evolved),
        "whitening": 2 * whitening_bytes(recipe, blueprint),  # moments are fp64 while they are measured
        "a row": row_bytes(blueprint.config, recipe.longest_answer, element),
        "all answers": recipe.rollouts * ANSWER,
    }


def model_bytes(recipe: Recipe, blueprint: Blueprint) -> dict[str, int]:
    """Bytes by part of the weights, and of masters, averages, anchors, residuals and optimizer state."""
    element = torch.empty((), dtype=getattr(torch, recipe.engine.dtype)).element_size()
    matrices = _int8_matrices(recipe, blueprint)
    kept = _int8_states(recipe, blueprint, matrices)
    residuals = sum(state["residual"].nbytes for state in kept if "residual" in state)
    states = sum(tensor.nbytes for state in kept for kind, tensor in state.items() if kind != "weight")
    floats = sum(p.numel() for name, p in blueprint.model.named_parameters() if name not in matrices)
    evolving = sum(parameter.numel for parameter in blueprint.evolved if parameter.name not in matrices)
    return {
        "weights": element * floats + sum(q.nbytes + scale.nbytes for q, scale in matrices.values()),
        "the fused step": fused_bytes(recipe, blueprint, matrices),
        "fp32 masters": 0 if element == 4 else 4 * evolving,
        "averages": 4 * evolving * bool(recipe.optimizer.average),
        "base weights": element * evolving * bool(recipe.optimizer.anchor),
        "residuals": residuals,
        "optimizer": 4 * evolving * states_of(recipe.optimizer) + states - residuals,
    }


def whitening_bytes(recipe: Recipe, blueprint: Blueprint) -> int:
    """Bytes of what whitens the noise of the evolved matrices."""
    matrices = [parameter for parameter in blueprint.evolved if parameter.kind == "lowrank"]
    return 0 if recipe.population.whitening is None else 4 * sum(parameter.shape[-1] ** 2 for parameter in matrices)


def state_bytes(recipe: Recipe, blueprint: Blueprint) -> int:
    """Bytes of what learns, its averages, its optimizer's state and the whitening, which is what a snapshot holds."""
    matrices, rule = _int8_matrices(recipe, blueprint), recipe.optimizer
    kept = _int8_states(recipe, blueprint, matrices)
    evolving = sum(parameter.numel for parameter in blueprint.evolved if parameter.name not in matrices)
    copies = 1 + bool(rule.average) + states_of(rule)
    learned = 4 * evolving * copies + sum(tensor.nbytes for state in kept for tensor in state.values())
    return learned + whitening_bytes(recipe, blueprint)


def _int8_matrices(recipe: Recipe, blueprint: Blueprint) -> dict[str, Quantised]:
    """The int8 matrices of a model by name, without values."""
    layers = int8_linears(blueprint.model) if recipe.weights == "int8" else {}
    return {f"{path}.weight": empty_matrix(layer) for path, layer in layers.items()}


def _int8_states(recipe: Recipe, blueprint: Blueprint, matrices: dict[str, Quantised]) -> list[dict[str, Tensor]]:
    """What learns of each int8 matrix that evolves, and its optimizer's state."""
    names = [parameter.name for parameter in blueprint.evolved if parameter.name in matrices]
    return [Int8Parameter(name, matrices[name], recipe.optimizer).state() for name in names]


def fused_bytes(recipe: Recipe, blueprint: Blueprint, int8: Collection[str]) -> int:
    """Bytes of what the fused step of an RWKV-7 holds besides the weights: normed embeddings in fp32, and the matrices
    that are fp32 in the order of its products.

    Args:
        int8: the names of matrices that are not.
    """
    model, engine = blueprint.model, recipe.engine
    if not is_fused(engine.name, device_name(engine.device), model, blueprint.evolved):
        return 0
    linears = {
        f"{path}.weight": module.weight for path, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    packed = [weight for name, weight in linears.items() if name not in int8 and engine.dtype == "float32"]
    return 4 * sum(weight.numel() for weight in (model.get_input_embeddings().get_parameter("weight"), *packed))


def states_of(optimizer: OptimizerConfig) -> int:
    """fp32 copies of the parameters that an optimizer keeps."""
    return int(optimizer.momentum > 0) if optimizer.name == "sgd" else 2


def check_memory(recipe: Recipe, blueprint: Blueprint) -> None:
    """Compare the least memory of a run in this process with what is free.

    Raises:
        UsageError: it is more; the message names the largest part, and what makes it smaller.
    """
    refuse_beyond_memory(least_bytes(recipe, blueprint), device_of(recipe.engine.device))


def refuse_beyond_memory(parts: Mapping[str, int], device: torch.device) -> None:
    """Refuse a run whose ``parts``, bytes by the keys of ``REMEDIES``, are more than the device has free.

    Raises:
        UsageError: as in ``check_memory``.
    """
    free, needed = free_bytes(device), sum(parts.values())
    if needed > free:
        largest = max(parts, key=lambda part: parts[part])
        raise UsageError(
            f"the run needs {size(needed)} of memory on {device}, {size(parts[largest])} of it for {largest}, and "
            f"{size(free)} are free: {REMEDIES[largest]}"
        )


def size(count: float) -> str:
    """A number of bytes, for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"
