"""What a recipe on text would read, compute, write and hold in memory: arithmetic on shapes, no weights."""

from collections.abc import Iterator

from eggroll_rl.config import Recipe
from eggroll_rl.data.text import is_here
from eggroll_rl.engines.egg import parts_of
from eggroll_rl.engines.needs import size
from eggroll_rl.models.blueprint import Blueprint
from eggroll_rl.runs.text import text_of


def plan_to_read(recipe: Recipe, blueprint: Blueprint) -> Iterator[tuple[str, str]]:
    """Lines of the plan as (what, how much); text that is on this machine is read, a dataset is not."""
    text, members = recipe.text, recipe.population.size
    assert text is not None
    matrices = [parameter for parameter in blueprint.evolved if parameter.kind == "lowrank"]
    weights, streams = sum(parameter.numel for parameter in blueprint.evolved), members // text.group
    pool, least = recipe.engine.pool, streams * text.tokens + 1

    yield "model", f"{recipe.model} ({type(blueprint.model).__name__}, {weights:,} parameters, int8)"
    yield "engine", recipe.engine.name + (f", {pool.replicas} by Ray" if pool else ", in this process")
    yield (
        "evolving",
        f"all of it: {len(matrices)} matrices of rank-1 noise, {len(blueprint.evolved) - len(matrices)} vectors",
    )
    if is_here(text.name):
        yield "text", f"{text_of(recipe).corpus.version}; the streams need {least:,} bytes to learn from"
    else:
        held_out = f"split {text.test_split}" if text.test_split else "the last tenth"
        yield (
            "text",
            f"{text.name}, column {text.column} of split {text.split}, held out {held_out}: read when the run begins; "
            f"the streams need {least:,} bytes to learn from",
        )
    yield (
        "reading",
        f"{members * text.tokens:,} bytes per generation: {members:,} members x {text.tokens}, {text.group} members to "
        f"each of {streams:,} streams",
    )
    products = sum(parameter.numel for parameter in matrices if parameter.name != "emb")  # of which one row is read
    total = products * members * text.tokens
    yield "arithmetic", f"{products:,} multiply-adds of int8 for each byte: {total:.3g} per generation"

    held = parts_of(recipe, blueprint)
    parts = ", ".join(f"{what} {size(count)}" for what, count in held.items())
    yield "memory", f"about {size(sum(held.values()))}, and the text: {parts}"
    signs, states = members / 8, held["states of the members"] // 2
    kept = (weights + states) * recipe.snapshots.keep if recipe.snapshots.every else 0
    journal = f"signs {size(signs)} for each generation, in the journal"
    yield "disk", f"{journal}; snapshots {size(kept)}, model {size(weights)}"
    yield from ending(recipe)


def ending(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """The last lines of any plan: how long, and where."""
    minutes = f" or {recipe.minutes:g} minutes" if recipe.minutes else ""
    yield "budget", f"{recipe.generations:,} generations{minutes}"
    yield "output", str(recipe.output_dir)
