"""An ordinary torch module answers for a whole population: forward hooks add what is each member's own.

The weights stay untouched and nothing is replaced. Linear layers (and GPT-2's Conv1D) take low-rank or dense noise,
biases and the vectors of norm layers take dense noise. Not here: embeddings, convolutions, quantised layers, experts.

Legend: M rows (members x prompts, member-major), K pairs, O out, I in, r rank.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eggroll_rl.es.noise import Noise
from eggroll_rl.es.parameters import EvolvedParameter
from eggroll_rl.es.perturbation import Members, Perturbation
from eggroll_rl.es.population import Population
from eggroll_rl.system.errors import UsageError


class PopulationLayers:
    """Hooks on the layers that own the evolved parameters; idle outside ``members``.

    ``active`` says who is in the rows at the moment, None outside ``members``.

    Args:
        module: its parameter names are the canonical names.
        evolved: what is perturbed.

    Raises:
        UsageError: a parameter's layer cannot be perturbed, or its tensor is tied to another.
    """

    def __init__(self, module: nn.Module, evolved: Sequence[EvolvedParameter]) -> None:
        _refuse_tied(module, evolved)
        _refuse_unsupported(module, evolved)
        owned: dict[str, dict[str, str]] = defaultdict(dict)
        for parameter in evolved:
            path, _, attribute = parameter.name.rpartition(".")
            owned[path][attribute] = parameter.name
        self._dense = any(parameter.kind == "dense" for parameter in evolved)
        self.active: Members | None = None
        self._handles = [
            module.get_submodule(path).register_forward_hook(partial(self._perturb, path, names), with_kwargs=True)
            for path, names in owned.items()
        ]

    @contextmanager
    def members(
        self,
        noise: Mapping[str, Perturbation],
        coefficient_M: Tensor,
        pair_M: Tensor | None = None,
        dense_coefficient_M: Tensor | None = None,
    ) -> Iterator[None]:
        """Inside, row m of every layer's batch belongs to a member; the arguments are those of ``Members``, the noise
        what ``Noise.draw`` or ``Noise.seeds`` gives."""
        if self._dense and dense_coefficient_M is None:
            raise ValueError("dense parameters evolve: give dense_coefficient_M")
        before = self.active
        self.active = Members(noise, coefficient_M, pair_M, dense_coefficient_M)
        try:
            yield
        finally:
            self.active = before

    def remove(self) -> None:
        """Take the hooks off the module."""
        for handle in self._handles:
            handle.remove()

    def _perturb(
        self,
        path: str,
        names: dict[str, str],
        layer: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        y: Tensor,
    ) -> Tensor:
        active = self.active
        if active is None:
            return y
        y = y.contiguous()
        x = args[0] if args else next(iter(kwargs.values()))
        if len(x) != len(active.coefficient_M):
            raise UsageError(
                f"{path} ({type(layer).__name__}) received {len(x)} rows where the population has "
                f"{len(active.coefficient_M)}, so whose they are is unknown: add {sorted(names.values())} to "
                "parameters.frozen"
            )
        if "bias" in names:
            active.noise[names["bias"]].add_vector_(y, None, active)
        if "weight" in names:
            noise = active.noise[names["weight"]]
            if _is_norm(layer):
                noise.add_vector_(y, _normalised(layer, x), active)
            else:
                (noise.mT if _is_conv1d(layer) else noise).add_product_(y, x, active)
        return y


def materialized_state(
    parameters: Mapping[str, Tensor],
    evolved: Sequence[EvolvedParameter],
    noise: Noise,
    population: Population,
    member: int,
) -> dict[str, Tensor]:
    """The evolved parameters of one member, whole, in fp32: ``W + sign * sigma * E``."""
    pair, sign = population.pair(member), population.sign(member)
    drawn = noise.draw(evolved, population.epoch, range(pair, pair + 1), torch.float32)
    state = {}
    for parameter in evolved:
        weight, amount = parameters[parameter.name].detach().float(), sign * population.config.sigma
        state[parameter.name] = drawn[parameter.name].added_to(weight, 0, amount, population.config.rank)
    return state


def _refuse_tied(module: nn.Module, evolved: Sequence[EvolvedParameter]) -> None:
    names: dict[int, list[str]] = defaultdict(list)
    for name, tensor in module.named_parameters(remove_duplicate=False):
        names[id(tensor)].append(name)
    wanted = {parameter.name for parameter in evolved}
    for tied in names.values():
        if len(tied) > 1 and wanted.intersection(tied):
            raise UsageError(
                f"{' and '.join(tied)} are one tied tensor, and a perturbation would miss one use of it: "
                "add both to parameters.frozen"
            )


def _refuse_unsupported(module: nn.Module, evolved: Sequence[EvolvedParameter]) -> None:
    refused = []
    for parameter in evolved:
        layer = module.get_submodule(parameter.name.rpartition(".")[0])
        if not _supports(layer, parameter):
            refused.append(f"{parameter.name} ({parameter.kind}, in {type(layer).__name__})")
    if refused:
        more = f" and {len(refused) - 8} more" if len(refused) > 8 else ""
        raise UsageError(f"no perturbation is known for {', '.join(refused[:8])}{more}: add them to parameters.frozen")


def _supports(layer: nn.Module, parameter: EvolvedParameter) -> bool:
    attribute = parameter.name.rpartition(".")[2]
    if attribute not in ("weight", "bias") or not layer.get_parameter(attribute).is_floating_point():
        return False
    if _is_norm(layer):
        return parameter.kind == "dense" and len(parameter.shape) == 1
    # exactly nn.Linear: quantised layers and attention's output projection derive from it and bypass or change forward
    return type(layer) is nn.Linear or _is_conv1d(layer)


def _is_conv1d(layer: nn.Module) -> bool:
    """transformers' Conv1D: a linear layer that stores its weight as [I, O]."""
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")


def _is_norm(layer: nn.Module) -> bool:
    """LayerNorm, RMSNorm, or one of transformers' own, which all name their epsilon so."""
    named = type(layer).__name__.endswith("RMSNorm")
    return isinstance(layer, nn.LayerNorm) or (named and (hasattr(layer, "eps") or hasattr(layer, "variance_epsilon")))


def _normalised(layer: Any, x: Tensor) -> Tensor:
    """What a norm layer multiplies by its weight (or by 1 + weight)."""
    shape = x.shape[-1:]
    if isinstance(layer, nn.LayerNorm):
        return F.layer_norm(x, shape, eps=layer.eps)
    if isinstance(layer, nn.RMSNorm):
        return F.rms_norm(x, shape, eps=layer.eps)
    eps = layer.variance_epsilon if hasattr(layer, "variance_epsilon") else layer.eps
    return F.rms_norm(x.float(), shape, eps=eps).to(x.dtype)
