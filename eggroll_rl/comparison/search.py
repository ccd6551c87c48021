"""Random search as a method: many random perturbations of the base weights, of which the best by training reward is
kept, or the best few vote (RandOpt, arXiv 2603.12228). It is what evolution must beat.

Its loop is that of training, whose noise is drawn anew only after so many generations, and whose engine remembers who
did well instead of stepping.

Legend: N members, K kept, P prompts.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from eggroll_rl.config import Recipe, SamplingConfig
from eggroll_rl.engines.base import Engine
from eggroll_rl.es.population import Population
from eggroll_rl.es.rollout import Completion, Prompt
from eggroll_rl.es.update import Update
from eggroll_rl.models.blueprint import Blueprint
from eggroll_rl.runs.vote import elected
from eggroll_rl.system.errors import UsageError


class Perturbed(NamedTuple):
    """A member of a population, and the sum of its fitness weights over the generations that it answered in."""

    population: Population
    member: int
    fitness: float


class SearchingEngine(Engine):
    """The engine of a recipe that never steps: what it answers and saves is the best that it has seen.

    Args:
        engine: with the base weights, and plain SGD.
        kept: how many of the best perturbations answer, by vote; the best one alone is saved.
    """

    def __init__(self, engine: Engine, kept: int):
        self.engine, self.kept, self.batch_bytes = engine, kept, engine.batch_bytes
        self._fitness: dict[int, tuple[Population, Tensor]] = {}  # by epoch of the noise: its first generation, [N]

    @classmethod
    def check_model(cls, recipe: Recipe, blueprint: Blueprint) -> None:
        if recipe.weights != "float":
            raise UsageError(f"weights={recipe.weights}: random search keeps perturbed floats: set weights=float")

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingConfig,
        population: Population | None = None,
        members: range | None = None,
    ) -> list[list[Completion]]:
        if population is not None or not self._fitness:
            return self.engine.generate(prompts, sampling, population, members)
        rows = [
            self.engine.generate(prompts, sampling, one.population, range(one.member, one.member + 1))[0]
            for one in self.best()
        ]
        return [[answers[elected([one.text for one in answers])] for answers in zip(*rows, strict=True)]]

    def measure_whitening(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> Mapping[str, Tensor]:
        return self.engine.measure_whitening(prompts, sampling)

    def apply(self, update: Update) -> float:
        """Remember who did well; the step is 0."""
        weights_N = torch.tensor(update.weights, dtype=torch.float64)
        population, sum_N = self._fitness.get(update.population.epoch, (update.population, torch.zeros_like(weights_N)))
        self._fitness[population.epoch] = population, sum_N + weights_N
        return 0.0

    def best(self) -> list[Perturbed]:
        """The kept ones, best first; of equals those that came first. Who answered in fewer generations has the smaller
        sum, as fits who is known less well."""
        everyone = [
            Perturbed(population, member, fitness)
            for population, sum_N in self._fitness.values()
            for member, fitness in enumerate(sum_N.tolist())
        ]
        return sorted(everyone, key=lambda one: -one.fitness)[: self.kept]

    def save(self, folder: Path) -> None:
        """Write the best perturbed model; of the base weights where none was tried."""
        before = {key: tensor.clone() for key, tensor in self.engine.state_dict().items()}
        for population, chosen, _ in self.best()[:1]:
            size, sigma = population.size, population.sigma
            weights = tuple(float(member == chosen) for member in range(size))
            self.engine.apply(Update(population, weights, size * sigma**2))  # a step of sigma E
        self.engine.save(folder)
        self.engine.load_state_dict(before)

    def state_dict(self) -> Mapping[str, Tensor]:
        return self.engine.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.engine.load_state_dict(state)

    def weights_hash(self) -> str:
        return self.engine.weights_hash()

    def close(self) -> None:
        self.engine.close()
