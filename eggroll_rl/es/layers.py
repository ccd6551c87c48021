"""An ordinary torch module answers for a whole population: forward hooks add what is each member's own.

The weights stay untouched and nothing is replaced. Linear layers (and GPT-2's Conv1D) take low-rank or dense noise,
biases and the vectors of norm layers take dense noise. Not here: embeddings, convolutions, quantised layers, experts.

Legend: M rows (members x prompts, member-major), K pairs, O out, I in, r rank.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eggroll_rl.es.lowrank import add_lowrank_, by_pair, materialize
from eggroll_rl.es.noise import Factors, Noise, Seeds
from eggroll_rl.es.parameters import EvolvedParameter
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
        self.active: Active | None = None
        self._handles = [
            module.get_submodule(path).register_forward_hook(partial(self._perturb, path, names), with_kwargs=True)
            for path, names in owned.items()
        ]

    @contextmanager
    def members(
        self,
        factors: Mapping[str, Factors | Seeds | Tensor],
        coefficient_M: Tensor,
        pair_M: Tensor | None = None,
        dense_coefficient_M: Tensor | None = None,
    ) -> Iterator[None]:
        """Inside, row m of every layer's batch belongs to a member.

        Args:
            factors: what ``Noise.draw`` or ``Noise.seeds`` gives for K pairs.
            coefficient_M: [M], sign * sigma / sqrt(r), of the activations' dtype.
            pair_M: [M] int64 into the K pairs; None: M / K consecutive rows for each pair, in order.
            dense_coefficient_M: [M], sign * sigma; wanted where a dense parameter evolves.
        """
        if self._dense and dense_coefficient_M is None:
            raise ValueError("dense parameters evolve: give dense_coefficient_M")
        before = self.active
        self.active = Active(factors, coefficient_M, pair_M, dense_coefficient_M)
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
            active.add_vector_(y, active.factors[names["bias"]], None)
        if "weight" in names:
            noise = active.factors[names["weight"]]
            if _is_norm(layer):
                active.add_vector_(y, noise, _normalised(layer, x))
            else:
                active.add_matrix_(y, x, _transposed(noise) if _is_conv1d(layer) else noise)
        return y


class Active(NamedTuple):
    """The members in the rows of the batch."""

    factors: Mapping[str, Factors | Seeds | Tensor]
    coefficient_M: Tensor
    pair_M: Tensor | None
    dense_coefficient_M: Tensor | None

    def add_matrix_(self, y: Tensor, x: Tensor, noise: Factors | Seeds | Tensor) -> None:
        """``y += c * x E^T`` with E = A B^T, or E [K, O, I] itself."""
        if isinstance(noise, Factors):
            add_lowrank_(y, x, *noise, self.coefficient_M, self.pair_M)
            return
        if isinstance(noise, Seeds):
            from eggroll_rl.es.kernels.lowrank import add_regenerated_

            add_regenerated_(y, x, noise, self.coefficient_M, self.pair_M)
            return
        E_KOI = self._of_rows(noise)
        by_pair(y, len(E_KOI)).baddbmm_(by_pair(self._scaled(x), len(E_KOI)), E_KOI.mT)

    def add_vector_(self, y: Tensor, noise: Factors | Seeds | Tensor, x: Tensor | None) -> None:
        """``y += c * x * E`` with E [K, O]; x None: ones."""
        assert isinstance(noise, Tensor)
        E_KO = self._of_rows(noise)
        x_M_O = self._scaled(torch.ones_like(y[..., :1]) if x is None else x)
        by_pair(y, len(E_KO)).addcmul_(by_pair(x_M_O, len(E_KO)), E_KO[:, None])

    def _of_rows(self, noise: Tensor) -> Tensor:
        return noise if self.pair_M is None else noise.index_select(0, self.pair_M)

    def _scaled(self, x: Tensor) -> Tensor:
        assert self.dense_coefficient_M is not None
        return (x * self.dense_coefficient_M.view(-1, *[1] * (x.ndim - 1))).contiguous()


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
        weight, perturbation = parameters[parameter.name].detach().float(), drawn[parameter.name]
        if isinstance(perturbation, Factors):
            A_KOr, B_KIr = perturbation
            state[parameter.name] = materialize(weight, A_KOr[0], B_KIr[0], sign * population.scale)
        else:
            state[parameter.name] = weight + sign * population.config.sigma * perturbation[0]
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


def _transposed(noise: Factors | Seeds | Tensor) -> Factors | Seeds | Tensor:
    """Noise of a weight [I, O] as noise of [O, I]."""
    if isinstance(noise, Seeds):
        return noise._replace(stream_A=noise.stream_B, stream_B=noise.stream_A)
    return Factors(noise.B_KIr, noise.A_KOr) if isinstance(noise, Factors) else noise.mT
