"""The update: fitness weights and seeds in, one step of a stock torch optimizer out.

``g = -1 / (N sigma) * sum_i w_i s_i E_i`` (EGGROLL, arXiv 2511.16652, section 3) in fp32, one parameter at a time.

Legend: N members, K pairs, O out, I in, r rank.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from eggroll_rl.config import OptimizerConfig
from eggroll_rl.es.integers import pack_signs, unpack_signs
from eggroll_rl.es.noise import Noise
from eggroll_rl.es.parameters import EvolvedParameter
from eggroll_rl.es.population import Population
from eggroll_rl.system.errors import NotFinite, UsageError

LARGEST = 7.0  # that a normal number drawn from 32 bits can be, rounded up
SAFE = 1e18  # squares of what is smaller are finite in fp32, and adding it to what is finite does not overflow
SHOWN = 4  # names in a message
_CHUNK = 2**24  # noise elements at once; a constant, so that a replay adds up in the same order everywhere


class _Update(NamedTuple):
    population: Population
    weights: tuple[float, ...]
    lr: float


class Update(_Update):
    """All that a generation hands to the optimizers: the population, N fitness weights and the learning rate, all
    finite."""

    __slots__ = ()

    def __new__(cls, population: Population, weights: tuple[float, ...], lr: float) -> Self:
        assert all(map(math.isfinite, weights)), "fitness weights are finite"
        assert math.isfinite(lr), "a learning rate is finite"
        return super().__new__(cls, population, weights, lr)

    @classmethod
    def of(cls, population: Population, weights: "str | Sequence[float]", lr: float) -> Self:
        """The update with these weights, or with those that ``packed`` gave."""
        if isinstance(weights, str):
            sign_K = unpack_signs(weights, population.size // 2)
            weights = torch.stack([sign_K, -sign_K], 1).flatten().double().tolist()
        return cls(population, tuple(weights), lr)

    def packed(self) -> "str | tuple[float, ...]":
        """The weights; where they only say which of each pair did better (1 and -1, or 0 and 0), two bits for each pair
        as text."""
        first_K, second_K = (torch.tensor(self.weights[side::2], dtype=torch.float64) for side in (0, 1))
        signs = len(self.weights) % 2 == 0 and torch.equal(first_K, -second_K) and torch.equal(first_K, first_K.sign())
        return pack_signs(first_K.to(torch.int8)) if signs else self.weights

    def __reduce__(self) -> tuple[Any, ...]:
        return self.of, (self.population, self.packed(), self.lr)


def gradient(parameter: EvolvedParameter, weights_K: Tensor, noise: Noise, population: Population) -> Tensor:
    """``-1 / (N sigma) * sum_k c_k E_k``, fp32, of the parameter's shape.

    Args:
        weights_K: fp32 [K], ``population.pair_weights`` of the fitness weights.
    """
    if noise.rank != population.config.rank:
        raise ValueError(f"noise of rank {noise.rank} for a population of rank {population.config.rank}")
    chunk = max(1, _CHUNK // parameter.noise_elements(noise.rank))
    total = torch.zeros(parameter.shape, dtype=torch.float32, device=noise.device)
    for start in range(0, population.pairs, chunk):
        pairs = range(start, min(start + chunk, population.pairs))
        drawn = noise.draw([parameter], population.epoch, pairs, torch.float32)[parameter.name]
        drawn.add_sum_(total, weights_K[pairs.start : pairs.stop])
    rank = 1 if parameter.kind == "dense" else noise.rank
    return total.mul_(-1 / (population.size * population.sigma * rank**0.5))


class FloatLearner:
    """fp32 master weights of the evolved parameters, and an optimizer for each.

    A parameter that is fp32 is its own master; any other is overwritten from its master after each step, so that no
    rounding accumulates. One optimizer for each parameter lets one gradient live at a time. Where the recipe wants an
    average of the weights, it begins as the base weights are.

    Args:
        parameters: canonical name -> tensor of the model; at least the evolved ones.
        evolved: what to learn.
        config: which optimizer; the rate comes with each update.
        noise: draws the perturbations again.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        evolved: Sequence[EvolvedParameter],
        config: OptimizerConfig,
        noise: Noise,
    ) -> None:
        self.evolved, self.noise = list(evolved), noise
        self._parameters = {parameter.name: parameters[parameter.name].detach() for parameter in evolved}
        self.masters = {name: tensor.float() for name, tensor in self._parameters.items()}
        self.averages = {name: master.clone() for name, master in self.masters.items()} if config.average else {}
        self._base = {name: tensor.clone() for name, tensor in self._parameters.items()} if config.anchor else {}
        self._optimizers = {name: _optimizer(master, config) for name, master in self.masters.items()}
        self._config, self._is_wild = config, False

    def step(self, update: Update) -> float:
        """Take one step and return its RMS over all evolved elements."""
        squares = sum(self.squared_step(update).values())
        return math.sqrt(squares / sum(parameter.numel for parameter in self.evolved))

    @torch.no_grad()
    def squared_step(self, update: Update) -> dict[str, float]:
        """Take one step and return the sum of its squares for each parameter.

        Raises:
            NotFinite: the step overflows somewhere; masters, parameters and optimizers are as before.
        """
        population = update.population
        if not self._is_wild and self._largest_step(update) < SAFE:
            return self._squared_step(update)
        self._is_wild = True  # weights may be so large now that an ordinary step of decay overflows
        kept = {key: tensor.clone() for key, tensor in self.state_dict().items()}
        squares = self._squared_step(update)
        lost = [name for name, square in squares.items() if not (math.isfinite(square) and self._is_finite(name))]
        if lost:
            self.load_state_dict(kept)
            raise NotFinite(
                f"the step overflows in {', '.join(lost[:SHOWN])}"
                f"{f' and {len(lost) - SHOWN} more' if len(lost) > SHOWN else ''}: lower optimizer.lr (here "
                f"{update.lr:g}), or raise population.sigma ({population.sigma:g})"
            )
        return squares

    def _largest_step(self, update: Update) -> float:
        """A bound on what an element of a gradient or a step can be, from numbers alone; infinite where weight decay
        would make weights grow."""
        population, rule = update.population, self._config
        if max(rule.weight_decay, update.lr * rule.weight_decay) > 1 - rule.momentum:
            return math.inf
        scale = population.size * population.sigma
        gradient = LARGEST**2 * population.config.rank**0.5 * sum(map(abs, update.weights)) / scale
        pushed = gradient / (1 - rule.momentum)
        return max(gradient, pushed, update.lr, update.lr * pushed)

    def _is_finite(self, name: str) -> bool:
        return all(bool(tensor.isfinite().all()) for tensor in (self.masters[name], *self._states(name).values()))

    def _squared_step(self, update: Update) -> dict[str, float]:
        population = update.population
        pair_weights = population.pair_weights(update.weights)
        weights_K = torch.tensor(pair_weights, dtype=torch.float32, device=self.noise.device)
        self.noise.prefetch(self.evolved, population.epoch, range(population.pairs))
        squares = []
        for parameter in self.evolved:
            master = self.masters[parameter.name]
            before = master.clone()
            master.grad = gradient(parameter, weights_K, self.noise, population).to(master.device)
            self._step(parameter.name, update.lr)
            master.grad = None
            squares.append(before.sub_(master).square_().sum().to(self.noise.device, torch.float64))
        return dict(zip(self.masters, torch.stack(squares).tolist(), strict=True))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model's parameters are the averages, where there are any."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()

    @torch.no_grad()
    def exchange(self) -> None:
        """Let masters and averages change places; the model's parameters follow."""
        for name, average in self.averages.items():
            master = self.masters[name]
            kept = master.clone()
            master.copy_(average)
            average.copy_(kept)
            self._write(name)

    def state_dict(self) -> dict[str, Tensor]:
        """Masters, averages and optimizer state as ``kind.name`` -> tensor, flat, as safetensors wants it."""
        state = {f"master.{name}": master for name, master in self.masters.items()}
        state |= {f"average.{name}": average for name, average in self.averages.items()}
        for name in self.masters:
            state |= {f"{kind}.{name}": value for kind, value in self._states(name).items()}
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over masters and optimizer state; the model's parameters follow.

        Raises:
            ValueError: the state is of other parameters or shapes.
        """
        given = {
            name: tensor.shape for key, tensor in state.items() for kind, name in [_split(key)] if kind == "master"
        }
        own = {name: master.shape for name, master in self.masters.items()}
        if given != own:
            differing = sorted(name for name in given.keys() | own.keys() if given.get(name) != own.get(name))
            raise ValueError(f"the saved state does not fit this model and recipe: {', '.join(differing[:8])} differ")
        for optimizer in self._optimizers.values():
            optimizer.state.clear()
        for key, tensor in state.items():
            kind, name = _split(key)
            master = self.masters[name]
            if kind == "master":
                master.copy_(tensor)
                self._write(name)
            elif kind == "average":
                self.averages[name].copy_(tensor)
            else:
                device = "cpu" if kind == "step" else master.device  # where torch keeps a step count
                self._optimizers[name].state[master][kind] = tensor.to(device, copy=True)

    def _states(self, name: str) -> dict[str, Tensor]:
        """What the optimizer keeps of a parameter, by kind."""
        entries = self._optimizers[name].state[self.masters[name]].items()
        return {kind: value for kind, value in entries if value is not None}

    def _step(self, name: str, lr: float) -> None:
        optimizer = self._optimizers[name]
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        if self._base:
            self.masters[name].lerp_(self._base[name].float(), self._config.anchor)
        if self.averages:
            self.averages[name].lerp_(self.masters[name], 1 - self._config.average)
        self._write(name)

    def _write(self, name: str) -> None:
        if self._parameters[name].dtype != torch.float32:
            self._parameters[name].copy_(self.masters[name])


def _split(key: str) -> tuple[str, str]:
    kind, _, name = key.partition(".")
    return kind, name


def _optimizer(master: Tensor, config: OptimizerConfig) -> torch.optim.Optimizer:
    if config.name == "sgd":
        return torch.optim.SGD([master], config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    if config.name == "votes":
        raise UsageError("optimizer.name=votes is for models of integers: choose sgd, adam or adamw")
    stock = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return stock([master], config.lr, betas=config.betas, weight_decay=config.weight_decay)
