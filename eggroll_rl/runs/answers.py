"""Answers to prompts as what a run learns from: reward functions judge them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from eggroll_rl.config import Recipe
from eggroll_rl.data.dataset import Batch, Dataset
from eggroll_rl.engines.base import Engine
from eggroll_rl.es.fitness import by_prompt
from eggroll_rl.es.population import Population
from eggroll_rl.models.blueprint import Blueprint
from eggroll_rl.runs.clock import Stopwatch
from eggroll_rl.runs.evaluation import Answering, Evaluation, accuracy_reward, evaluate, score
from eggroll_rl.runs.metrics import judged_answers
from eggroll_rl.runs.objective import Judged, Objective
from eggroll_rl.runs.retention import Retained, retained
from eggroll_rl.scoring import Scorer, TrainerState


@dataclass(frozen=True)
class Answers(Objective):
    """Prompts, and the functions that judge what is answered: ``scorer`` in training, ``grader`` of what is held
    out."""

    recipe: Recipe
    data: Dataset
    held_out: Batch
    scorer: Scorer
    grader: Scorer
    retained: Retained | None

    def judge(self, engine: Engine, population: Population, clock: Stopwatch) -> Judged:
        fitness = self.recipe.fitness
        examples = self.data.batch(population.generation).repeated(fitness.samples)  # of (seed, generation) alone
        completions = engine.generate(examples.prompts, self.recipe.sampling, population)  # [member][prompt]
        clock.note("generate")
        state = TrainerState(population.generation, self.recipe.generations)  # which a reward may read
        scores = score(self.scorer, completions, examples.prompts, examples.columns, state)
        judged = judged_answers(population.generation, examples, completions, scores)
        return judged._replace(scores_NP=by_prompt(judged.scores_NP, fitness))

    def measure(self, engine: Answering) -> Evaluation:
        result = evaluate(engine, self.held_out, self.grader, self.recipe.sampling)
        return replace(result, retained=self.retained.measured(engine)) if self.retained else result

    def fingerprint(self) -> str:
        return self.data.fingerprint()


@contextmanager
def answers(
    recipe: Recipe, data: Dataset, blueprint: Blueprint, functions: Mapping[str, Callable[..., Any]] | None = None
) -> Iterator[Answers]:
    """The recipe's rewards over data, once they have been tried on the first prompts.

    Args:
        functions: the rewards that no import string leads to (see ``Scorer``).

    Raises:
        UsageError: a reward, the held-out data or what is to be retained does not work.
    """
    first, held_out = data.batch(0), data.test(recipe.evaluation.n, recipe.evaluation.half)
    with (
        Scorer(recipe.rewards, recipe.scoring, functions) as scorer,
        Scorer([accuracy_reward(recipe)], recipe.scoring, functions) as grader,
        retained(recipe, blueprint) as other,
    ):
        for judge in (scorer, grader):
            judge.probe(first.prompts, first.columns)
        yield Answers(recipe, data, held_out, scorer, grader, other)
