"""How a floating-point parameter is stored and stepped: an fp32 master and a stock torch optimizer."""

from collections.abc import Mapping

import torch
from torch import Tensor

from eggroll_rl.config import OptimizerConfig
from eggroll_rl.es.population import Population
from eggroll_rl.es.tensors import Spec
from eggroll_rl.system.errors import UsageError


class FloatParameter:
    """A parameter and its fp32 master. An fp32 parameter is its own master; another dtype is written from the master
    after each step, so that no rounding accumulates.

    Attributes:
        master: fp32.
        average: running average of the master over the steps; None where the recipe has no ``optimizer.average``.
    """

    def __init__(self, parameter: Tensor, config: OptimizerConfig):
        self._parameter, self.master = parameter, parameter.float()
        self.average = self.master.clone() if config.average else None
        self._base = parameter.clone() if config.anchor else None
        self._optimizer, self._config = _optimizer(self.master, config), config

    def step(self, gradient: Tensor, lr: float, population: Population) -> Tensor:
        """Step along ``gradient``, fp32; returns the sum of the step's squares, a scalar tensor."""
        before = self.master.clone()
        self.master.grad = gradient.to(self.master.device)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self.master.grad = None
        if self._base is not None:
            self.master.lerp_(self._base.float(), self._config.anchor)
        if self.average is not None:
            self.average.lerp_(self.master, 1 - self._config.average)
        self.write()
        return before.sub_(self.master).square_().sum()

    def state(self) -> dict[str, Tensor]:
        """Master, average (if any) and the optimizer's tensors, by kind."""
        entries = self._optimizer.state[self.master].items()
        own = {"master": self.master, "average": self.average, **dict(entries)}
        return {kind: value for kind, value in own.items() if value is not None}

    def fits(self, specs: Mapping[str, Spec]) -> bool:
        """Whether tensors of these kinds can be what ``state`` returned."""
        own = {"master": self.master} | ({} if self.average is None else {"average": self.average})
        given = {kind: spec.shape for kind, spec in specs.items() if kind in ("master", "average")}
        return "master" in given and all(kind in own and own[kind].shape == shape for kind, shape in given.items())

    def make_room(self, specs: Mapping[str, Spec]) -> None:
        """Give the optimizer tensors of these kinds and no others, so that ``state`` has all that is to be restored;
        those that fit stay."""
        own = dict(self._optimizer.state.pop(self.master, {}))
        for kind, spec in specs.items():
            if kind not in ("master", "average"):
                device = "cpu" if kind == "step" else self.master.device  # where torch keeps a step count
                fits = kind in own and Spec.of(own[kind]) == spec
                tensor = own[kind] if fits else torch.empty(spec.shape, dtype=spec.dtype, device=device)
                self._optimizer.state[self.master][kind] = tensor

    @torch.no_grad()
    def exchange(self) -> None:
        """Swap master and average, if there is one; the parameter is written from the new master."""
        if self.average is not None:
            kept = self.master.clone()
            self.master.copy_(self.average)
            self.average.copy_(kept)
            self.write()

    def write(self) -> None:
        """Write the parameter from its master."""
        if self._parameter.dtype != torch.float32:
            self._parameter.copy_(self.master)


def _optimizer(master: Tensor, config: OptimizerConfig) -> torch.optim.Optimizer:
    if config.name == "sgd":
        return torch.optim.SGD([master], config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    if config.name == "votes":
        raise UsageError("optimizer.name=votes is for models of integers: choose sgd, adam or adamw")
    stock = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return stock([master], config.lr, betas=config.betas, weight_decay=config.weight_decay)
