"""The objective of answers: members answer prompts, and reward functions judge the answers."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

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
from eggroll_rl.runs.retention import RetentionTask, retention_task
from eggroll_rl.runs.whitening import whiten
from eggroll_rl.scoring import Scorer, TrainerState


@dataclass(frozen=True)
class Answers(Objective):
    """Answers to a dataset's prompts; ``scorer`` judges them in training, ``grader`` on held-out problems."""

    recipe: Recipe
    data: Dataset
    held_out: Batch
    scorer: Scorer
    grader: Scorer
    retention: RetentionTask | None

    def judge(self, engine: Engine, population: Population, clock: Stopwatch) -> Judged:
        fitness = self.recipe.fitness
        examples = self.data.batch(population.generation).repeated(fitness.samples)  # by seed and generation alone
        completions = engine.generate(examples.prompts, self.recipe.sampling, population)  # [member][prompt]
        clock.note("generate")
        state = TrainerState(population.generation, self.recipe.generations)  # for rewards to read
        scores = score(self.scorer, completions, examples.prompts, examples.columns, state)
        judged = judged_answers(population.generation, examples, completions, scores)
        return judged._replace(scores_NP=by_prompt(judged.scores_NP, fitness))

    def measure(self, engine: Answering) -> Evaluation:
        result = evaluate(engine, self.held_out, self.grader, self.recipe.held_out_sampling)
        return replace(result, retained=self.retention.evaluate(engine)) if self.retention else result

    def whiten(self, engine: Engine) -> Mapping[str, Tensor]:
        return whiten(engine, self.data, self.recipe.sampling)

    def fingerprint(self) -> str:
        return self.data.fingerprint()


@contextmanager
def open_answers(
    recipe: Recipe, data: Dataset, blueprint: Blueprint, functions: Mapping[str, Callable[..., Any]] | None = None
) -> Iterator[Answers]:
    """Load the recipe's reward functions, try them on the first prompts, and yield the objective.

    Args:
        functions: reward functions by name, for rewards that the recipe calls ``given:NAME``.

    Raises:
        UsageError: a reward fails, there are no held-out problems, or the recipe's ``retention`` does not work.
    """
    first, held_out = data.batch(0), data.test(recipe.evaluation.n, recipe.evaluation.half)
    with (
        Scorer(recipe.rewards, recipe.scoring, functions) as scorer,
        Scorer([accuracy_reward(recipe)], recipe.scoring, functions) as grader,
        retention_task(recipe, blueprint) as retention,
    ):
        for judge in (scorer, grader):
            judge.probe(first.prompts, first.columns)
        yield Answers(recipe, data, held_out, scorer, grader, retention)
