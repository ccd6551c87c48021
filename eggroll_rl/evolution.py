"""Evolve a torch module: ``ask`` for a population, run the module once, ``tell`` the fitness.

```python
evolution = Evolution(module, population=512, sigma=0.1, lr=0.02)
for _ in range(300):
    with evolution.ask():
        y_NBO = module(x_BI)
    evolution.tell(-(y_NBO - target_BO).square().mean((1, 2)))
```

Legend: N members, B batch, P prompts.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from eggroll_rl.config import FitnessConfig, OptimizerConfig, ParametersConfig, PopulationConfig
from eggroll_rl.es.fitness import check_fitness, fitness
from eggroll_rl.es.layers import PopulationLayers
from eggroll_rl.es.noise import Noise
from eggroll_rl.es.parameters import select
from eggroll_rl.es.population import Population
from eggroll_rl.es.update import GradientLearner, Update
from eggroll_rl.system.errors import UsageError


class Evolution:
    """Ask and tell for a module of linear and norm layers (see ``eggroll_rl.es.layers``).

    Args:
        module: evolved in place.
        population: N members.
        rank: r of a matrix's noise ``A B^T / sqrt(r)``.
        sigma: the noise's scale.
        optimizer: ``sgd``, ``adam`` or ``adamw``, with ``lr``, ``betas``, ``momentum`` and ``weight_decay``.
        seed: everything random follows from it.
        fitness: ``rank``, ``zscore``, ``prompt`` or ``sign``; ``best`` keeps so many directions.
        antithetic: members come in pairs of opposite sign.
        frozen: globs over parameter names that stay as they are.
        dense: globs over names with full noise; None: all that are not matrices.
        noise: ``normal`` or ``rademacher``.

    Raises:
        ValueError: a value is out of range.
        UsageError: nothing evolves, or a layer cannot be perturbed.
    """

    def __init__(
        self,
        module: nn.Module,
        population: int = 256,
        rank: int = 1,
        sigma: float = 1e-2,
        optimizer: Literal["sgd", "adam", "adamw"] = "adam",
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        seed: int = 0,
        fitness: Literal["prompt", "zscore", "rank", "sign"] = "rank",
        best: int | None = None,
        antithetic: bool = True,
        frozen: Sequence[str] = (),
        dense: Sequence[str] | None = None,
        noise: Literal["normal", "rademacher"] = "normal",
    ) -> None:
        self._config = PopulationConfig(size=population, rank=rank, sigma=sigma, antithetic=antithetic, noise=noise)
        self._shaping = FitnessConfig(shaping=fitness, best=best)
        check_fitness(self._shaping, population, antithetic)
        rule = OptimizerConfig(name=optimizer, lr=lr, betas=betas, momentum=momentum, weight_decay=weight_decay)
        parameters = {name: tensor for name, tensor in module.named_parameters() if tensor.is_floating_point()}
        if not parameters:
            raise UsageError(f"this {type(module).__name__} has no parameters of floats, so nothing in it can evolve")
        first = next(iter(parameters.values()))
        self._evolved = select({name: p.shape for name, p in parameters.items()}, _config_of(parameters, frozen, dense))
        self._noise = Noise(seed, noise, first.device, first.dtype, rank)
        self._layers = PopulationLayers(module, self._evolved)
        self._learner = GradientLearner(parameters, self._evolved, rule, self._noise)
        self._module, self._seed, self._lr = module, seed, lr
        self._asked: Population | None = None
        self._running = ExitStack()  # contexts that stay open during a forward pass
        self.generation = 0

    @contextmanager
    def ask(self) -> Iterator[Population]:
        """Inside, ``module(...)`` runs all members: tensors [B, ...] go in, tensors [N, B, ...] come out.

        The leading axis of every tensor argument is the batch. No gradients are recorded.
        """
        population = self._asked = Population(self._seed, self.generation, self._config)
        with torch.no_grad(), ExitStack() as hooks:
            hooks.callback(self._module.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
            hooks.callback(self._module.register_forward_hook(self._leave, always_call=True).remove)
            yield population

    def tell(self, fitness_NP: Tensor | Sequence[float]) -> float:
        """Take one step on the fitness of the members asked for, [N] or [N, P]: higher is better.

        Returns:
            The RMS of the parameter step.

        Raises:
            UsageError: before ``ask``, not one finite fitness value (or row) for each member, or a step that
                overflows; the module stays as it is.
        """
        if self._asked is None:
            raise UsageError("tell before ask: run the module inside `with evolution.ask():` first")
        rewards_NP = torch.as_tensor(fitness_NP, dtype=torch.float64).detach().cpu()
        if rewards_NP.ndim not in (1, 2) or len(rewards_NP) != self._asked.size:
            raise UsageError(
                f"fitness of shape {tuple(rewards_NP.shape)} for {self._asked.size} members: "
                f"give [{self._asked.size}], or one row of several values for each member"
            )
        lost = (~rewards_NP.reshape(self._asked.size, -1).isfinite().all(1)).nonzero()[:, 0].tolist()
        if lost:
            raise UsageError(
                f"fitness of {len(lost)} members is not finite, of member {lost[0]} first: give what failed a finite "
                "number below all others"
            )
        weights_N = fitness(rewards_NP.reshape(self._asked.size, -1), self._shaping, self._config.antithetic)
        rms = self._learner.step(Update(self._asked, tuple(weights_N.tolist()), self._lr))
        self._asked = None
        self.generation += 1
        return rms

    def _enter(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        population, like = self._asked, self._noise
        assert population is not None
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        batches = {len(leaf) if leaf.ndim else 0 for leaf in tensors}
        if len(batches) != 1 or 0 in batches:
            raise UsageError(
                f"inside ask, the module's tensors share a leading axis, the batch: these are of shapes "
                f"{', '.join(str(tuple(leaf.shape)) for leaf in tensors) or '(none)'}"
            )
        (batch,) = batches
        sign_N = torch.tensor(
            [population.sign(i) for i in range(population.size)], dtype=like.dtype, device=like.device
        )
        sign_M = sign_N.repeat_interleave(batch)
        factors = like.draw(self._evolved, population.epoch, range(population.pairs))
        self._running.enter_context(
            self._layers.members(factors, sign_M * population.scale, dense_coefficient_M=sign_M * population.sigma)
        )
        repeated: tuple[Any, Any] = tree_map_only(
            Tensor, lambda x: x.repeat(population.size, *[1] * (x.ndim - 1)), (args, kwargs)
        )
        return repeated

    def _leave(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        self._running.close()
        size = self._config.size
        return tree_map_only(Tensor, lambda y: y.unflatten(0, (size, -1)), output)


def _config_of(
    parameters: Mapping[str, Tensor], frozen: Sequence[str], dense: Sequence[str] | None
) -> ParametersConfig:
    """Matrices get low-rank noise; if ``dense`` is None, every other parameter that is not frozen gets dense noise."""
    if dense is None:
        others = [name for name, tensor in parameters.items() if tensor.ndim != 2]
        dense = [name for name in others if not any(fnmatchcase(name, glob) for glob in frozen)]
    return ParametersConfig(frozen=tuple(frozen), dense=tuple(dense))
