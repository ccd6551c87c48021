"""Accuracy on something that a run does not train, measured along the way: what is forgotten shows there."""

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
class Retained:
    """The other task's held-out problems, how they are answered, and what judges."""

    batch: Batch
    sampling: SamplingConfig
    grader: Scorer

    def measured(self, model: Answering) -> Evaluation:
        return evaluate(model, self.batch, self.grader, self.sampling)


@contextmanager
def retained(recipe: Recipe, blueprint: Blueprint) -> Iterator[Retained | None]:
    """What the recipe's ``retention`` asks for; None where it asks for nothing.

    Raises:
        UsageError: its data or its reward does not work.
    """
    config = recipe.retention
    if config is None:
        yield None
        return
    sampling = _sampling(config, recipe.sampling)
    asked = recipe.model_copy(update={"data": config.data, "sampling": sampling})
    data = load_data(config.data, recipe.seed, PromptCheck.of(asked, blueprint.config, blueprint.tokenizer))
    with Scorer([config.reward], recipe.scoring) as grader:
        batch = data.test(config.n)
        grader.probe(batch.prompts[:1], {name: values[:1] for name, values in batch.columns.items()})
        yield Retained(batch, sampling, grader)


def _sampling(config: RetentionConfig, usual: SamplingConfig) -> SamplingConfig:
    length = config.max_new_tokens or usual.max_new_tokens
    return usual.model_copy(update={"temperature": 0.0, "stop": config.stop, "max_new_tokens": length})
