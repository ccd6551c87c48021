"""The methods of a comparison: what each makes of the common recipe, its batch, and its settings to try."""

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from eggroll_rl.config import Recipe, build_recipe
from eggroll_rl.engines.build import is_local
from eggroll_rl.models.blueprint import inspect

LABELS = {
    "eggroll": "EGGROLL",
    "grpo": "GRPO",
    "openes": "full-rank ES",
    "random": "random search",
    "randopt": "random search with votes",
}
KEPT = {"random": 1, "randopt": 10}  # of random search: how many perturbations answer, those with the best rewards
TRIED_ON = 128  # training prompts, at least, on which random search tries a perturbation before it draws others
STILL = 1.0e-15  # a rate that moves no weight
SMALLEST = 8  # population of the first probe of memory
FACTORS = (  # of the learning rate, of sigma (evolution) or the group (GRPO), and of the rollouts of a batch
    *((1.0, 1.0, 1.0), (3.0, 1.0, 1.0), (1 / 3, 1.0, 1.0), (1.0, 1.0, 0.5), (1.0, 1.0, 2.0), (1.0, 2.0, 1.0)),
    *((1.0, 0.5, 1.0), (3.0, 1.0, 2.0), (1 / 3, 1.0, 0.5), (3.0, 2.0, 1.0), (1 / 3, 0.5, 1.0), (3.0, 0.5, 1.0)),
    *((1 / 3, 2.0, 1.0), (1.0, 1.0, 4.0), (10.0, 1.0, 1.0), (0.1, 1.0, 1.0), (1.0, 4.0, 1.0), (1.0, 0.25, 1.0)),
)

Settings = dict[str, Any]  # dotted recipe key -> value


def changed(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe with other values at these keys, validated again.

    Raises:
        UsageError: naming the value that a recipe cannot have.
    """
    values = recipe.model_dump(mode="json")
    for dotted, value in settings.items():
        *parents, last = dotted.split(".")
        node = values
        for key in parents:
            node = node[key]
        node[last] = value
    return build_recipe(values)


def settings_of(method: str, recipe: Recipe) -> Settings:
    """What a method has beside the common recipe: full-rank ES draws dense, plain noise for the very matrices that
    EGGROLL draws low-rank noise for, on an engine that can; GRPO answers in the process that trains; random search
    takes no step, and keeps its noise for several generations."""
    if method == "grpo" and not is_local(recipe.engine.name):
        return {"engine.name": "local"}
    if method in KEPT:
        return {
            "optimizer": {"name": "sgd", "lr": STILL},
            "population.noise_reuse": -(-TRIED_ON // recipe.data.prompts),
            "population.final_sigma": None,
            "fitness.shaping": "prompt",  # ranks and signs do not add up over generations
            "fitness.best": None,
        }
    if method != "openes":
        return {}
    dense = [parameter.name for parameter in inspect(recipe).evolved]
    return {"parameters.dense": dense, "engine.name": "transformers", "population.whitening": None}


def note_of(method: str, recipe: Recipe) -> str:
    """What a reader must know of how a method ran."""
    if method == "openes" and recipe.engine.name != "transformers":
        note = f"full-rank noise runs on the engine transformers, EGGROLL on {recipe.engine.name}, which is faster"
        return f"{note}; plain, with EGGROLL's sigma and rate" if recipe.population.whitening else note
    if method == "grpo":
        engine = "the same engine that EGGROLL uses" if is_local(recipe.engine.name) else "the engine local"
        return f"TRL's trainer; its answers are sampled by {engine}"
    if method in KEPT:
        who = "the best answers" if KEPT[method] == 1 else f"the best {KEPT[method]} vote"
        return f"of random perturbations of the base weights, each tried on {TRIED_ON} prompts or more, {who}"
    return ""


def rollouts_of(method: str, recipe: Recipe) -> int:
    """Answers of one generation, or batch."""
    return recipe.grpo.rollouts if method == "grpo" else recipe.rollouts


def growing_batches(method: str, recipe: Recipe) -> Iterator[Settings]:
    """Ever larger batches, each twice the one before."""
    grpo, best = recipe.grpo, recipe.fitness.best or 1
    least = max(SMALLEST, 1 << (2 * best - 1).bit_length())  # members enough for the best directions
    smallest = next(p for p in count(1) if p * grpo.group % grpo.minibatches == 0)
    for doublings in count():
        if method == "grpo":
            yield {"grpo.prompts": smallest << doublings, "grpo.rows": None}
        else:
            yield {"population.size": least << doublings}


def candidates(method: str, recipe: Recipe) -> Iterator[Settings]:
    """Settings to try, the recipe's own first: learning rate, sigma and population, or learning rate, group size and
    rollouts of a batch; of random search sigma and the generations in which a perturbation is tried."""
    grpo, population = recipe.grpo, recipe.population
    for rate, other, batch in FACTORS:
        if method in KEPT:
            reuse = population.noise_reuse * other
            if batch == 1 and reuse == int(reuse) >= 1:
                yield {"population.sigma": population.sigma * rate, "population.noise_reuse": int(reuse)}
            continue
        if method != "grpo":
            size = population.size * batch
            least = 2 if recipe.fitness.best is None else recipe.fitness.best * (2 if population.antithetic else 1)
            if size == int(size) >= least and not (population.antithetic and size % 2):
                settings = {"optimizer.lr": recipe.optimizer.lr * rate, "population.sigma": population.sigma * other}
                yield settings | ({"population.size": int(size)} if batch != 1 else {})
            continue
        group, rollouts = grpo.group * other, grpo.rollouts * batch
        if group == int(group) >= 2 and rollouts % int(group) == 0 and rollouts % grpo.minibatches == 0:
            prompts = int(rollouts) // int(group)
            settings = {"grpo.lr": grpo.lr * rate, "grpo.group": int(group), "grpo.prompts": prompts}
            yield settings | ({"grpo.rows": None} if grpo.rows and batch != 1 else {})
