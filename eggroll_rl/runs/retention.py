"""Retention: accuracy on a task that the run does not train, so that forgetting shows."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from eggroll_rl.config import Recipe, RetentionConfig, SamplingConfig
from eggroll_rl.data.dataset import Batch, load_data
from eggroll_rl.data.encoding import PromptCheck
from eggroll_rl.models.blueprint import Blueprint
from eggroll_rl.runs.evaluation import Answering, Evaluation, evaluate
from eggroll_rl.scoring import Scorer


@dataclass(frozen=True)
class RetentionTask:
    """The held-out problems of a task that is not trained, how they are answered, and what judges the answers."""

    batch: Batch
    sampling: SamplingConfig
    grader: Scorer

    def evaluate(self, model: Answering) -> Evaluation:
        return evaluate(model, self.batch, self.grader, self.sampling)


@contextmanager
def retention_task(recipe: Recipe, blueprint: Blueprint) -> Iterator[RetentionTask | None]:
    """The task of the recipe's ``retention``, its reward loaded and tried; None where the recipe has none.

    Raises:
        UsageError: its data or its reward does not work.
    """
    config = recipe.retention
    if config is None:
        yield None
        return
    sampling = _sampling(config, recipe.sampling)
    evaluation = recipe.evaluation.model_copy(update={"max_new_tokens": None})
    asked = recipe.model_copy(update={"data": config.data, "sampling": sampling, "evaluation": evaluation})
    data = load_data(config.data, recipe.seed, PromptCheck.of(asked, blueprint.config, blueprint.tokenizer))
    with Scorer([config.reward], recipe.scoring) as grader:
        batch = data.test(config.n)
        grader.probe(batch.prompts[:1], {name: values[:1] for name, values in batch.columns.items()})
        yield RetentionTask(batch, sampling, grader)


def _sampling(config: RetentionConfig, usual: SamplingConfig) -> SamplingConfig:
    length = config.max_new_tokens or usual.max_new_tokens
    return usual.model_copy(update={"temperature": 0.0, "stop": config.stop, "max_new_tokens": length})
