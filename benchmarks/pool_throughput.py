"""How much faster a pool of two replicas is than a pool of one, and what ``plan --replicas`` foresees of that.

    python -m benchmarks.pool_throughput --json pool.json
    python -m benchmarks.pool_throughput my_recipe.yaml population.size=256 --timings bench.json

One engine alone, a pool of one replica and one of two take turns with the same generation: answers to its prompts, and
an update that changes nothing. Each replica has one thread, so that two need two cores. ``--timings`` writes what the
engine alone needs, for ``eggroll-rl plan RECIPE --replicas R --bench FILE``.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import ray
import torch
import typer

from eggroll_rl.config import PoolConfig, Recipe, load_recipe
from eggroll_rl.data.dataset import Batch, load_data
from eggroll_rl.engines.base import Engine
from eggroll_rl.engines.build import build_engine
from eggroll_rl.es.population import Population
from eggroll_rl.es.update import Update
from eggroll_rl.planning.forecast import Forecast, Timings, forecast
from eggroll_rl.system.command import run_command

RECIPE = "countdown_tiny"
OVERRIDES = ("population.size=512",)  # a generation takes one thread ten seconds or so
REPLICAS = (1, 2)
ALONE = "one engine alone"


class Seconds(NamedTuple):
    """Of one generation: to answer, and to take the update."""

    generate: float
    update: float

    @property
    def total(self) -> float:
        return self.generate + self.update


def pool_of(replicas: int) -> str:
    return f"a pool of {replicas}"


def measure(recipe: Recipe, repeats: int) -> tuple[dict[str, Seconds], Timings]:
    """Median seconds of each way, and what they were measured to be made of in the engine alone."""
    torch.set_num_threads(1)
    ray.init(num_cpus=sum(REPLICAS), include_dashboard=False, log_to_driver=False)
    engines = {ALONE: build_engine(_with_pool(recipe, None))}
    for replicas in REPLICAS:
        engines[pool_of(replicas)] = build_engine(_with_pool(recipe, PoolConfig(replicas=replicas, threads=1)))
    members = recipe.population.size
    part = range(members // 4 // 2 * 2 or members)
    examples = load_data(recipe.data, recipe.seed).batch(0)
    taken: dict[str, list[Seconds]] = {name: [] for name in (*engines, "part")}
    for generation in range(repeats + 1):
        population = Population(recipe.seed, generation, recipe.population)
        for name, engine in engines.items():
            taken[name].append(_seconds(engine, recipe, examples, population))
        taken["part"].append(_seconds(engines[ALONE], recipe, examples, population, part))
    median = {
        name: Seconds(*map(statistics.median, zip(*every[1:], strict=True)))  # the first is a warm-up
        for name, every in taken.items()
    }
    return median, _timings(median[ALONE], median.pop("part"), members, len(part), recipe.data.prompts)


def report(recipe: Recipe, seconds: dict[str, Seconds], timings: Timings) -> dict[str, Any]:
    """All figures: what was measured, what was foreseen, and how many times faster two replicas are than one."""
    foreseen = {replicas: _foreseen(forecast(recipe, timings, replicas)) for replicas in REPLICAS}
    one, two = (seconds[pool_of(replicas)].total for replicas in REPLICAS)
    return {
        "members": recipe.population.size,
        "prompts": recipe.data.prompts,
        "seconds": {name: {**each._asdict(), "total": each.total} for name, each in seconds.items()},
        "foreseen": {replicas: {**each._asdict(), "total": each.total} for replicas, each in foreseen.items()},
        "two_to_one": one / two,
        "two_to_one_foreseen": foreseen[1].total / foreseen[2].total,
        "timings": timings.model_dump(),
    }


def _seconds(
    engine: Engine, recipe: Recipe, examples: Batch, population: Population, members: range | None = None
) -> Seconds:
    update = Update(population, tuple(1.0 if i % 3 else -1.0 for i in range(population.size)), lr=0.0)
    start = time.perf_counter()
    engine.generate(examples.prompts, recipe.sampling, population, members)
    answered = time.perf_counter()
    engine.apply(update)
    return Seconds(answered - start, time.perf_counter() - answered)


def _timings(whole: Seconds, part: Seconds, members: int, fewer: int, prompts: int) -> Timings:
    """What an answer and a chunk cost, from the time for all members and for fewer of them."""
    rollout = whole.generate / (members * prompts)
    if fewer < members and 0 < part.generate < whole.generate:
        rollout = min(rollout, (whole.generate - part.generate) / ((members - fewer) * prompts))
    chunk = whole.generate - members * prompts * rollout
    return Timings(rollout=rollout, chunk=max(0.0, chunk), score=0.0, update=whole.update, members=members)


def _foreseen(one: Forecast) -> Seconds:
    return Seconds(one.generate + one.calls, one.update)


def _with_pool(recipe: Recipe, pool: PoolConfig | None) -> Recipe:
    return recipe.model_copy(update={"engine": recipe.engine.model_copy(update={"pool": pool})})


def main(
    recipe: Annotated[str, typer.Argument(help="a recipe file, or the name of a shipped recipe")] = RECIPE,
    overrides: Annotated[list[str] | None, typer.Argument(help="default: " + " ".join(OVERRIDES))] = None,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="write all figures to this file")] = None,
    timings_file: Annotated[Path | None, typer.Option("--timings", help="write a file for `plan --bench`")] = None,
) -> None:
    """How much faster a pool of two replicas is than a pool of one, and what `plan --replicas` foresees of that."""
    resolved = load_recipe(recipe, overrides or OVERRIDES)
    seconds, timings = measure(resolved, repeats)
    figures = report(resolved, seconds, timings)
    for name, each in seconds.items():
        foreseen = {ALONE: 1, pool_of(2): 2}.get(name)
        said = f"; foreseen {figures['foreseen'][foreseen]['total']:.2f} s" if foreseen else ""
        typer.echo(f"{name}: {each.total:.2f} s a generation, {each.update:.2f} s of it the update{said}")
    typer.echo(
        f"two replicas are {figures['two_to_one']:.2f} times as fast as one; "
        f"foreseen {figures['two_to_one_foreseen']:.2f}"
    )
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")
    if timings_file is not None:
        timings_file.write_text(timings.model_dump_json(indent=2) + "\n")


if __name__ == "__main__":
    run_command(main)
