"""Run an ordinary torch module for a whole population: hooks on its layers add each member's own perturbation.

The weights are not changed. Linear layers (and GPT-2's Conv1D) take low-rank or dense noise, biases and the vectors of
norm layers take dense noise, stacks of experts low-rank noise for each expert. Where a forward pass has been watched
(``eggroll_rl.es.reading``), layers may see the rows flattened, [rows x tokens, width], and modules that multiply by a
matrix of their own, such as routers, take low-rank noise too. Embeddings, convolutions and quantised layers take none.

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

from eggroll_rl.es.experts import experts_forward
from eggroll_rl.es.noise import Noise
from eggroll_rl.es.parameters import EvolvedParameter
from eggroll_rl.es.perturbable import check_perturbable, kind_of_layer
from eggroll_rl.es.perturbation import Members, Perturbation
from eggroll_rl.es.population import Population
from eggroll_rl.es.products import Products
from eggroll_rl.es.reading import Readings
from eggroll_rl.system.errors import UsageError


class PopulationLayers:
    """Hooks on the layers that own the evolved parameters; idle outside ``members``.

    Args:
        module: its parameter names are the canonical names.
        evolved: what is perturbed.
        readings: what a forward pass of such a module reads; None: unknown.

    Attributes:
        active: the members whose rows the forward pass has now; None: the module runs unperturbed.

    Raises:
        UsageError: see ``check_perturbable``.
    """

    def __init__(
        self, module: nn.Module, evolved: Sequence[EvolvedParameter], readings: Readings | None = None
    ) -> None:
        check_perturbable(module, evolved, readings)
        owned: dict[str, dict[str, str]] = defaultdict(dict)
        for parameter in evolved:
            path, _, attribute = parameter.name.rpartition(".")
            owned[path][attribute] = parameter.name
        self._dense = any(parameter.kind == "dense" for parameter in evolved)
        self._is_watched = readings is not None
        self.active: Members | None = None
        self._handles: list[Any] = []
        for path, names in owned.items():
            self._handles += self._hooks(path, names, module.get_submodule(path))

    @contextmanager
    def members(
        self,
        noise: Mapping[str, Perturbation],
        coefficient_M: Tensor,
        pair_M: Tensor | None = None,
        dense_coefficient_M: Tensor | None = None,
    ) -> Iterator[None]:
        """In the block, row m of every layer's batch belongs to a member. The arguments are those of ``Members``; the
        noise comes from ``Noise.draw`` or ``Noise.seeds``."""
        if self._dense and dense_coefficient_M is None:
            raise ValueError("dense parameters evolve: give dense_coefficient_M")
        with self.of(Members(noise, coefficient_M, pair_M, dense_coefficient_M)):
            yield

    @contextmanager
    def of(self, members: Members | None) -> Iterator[None]:
        """In the block, the rows of every layer's batch belong to these members; None: the module runs unperturbed."""
        before = self.active
        self.active = members
        try:
            yield
        finally:
            self.active = before

    def remove(self) -> None:
        """Take the hooks off the module."""
        for handle in self._handles:
            handle.remove()

    def _hooks(self, path: str, names: dict[str, str], layer: nn.Module) -> list[Any]:
        """The hooks of one layer, by its kind."""
        kind = kind_of_layer(layer)
        if kind == "experts":
            layer.forward = partial(self._experts, names, layer, layer.forward)  # its output is no product
            return [_Restored(layer)]
        if kind:
            return [layer.register_forward_hook(partial(self._perturb, path, names, kind), with_kwargs=True)]
        own = {names[attribute]: layer.get_parameter(attribute) for attribute in names}
        entered: list[Products] = []
        return [
            layer.register_forward_pre_hook(partial(self._enter, own, entered)),
            layer.register_forward_hook(partial(self._leave, entered), always_call=True),
        ]

    def _perturb(
        self,
        path: str,
        names: dict[str, str],
        kind: str,
        layer: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        y: Tensor,
    ) -> Tensor:
        active = self.active
        if active is None:
            return y
        y = y.contiguous()
        x, rows, out = args[0] if args else next(iter(kwargs.values())), len(active.coefficient_M), y
        if len(x) != rows and self._is_watched and len(x) % rows == 0:
            x, out = (tensor.reshape(rows, -1, *tensor.shape[1:]) for tensor in (x, y))
        if len(x) != rows:
            raise UsageError(
                f"{path} ({type(layer).__name__}) received {len(x)} rows where the population has {rows}, so whose "
                f"they are is unknown: add {sorted(names.values())} to parameters.frozen"
            )
        if "bias" in names:
            active.noise[names["bias"]].add_vector_(out, None, active)
        if "weight" in names:
            noise = active.noise[names["weight"]]
            if kind == "norm":
                noise.add_vector_(out, _normalised(layer, x), active)
            else:
                (noise.mT if kind == "conv1d" else noise).add_product_(out, x, active)
        return y

    def _experts(self, names: dict[str, str], layer: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The forward pass of a layer of experts in which each row uses its own member's experts."""
        active = self.active
        if active is None:
            return forward(*args, **kwargs)
        noise = {attribute: active.noise[name] for attribute, name in names.items()}
        return experts_forward(layer, noise, active, *args, **kwargs)

    def _enter(self, own: dict[str, nn.Parameter], entered: list[Products], *_: Any) -> None:
        if self.active is not None:
            entered.append(Products(own, self.active))
            entered[-1].__enter__()

    def _leave(self, entered: list[Products], *_: Any) -> None:
        if entered:
            entered.pop().__exit__(None, None, None)


class _Restored:
    """A handle, like that of a hook, whose ``remove`` restores the forward pass of the layer's class."""

    def __init__(self, layer: nn.Module):
        self._layer = layer

    def remove(self) -> None:
        del self._layer.forward


def materialized_state(
    parameters: Mapping[str, Tensor],
    evolved: Sequence[EvolvedParameter],
    noise: Noise,
    population: Population,
    member: int,
) -> dict[str, Tensor]:
    """The evolved parameters of one member in fp32, by name: ``W + sign * sigma * E``."""
    pair, sign = population.pair(member), population.sign(member)
    drawn = noise.draw(evolved, population.epoch, range(pair, pair + 1), torch.float32)
    state = {}
    for parameter in evolved:
        weight, amount = parameters[parameter.name].detach().float(), sign * population.sigma
        state[parameter.name] = drawn[parameter.name].added_to(weight, 0, amount, population.config.rank)
    return state


def _normalised(layer: Any, x: Tensor) -> Tensor:
    """The normalised input of a norm layer, which it multiplies by its weight (or by 1 + weight)."""
    shape = x.shape[-1:]
    if isinstance(layer, nn.LayerNorm):
        return F.layer_norm(x, shape, eps=layer.eps)
    if isinstance(layer, nn.RMSNorm):
        return F.rms_norm(x, shape, eps=layer.eps)
    eps = layer.variance_epsilon if hasattr(layer, "variance_epsilon") else layer.eps
    return F.rms_norm(x.float(), shape, eps=eps).to(x.dtype)
