"""Answers to prompts as what a run learns from: reward functions judge them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from eggroll_rl.config import Recipe
from eggroll_rl.data.dataset import Batch, Dataset
from eggroll_rl.engines.base import Engine
from eggroll_rl.es.population import Population
from eggroll_rl.runs.clock import Stopwatch
from eggroll_rl.runs.evaluation import Answering, Evaluation, accuracy_reward, evaluate, score
from eggroll_rl.runs.metrics import judged_answers
from eggroll_rl.runs.objective import Judged, Objective
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

    def judge(self, engine: Engine, population: Population, clock: Stopwatch) -> Judged:
        examples = self.data.batch(population.generation)  # a pure function of (seed, generation)
        completions = engine.generate(examples.prompts, self.recipe.sampling, population)  # [member][prompt]
        clock.note("generate")
        state = TrainerState(population.generation, self.recipe.generations)  # which a reward may read
        scores = score(self.scorer, completions, examples.prompts, examples.columns, state)
        return judged_answers(population.generation, examples, completions, scores)

    def measure(self, engine: Answering) -> Evaluation:
        return evaluate(engine, self.held_out, self.grader, self.recipe.sampling)

    def fingerprint(self) -> str:
        return self.data.fingerprint()


@contextmanager
def answers(recipe: Recipe, data: Dataset) -> Iterator[Answers]:
    """The recipe's rewards over data, once they have been tried on the first prompts.

    Raises:
        UsageError: a reward or the held-out data does not work.
    """
    first, held_out = data.batch(0), data.test(recipe.evaluation.n, recipe.evaluation.skip)
    with (
        Scorer(recipe.rewards, recipe.scoring) as scorer,
        Scorer([accuracy_reward(recipe)], recipe.scoring) as grader,
    ):
        for judge in (scorer, grader):
            judge.probe(first.prompts, first.columns)
        yield Answers(recipe, data, held_out, scorer, grader)
