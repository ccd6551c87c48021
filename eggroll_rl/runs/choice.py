"""Which objective a recipe means: answers that rewards judge, or the likelihood of text."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from eggroll_rl.config import Recipe
from eggroll_rl.data.dataset import load_data
from eggroll_rl.engines.build import prompt_check
from eggroll_rl.models.blueprint import Blueprint
from eggroll_rl.runs.answers import open_answers
from eggroll_rl.runs.objective import Objective
from eggroll_rl.runs.text import text_of


def objective_of(
    recipe: Recipe, blueprint: Blueprint, functions: Mapping[str, Callable[..., Any]] | None = None
) -> AbstractContextManager[Objective]:
    """Read the recipe's data and return its objective, as a context that loads the reward functions when entered.

    Args:
        functions: reward functions by name, for rewards that the recipe calls ``given:NAME``.

    Raises:
        UsageError: the data cannot be read, or a prompt cannot be asked.
    """
    if recipe.text is not None:
        return nullcontext(text_of(recipe))
    data = load_data(recipe.data, recipe.seed, prompt_check(recipe, blueprint))
    return open_answers(recipe, data, blueprint, functions)
