"""Floating-point operations of a run, by counting its matrix products: 2 for each multiplication and its addition.

A token costs 2 for each weight of the matrices that it passes through (embeddings are looked up, the head multiplies);
what attention and recurrences do beside these is left out, alike for all methods. A backward pass costs twice as much
as a forward pass. A member's low-rank perturbation of a matrix [O, I] costs 2 r (O + I) a token, dense noise as much as
the matrix again; the update, which random search has none of, adds up K of them.
"""

from statistics import fmean
from typing import Any, NamedTuple

from eggroll_rl.comparison.methods import KEPT
from eggroll_rl.config import Recipe
from eggroll_rl.data.dataset import load_data
from eggroll_rl.data.encoding import encode
from eggroll_rl.es.population import Population
from eggroll_rl.models.blueprint import Anatomy, Blueprint, inspect

SAMPLE = 64  # held-out prompts whose mean length stands for the training prompts'


class Work(NamedTuple):
    """What a run did: generations or batches, answers and their tokens."""

    generations: int
    rollouts: int
    tokens: int


def flops(method: str, recipe: Recipe, work: Work) -> float:
    """All operations of a run's training, as described above; prompts count for each answer, also if read once."""
    blueprint = inspect(recipe)
    tokens = work.tokens + work.rollouts * prompt_tokens(recipe, blueprint)
    forward = 2.0 * multiplied(blueprint) * tokens
    if method == "grpo":
        settings = recipe.grpo
        read_again = settings.minibatches * settings.iterations > 1  # for the probabilities before the first step
        of_activations = forward  # also where all that is trained is at the end, and less would do
        of_weights = forward if settings.parameters == "all" else 2.0 * tokens * sum(p.numel for p in blueprint.evolved)
        steps = settings.iterations * (forward + of_activations + of_weights)
        return forward * (1 + read_again + (settings.beta > 0)) + steps
    pairs, rank = Population(recipe.seed, 0, recipe.population).pairs, recipe.population.rank
    drawn = sum(parameter.noise_elements(rank) for parameter in blueprint.evolved)
    added = sum(parameter.numel * (rank if parameter.kind == "lowrank" else 1) for parameter in blueprint.evolved)
    updates = 0 if method in KEPT else work.generations
    return forward + 2.0 * tokens * drawn + 2.0 * updates * pairs * added


def multiplied(anatomy: Anatomy) -> int:
    """Weights that a token is multiplied by; an embedding is looked up, unless it is the head too."""
    model: Any = anatomy.model
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    looked_up = embedding.numel() if head is not embedding else 0
    return int(sum(parameter.numel() for parameter in model.parameters() if parameter.ndim >= 2) - looked_up)


def prompt_tokens(recipe: Recipe, blueprint: Blueprint) -> float:
    """The mean length of a prompt, in tokens."""
    prompts = load_data(recipe.data, recipe.seed).test(min(SAMPLE, recipe.evaluation.n), recipe.evaluation.half).prompts
    return fmean(len(encode(blueprint.tokenizer, prompt, recipe.data.chat_template)) for prompt in prompts)
