"""Check that every evolved parameter can be perturbed where the model reads it; if not, say which to freeze."""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from eggroll_rl.config import ParametersConfig
from eggroll_rl.es.experts import is_experts
from eggroll_rl.es.int8 import Int8Linear
from eggroll_rl.es.parameters import EvolvedParameter
from eggroll_rl.es.products import PRODUCTS
from eggroll_rl.es.reading import Readings
from eggroll_rl.system.errors import UsageError

SHOWN = 8  # names in a message


def check_perturbable(
    module: nn.Module,
    evolved: Sequence[EvolvedParameter],
    readings: Readings | None = None,
    config: ParametersConfig | None = None,
) -> None:
    """Check that each evolved parameter is read where its noise is added, and nowhere else.

    Args:
        module: its parameter names are the canonical names; weights are not looked at.
        evolved: what is perturbed.
        readings: what a forward pass reads; None: unknown, so only layers of known kinds can be perturbed.
        config: the recipe's lists, to which the message adds names.

    Raises:
        UsageError: for all parameters at once that cannot be perturbed, with the override that freezes them.
    """
    tied = _tied(module)
    faults: dict[str, list[str]] = defaultdict(list)
    for parameter in evolved:
        fault = tied.get(parameter.name) or _fault(module, parameter, readings)
        if fault:
            faults[fault].append(parameter.name)
    if not faults:
        return
    refused = [name for names in faults.values() for name in names]
    reasons = "; ".join(
        fault if fault.endswith(TIED) else f"{summarised(names)} ({fault})" for fault, names in faults.items()
    )
    others = [parameter.name for parameter in evolved if parameter.name not in refused]
    raise UsageError(
        f"no perturbation is known for {reasons}: "
        + override(refused, others, config or ParametersConfig(frozen=(), dense=()))
    )


def check_whitenable(module: nn.Module, evolved: Sequence[EvolvedParameter]) -> None:
    """Check that the noise of every matrix can read whitened inputs.

    Raises:
        UsageError: one is a stack of experts, or of GPT-2's Conv1D, which is stored the other way round; or there is
            none.
    """
    if all(parameter.kind == "dense" for parameter in evolved):
        raise UsageError("population.whitening is for low-rank noise, and all noise here is dense: set it to null")
    layers = dict(module.named_modules())
    others = [
        parameter.name
        for parameter in evolved
        if parameter.kind == "lowrank"
        and (len(parameter.shape) > 2 or kind_of_layer(layers[parameter.name.rpartition(".")[0]]) == "conv1d")
    ]
    if others:
        raise UsageError(
            f"population.whitening is for matrices of linear layers, and {summarised(others)} are none: set "
            "population.whitening=null, or add them to parameters.frozen"
        )


TIED = "are one tied tensor, and a perturbation would miss one use of it"


def override(refused: Sequence[str], others: Sequence[str], config: ParametersConfig) -> str:
    """The ``key=value`` overrides, in words, with which ``refused`` are frozen and ``others`` still evolve."""
    globs = [glob for glob in map(_glob, refused) if not any(fnmatchcase(name, glob) for name in others)]
    exact = [name for name in refused if not any(fnmatchcase(name, glob) for glob in globs)]
    frozen = [*dict.fromkeys([*config.frozen, *globs, *exact])]
    text = f"add them to parameters.frozen: 'parameters.frozen={json.dumps(frozen)}'"
    dense = [glob for glob in config.dense if any(fnmatchcase(name, glob) for name in others)]
    return text if len(dense) == len(config.dense) else f"{text} 'parameters.dense={json.dumps(dense)}'"


def kind_of_layer(layer: nn.Module) -> str:
    """``linear``, ``conv1d`` (transformers' linear layer that stores [I, O]), ``norm``, ``experts`` or ``""``."""
    # exactly these: quantised layers of others and attention's output projection derive from nn.Linear and bypass or
    # change forward
    if type(layer) in (nn.Linear, Int8Linear):
        return "linear"
    if type(layer).__name__ == "Conv1D" and hasattr(layer, "nf"):
        return "conv1d"
    named = type(layer).__name__.endswith("RMSNorm") and (hasattr(layer, "eps") or hasattr(layer, "variance_epsilon"))
    if isinstance(layer, nn.LayerNorm) or named:  # transformers' own all name their epsilon so
        return "norm"
    return "experts" if is_experts(layer) else ""


def _fault(module: nn.Module, parameter: EvolvedParameter, readings: Readings | None) -> str:
    """Why a parameter cannot be perturbed; empty if it can."""
    path, _, attribute = parameter.name.rpartition(".")
    layer = module.get_submodule(path)
    found = readings.of.get(parameter.name, frozenset()) if readings else frozenset()
    elsewhere = sorted({reading.reader for reading in found if reading.reader != path})
    kind, why = kind_of_layer(layer), ""
    if elsewhere:
        why = f", read past it by {_glob(elsewhere[0])}"
    elif _is_known(kind, layer, attribute, parameter):
        if kind == "experts" or readings is None or all(map(readings.is_by_rows, readings.inputs.get(path, ()))):
            return ""
        why = ", which regroups the rows"
    elif readings and found and not kind and parameter.kind == "lowrank":
        others = sorted({reading.operation for reading in found} - PRODUCTS)
        axes = len(parameter.shape) - 2  # of a stack, before the rows
        if not others and all(readings.is_by_rows(reading.operand[axes:]) for reading in found):
            return ""
        why = f", read by {others[0]}" if others else ", which regroups the rows"
    return f"{parameter.kind}, in {type(layer).__name__}{why}"


def _is_known(kind: str, layer: nn.Module, attribute: str, parameter: EvolvedParameter) -> bool:
    """Whether a layer of this kind is perturbed by a hook on it."""
    if kind == "experts":
        return parameter.kind == "lowrank" and len(parameter.shape) == 3
    is_float = layer.get_parameter(attribute).is_floating_point() if attribute in ("weight", "bias") else False
    if not is_float and not (attribute == "weight" and type(layer) is Int8Linear):
        return False
    return kind in ("linear", "conv1d") or (kind == "norm" and (parameter.kind, len(parameter.shape)) == ("dense", 1))


def _tied(module: nn.Module) -> dict[str, str]:
    """Why a tensor that has several names cannot be perturbed, by each of them."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, tensor in module.named_parameters(remove_duplicate=False):
        names[id(tensor)].append(name)
    return {name: f"{' and '.join(same)} {TIED}" for same in names.values() if len(same) > 1 for name in same}


def _glob(name: str) -> str:
    """A glob for the same parameter in every layer."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def summarised(names: Sequence[str]) -> str:
    """The names as text: of a parameter that is in several layers the first, and at most ``SHOWN`` in all."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names:
        alike[_glob(name)].append(name)
    shown = [same[0] + (f" (and {len(same) - 1} alike)" if len(same) > 1 else "") for same in alike.values()]
    return ", ".join(shown[:SHOWN]) + (f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else "")
