"""A dataset asked whole, and what the answers earn."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from eggroll_rl.config import Recipe
from eggroll_rl.data.dataset import Batch, named, renamed
from eggroll_rl.data.encoding import PromptCheck
from eggroll_rl.data.template import Template
from eggroll_rl.engines.base import Engine
from eggroll_rl.models.loading import load_config, load_tokenizer
from eggroll_rl.runs.evaluation import accuracy_reward, as_trl, evaluate, score
from eggroll_rl.scoring import Scorer

if TYPE_CHECKING:
    from datasets import Dataset

    from eggroll_rl.es.rollout import Completion


class Measured(NamedTuple):
    """Answers as rewards take them, row by row, and what they earn."""

    answers: list[Any]
    metrics: dict[str, float]


class Answered:
    """Answers that were given once, for those who ask again."""

    def __init__(self, completions: "list[list[Completion]]"):
        self._completions = completions

    def generate(self, *_: Any) -> "list[list[Completion]]":
        return self._completions


def batch_of(recipe: Recipe, table: "Dataset") -> Batch:
    """All rows of a dataset as the recipe renders them.

    Raises:
        UsageError: a row has no prompt, or the model cannot be asked so.
    """
    template, columns = Template(recipe.data.prompt, recipe.data.system), recipe.data.columns
    check = PromptCheck.of(recipe, load_config(recipe.model), load_tokenizer(recipe.model))
    rows = list(table)
    prompts = [template(named(row, columns)) for row in rows]
    for prompt in prompts:
        check(prompt)
    shown = [renamed(row, columns) for row in rows]
    return Batch(prompts, {name: [row[name] for row in shown] for name in shown[0]}, list(range(len(rows))))


def measure(
    engine: Engine, recipe: Recipe, functions: Mapping[str, Callable[..., Any]], batch: Batch, prefix: str
) -> Measured:
    """What an engine's unperturbed model answers and earns on a batch, in metrics whose names begin with ``prefix``."""
    sampling = recipe.held_out_sampling
    completions = engine.generate(batch.prompts, sampling)
    answers = completions[0]
    with (
        Scorer(recipe.rewards, recipe.scoring, functions) as scorer,
        Scorer([accuracy_reward(recipe)], recipe.scoring, functions) as grader,
    ):
        scores = score(scorer, completions, batch.prompts, batch.columns)
        judged = evaluate(Answered(completions), batch, grader, sampling)
    rewards = scores.rewards_NP[~scores.rewards_NP.isnan()]
    metrics = {
        "accuracy": judged.accuracy,
        "accuracy_low": judged.low,
        "accuracy_high": judged.high,
        "completions/mean_length": sum(len(answer.token_ids) for answer in answers) / len(answers),
        "completions/clipped_ratio": 1.0 - sum(answer.finished for answer in answers) / len(answers),
        **{f"rewards/{name}/mean": values.nanmean().item() for name, values in scores.by_function.items()},
    }
    if len(rewards):
        metrics |= {"reward": rewards.mean().item(), "reward_std": rewards.std(correction=0).item()}
    named = {f"{prefix}_{name}": value for name, value in metrics.items()}
    return Measured(as_trl(completions, batch.prompts)[0], named)
