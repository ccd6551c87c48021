"""How long a generation takes with R replicas: arithmetic on what one engine was measured to need.

Answering shrinks with the replicas. Scoring stays with the one process that runs the loop, every call to a replica
takes that process a moment, and each replica takes the update in full, so that in the end the update is what is left.

Legend: N members, P prompts, R replicas.
"""

import heapq
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import Field, ValidationError
from rich.table import Table

from eggroll_rl.config import PoolConfig, Recipe, Section
from eggroll_rl.engines.fleet.sharing import portion
from eggroll_rl.es.population import Population
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.system.errors import UsageError

MOST_REPLICAS = 1024  # replicas in the table
MEASURED = ("seconds_generate", "seconds_score", "seconds_update")  # of a generation's metrics


class Timings(Section):
    """Seconds that one engine needs; the keys of a bench file.

    Attributes:
        rollout: to answer one prompt for one member, as one of many in a batch.
        chunk: to answer any chunk of members, however small, beyond ``rollout`` for each answer: a step of decoding
            takes its time for one row too.
        score: to score one answer.
        update: to take the update of a population of ``members``.
        members: N of the measurement.
        call: to hand one replica a chunk or an update and take what it returns.
    """

    rollout: float = Field(gt=0)
    chunk: float = Field(0.0, ge=0)
    score: float = Field(ge=0)
    update: float = Field(ge=0)
    members: int = Field(ge=1)
    call: float = Field(1e-3, ge=0)


class Forecast(NamedTuple):
    """Seconds of one generation with R replicas, by what they are spent on; ``chunk`` is in members."""

    replicas: int
    chunk: int
    generate: float
    score: float
    calls: float
    update: float

    @property
    def total(self) -> float:
        return self.generate + self.score + self.calls + self.update


def forecast(recipe: Recipe, timings: Timings, replicas: int) -> Forecast:
    """A generation of the recipe with R replicas; one replica is an engine without a pool."""
    N, P = recipe.population.size, recipe.data.prompts * recipe.fitness.samples
    pool = (recipe.engine.pool or PoolConfig()).model_copy(update={"replicas": replicas})
    size = N if replicas == 1 else portion(pool, N)
    chunks = Population(recipe.seed, 0, recipe.population).chunks(size)
    busy = [0.0] * replicas
    for chunk in chunks:
        heapq.heapreplace(busy, busy[0] + timings.chunk + len(chunk) * P * timings.rollout)
    calls = 0 if replicas == 1 else len(chunks) + replicas
    update = timings.update * N / timings.members
    return Forecast(replicas, len(chunks[0]), max(busy), N * P * timings.score, calls * timings.call, update)


def load_timings(benches: Sequence[Path]) -> Timings:
    """Timings from one JSON file of them, or fitted to the metrics of runs: of each generation the median, without the
    first. Runs of several population sizes tell what a chunk takes beyond its answers.

    Raises:
        UsageError: a file or a run is not there, or does not hold what is needed.
    """
    if len(benches) == 1 and benches[0].is_file():
        try:
            return Timings.model_validate_json(benches[0].read_bytes())
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
            keys = ", ".join(Timings.model_fields)
            raise UsageError(f"{benches[0]}: {faults}; a bench file is JSON with the keys {keys}") from error
    measured = [_measured(RunFolder(path)) for path in benches]
    sizes, generate, score, update, members = (list(values) for values in zip(*measured, strict=True))
    rollout, chunk = statistics.median(g / size for g, size in zip(generate, sizes, strict=True)), 0.0
    if len(set(sizes)) > 1:
        slope, offset = np.polyfit(sizes, generate, 1)
        if slope > 0 and offset > 0:
            rollout, chunk = float(slope), float(offset)
    return Timings(
        rollout=rollout,
        chunk=chunk,
        score=statistics.median(s / size for s, size in zip(score, sizes, strict=True)),
        update=update[-1],
        members=members[-1],
    )


def scaling_table(forecasts: Sequence[Forecast], emphasis: int) -> Table:
    """One row for each forecast, the first of one replica; that of ``emphasis`` replicas stands out."""
    table = Table("replicas", "chunk", "generate", "score", "calls", "update", "in all", "times faster", box=None)
    for column in table.columns:
        column.justify = "right"
    for one in forecasts:
        parts = [_seconds(value) for value in (one.generate, one.score, one.calls, one.update, one.total)]
        faster = f"{forecasts[0].total / one.total:.1f}"
        style = "bold" if one.replicas == emphasis else None
        table.add_row(str(one.replicas), str(one.chunk), *parts, faster, style=style)
    return table


def scaling(recipe: Recipe, timings: Timings, replicas: int) -> tuple[list[Forecast], Iterator[str]]:
    """Forecasts for 1, 2, 4, ... 1024 replicas and for ``replicas``, and what they mean."""
    recipe.refuse_text("a forecast of replicas")
    every = [forecast(recipe, timings, R) for R in range(1, max(MOST_REPLICAS, replicas) + 1)]
    shown = [one for one in every if one.replicas & (one.replicas - 1) == 0 or one.replicas == replicas]
    return shown, _conclusions(recipe, timings, every)


def _conclusions(recipe: Recipe, timings: Timings, every: Sequence[Forecast]) -> Iterator[str]:
    crossing = next((one.replicas for one in every if one.update > one.generate), None)
    if crossing is None:
        yield f"up to {len(every)} replicas, answering takes longer than the update that each replica repeats"
    else:
        yield f"from {crossing} replicas on, the update that each replica repeats takes longer than answering"
    fastest = min(every, key=lambda one: one.total)
    yield f"the shortest generation takes {_seconds(fastest.total)}, with {fastest.replicas} replicas"
    if not timings.chunk:
        yield "what a small chunk costs is not in this: fit it with a second --bench, of another population.size"


def _measured(run: RunFolder) -> tuple[int, float, float, float, int]:
    """(N * P, seconds to generate, score and update, N) of a run's median generation."""
    if not run.metrics_file.is_file():
        raise UsageError(f"{run.path} is neither a run nor a JSON file of timings: name such by --bench")
    recipe = run.journal().header.recipe
    if recipe.engine.pool is not None:
        raise UsageError(f"{run.path} ran in a pool; measure one engine, with engine.pool=null")
    records = [record for record in run.metrics() if all(key in record for key in MEASURED)][1:]
    if not records:
        raise UsageError(f"{run.path} has fewer than two generations with {', '.join(MEASURED)}; let it run longer")
    generate, score, update = (statistics.median(record[key] for record in records) for key in MEASURED)
    return recipe.rollouts, generate, score, update, recipe.population.size


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{value * 1e3:.1f} ms"
