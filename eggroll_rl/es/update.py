"""The update: fitness weights and seeds in, one step of a stock torch optimizer out.

``g = -1 / (N sigma) * sum_i w_i s_i E_i`` (EGGROLL, arXiv 2511.16652, section 3) in fp32, one parameter at a time.

Legend: N members, K pairs, O out, I in, r rank.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from eggroll_rl.config import OptimizerConfig
from eggroll_rl.es.int8 import Quantised
from eggroll_rl.es.integers import pack_signs, unpack_signs
from eggroll_rl.es.noise import Noise
from eggroll_rl.es.parameters import EvolvedParameter
from eggroll_rl.es.population import Population
from eggroll_rl.es.stored_float import FloatParameter
from eggroll_rl.es.stored_int8 import Int8Parameter
from eggroll_rl.es.tensors import Spec, rows_of, streamed
from eggroll_rl.system.errors import NotFinite

LARGEST_NORMAL = 7.0  # the largest normal number that 32 random bits can give, rounded up
SAFE = 1e18  # steps below it have finite squares in fp32, and do not overflow weights
SHOWN = 4  # names in a message
WHITENING = "whitening"  # the kind of ``Noise.whitening`` in a state
_CHUNK = 2**24  # noise elements at once; a constant, so that a replay adds up in the same order everywhere


class _Update(NamedTuple):
    population: Population
    weights: tuple[float, ...]
    lr: float


class Update(_Update):
    """All that a step needs of a generation: the population, N fitness weights and the learning rate, all finite."""

    __slots__ = ()

    def __new__(cls, population: Population, weights: tuple[float, ...], lr: float) -> Self:
        assert all(map(math.isfinite, weights)), "fitness weights are finite"
        assert math.isfinite(lr), "a learning rate is finite"
        return super().__new__(cls, population, weights, lr)

    @classmethod
    def of(cls, population: Population, weights: "str | Sequence[float]", lr: float) -> Self:
        """The update with these weights, given as numbers or as ``packed`` returned them."""
        if isinstance(weights, str):
            sign_K = unpack_signs(weights, population.size // 2)
            weights = torch.stack([sign_K, -sign_K], 1).flatten().double().tolist()
        return cls(population, tuple(weights), lr)

    def packed(self) -> "str | tuple[float, ...]":
        """The weights; if they only say which of each pair did better (1 and -1, or 0 and 0), as text with two bits for
        each pair."""
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


class GradientLearner:
    """Steps along the estimated gradient, each evolved parameter as it is stored: ``FloatParameter``, or
    ``Int8Parameter`` where it is int8. One gradient lives at a time. Where the recipe wants an average of the weights,
    it begins as the base weights are.

    Args:
        parameters: canonical name -> tensor of the model; at least the evolved ones, and ``NAME_scale`` of an int8 one.
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
        self._stored = {parameter.name: _stored(parameter.name, parameters, config) for parameter in evolved}
        self._config, self._may_overflow = config, False

    @property
    def masters(self) -> dict[str, Tensor]:
        """The fp32 masters of the parameters that have them, by name."""
        return {name: stored.master for name, stored in self._floats().items()}

    @property
    def averages(self) -> dict[str, Tensor]:
        """The fp32 averages of the parameters, by name; empty where the recipe has no ``optimizer.average``."""
        return {name: stored.average for name, stored in self._floats().items() if stored.average is not None}

    @property
    def weights(self) -> dict[str, Tensor]:
        """The evolved parameters as they are saved, by name: averages if there are any, else fp32 masters; or int8."""
        int8 = {name: stored for name, stored in self._stored.items() if isinstance(stored, Int8Parameter)}
        return self.masters | self.averages | {name: stored.state()["weight"] for name, stored in int8.items()}

    def _floats(self) -> dict[str, FloatParameter]:
        return {name: stored for name, stored in self._stored.items() if isinstance(stored, FloatParameter)}

    def step(self, update: Update) -> float:
        """Take one step and return its RMS over all evolved elements."""
        squares = sum(self.squared_step(update).values())
        return math.sqrt(squares / sum(parameter.numel for parameter in self.evolved))

    @torch.no_grad()
    def squared_step(self, update: Update) -> dict[str, float]:
        """Take one step and return the sum of its squares for each parameter.

        Raises:
            NotFinite: the step overflows somewhere; weights, masters and optimizers are as before.
        """
        population = update.population
        if not self._may_overflow and self._largest_step(update) < SAFE:
            return self._squared_step(update)
        self._may_overflow = True  # weights may be so large now that an ordinary step of decay overflows
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
        largest = max((float(S_II.abs().sum(1).max()) for S_II in self.noise.whitening.values()), default=1.0)
        noise = LARGEST_NORMAL**2 * max(1.0, largest)
        gradient = noise * population.config.rank**0.5 * sum(map(abs, update.weights)) / scale
        pushed = gradient / (1 - rule.momentum)
        return float(max(gradient, pushed, update.lr, update.lr * pushed))

    def _is_finite(self, name: str) -> bool:
        return all(bool(tensor.isfinite().all()) for tensor in self._stored[name].state().values())

    def _squared_step(self, update: Update) -> dict[str, float]:
        population = update.population
        pair_weights = population.pair_weights(update.weights)
        weights_K = torch.tensor(pair_weights, dtype=torch.float32, device=self.noise.device)
        self.noise.prefetch(self.evolved, population.epoch, range(population.pairs))
        squares = []
        for parameter in self.evolved:
            slope = gradient(parameter, weights_K, self.noise, population)
            square = self._stored[parameter.name].step(slope, update.lr, population)
            squares.append(square.to(self.noise.device, torch.float64))
        return dict(zip(self._stored, torch.stack(squares).tolist(), strict=True))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """In the block, the model's parameters are the averages, if there are any."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()

    def exchange(self) -> None:
        """Swap masters and averages, and write the model's parameters from the new masters."""
        for stored in self._floats().values():
            stored.exchange()

    def state_dict(self) -> dict[str, Tensor]:
        """Every parameter as it is stored, and all that its next step depends on, with the whitening of its noise, as a
        flat mapping ``kind.name`` -> tensor, which safetensors can store."""
        stored = {
            f"{kind}.{name}": tensor for name, stored in self._stored.items() for kind, tensor in stored.state().items()
        }
        return stored | {f"{WHITENING}.{name}": tensor for name, tensor in self.noise.whitening.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state_dict`` returned, read in pieces, and write the model's parameters from it.

        Raises:
            ValueError: the state is of other parameters or shapes.
        """
        source = streamed(state)
        self.make_room(source.specs)
        own = self.state_dict()
        for piece, rows in source.stream(source):
            rows_of(own[piece.name])[piece.start : piece.stop] = rows
        self.write()

    def make_room(self, specs: Mapping[str, Spec]) -> None:
        """Have ``state_dict`` return tensors that a state of these fits into, to be filled in place; then ``write``.

        Raises:
            ValueError: it is of other parameters or shapes; everything is as before.
        """
        given: dict[str, dict[str, Spec]] = defaultdict(dict)
        for key, spec in specs.items():
            kind, _, name = key.partition(".")
            given[name][kind] = spec
        whitening = {name: kinds.pop(WHITENING) for name, kinds in given.items() if WHITENING in kinds}
        inputs = {parameter.name: parameter.shape[-1] for parameter in self.evolved}
        differing = [
            name
            for name in given.keys() | self._stored.keys()
            if name not in self._stored or not self._stored[name].fits(given.get(name, {}))
        ]
        differing += [name for name, spec in whitening.items() if spec.shape != (inputs.get(name),) * 2]
        if differing:
            raise ValueError(
                f"the saved state does not fit this model and recipe: {', '.join(sorted(differing)[:8])} differ"
            )
        for name, stored in self._stored.items():
            stored.make_room(given[name])
        self.noise.whiten({name: torch.empty(spec.shape) for name, spec in whitening.items()})

    @torch.no_grad()
    def write(self) -> None:
        """Write the model's parameters from what ``state_dict`` returns."""
        for stored in self._stored.values():
            stored.write()


def _stored(name: str, parameters: Mapping[str, Tensor], config: OptimizerConfig) -> FloatParameter | Int8Parameter:
    tensor = parameters[name].detach()
    if tensor.dtype == torch.int8:
        return Int8Parameter(name, Quantised(tensor, parameters[f"{name}_scale"].detach()), config)
    return FloatParameter(tensor, config)
