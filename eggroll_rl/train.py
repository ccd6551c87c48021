"""EGGROLL (arXiv 2511.16652): evolution strategies whose perturbations are of low rank, for language models.

Of the paper's choices this loop takes: antithetic pairs, a sum over members of fitness times perturbation, and a
perturbation of each weight matrix as the product of two thin ones. Fitness is shaped as in its reasoning runs (within a
prompt, then over the members), other shapes are recipe values. Its integer models learn in the same loop, by the signs
of pairs and votes (recipe ``egg_tiny``). Not taken: the fixed learning rate of a plain sum; models of floats step by a
stock torch optimizer on fp32 weights.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from eggroll_rl.config import Recipe
from eggroll_rl.engines.base import Engine
from eggroll_rl.engines.build import build_engine, check_engine, led_by_first_process
from eggroll_rl.es.fitness import check_fitness, fitness
from eggroll_rl.es.population import Population
from eggroll_rl.es.schedule import learning_rate, noise_scale
from eggroll_rl.es.update import Update
from eggroll_rl.report import draw_run
from eggroll_rl.runs.choice import objective_of
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.runs.journal import Journal
from eggroll_rl.runs.journalled import journalled
from eggroll_rl.runs.metrics import entry_of
from eggroll_rl.runs.progress import ProgressDisplay
from eggroll_rl.runs.resuming import resumed_recipe, what_is_left, with_recorded_batches
from eggroll_rl.runs.session import RunContext, prepared
from eggroll_rl.runs.watcher import Watcher


@led_by_first_process
def train(
    recipe: Recipe,
    engine: Engine | None = None,
    watcher: Watcher | None = None,
    functions: Mapping[str, Callable[..., Any]] | None = None,
) -> RunFolder:
    """Train a recipe from start to end and return its run folder.

    Mistakes in the recipe, its data or its rewards are found before the model is loaded. A run that was cut short at
    any moment, by a signal, a crash or a power cut, goes on with ``resume``.

    Args:
        engine: answers and learns, and is left open; None: the recipe's own engine, closed at the end.
        watcher: is told of every step, log and evaluation.
        functions: reward functions by name, for rewards that the recipe calls ``given:NAME``.

    Raises:
        UsageError: a mistake in the recipe, the data or a reward, or a full disk.
        Interrupted: on Ctrl-C or SIGTERM, when what is being written is whole.
    """
    run = RunFolder(recipe.output_dir)
    run.refuse_unusable()
    with _checked(recipe, watcher, functions) as context, run.claimed():
        context.display.say(f"{recipe.model} -> {run.path}")
        with nullcontext(engine) if engine else build_engine(recipe, context.blueprint) as ready:
            evolve(context, ready)
    return run


@led_by_first_process
def resume(
    folder: Path,
    overrides: Sequence[str] = (),
    engine: Engine | None = None,
    watcher: Watcher | None = None,
    functions: Mapping[str, Callable[..., Any]] | None = None,
) -> RunFolder:
    """Go on with a run that was cut short, and end with the weights and metrics of one that never was.

    Files that are missing in the folder of a complete run are made again.

    Args:
        folder: the run's.
        overrides: ``generations=N`` and ``minutes=M`` alone; minutes already spent count.
        engine: as in ``train``, with the run's base model.
        watcher, functions: as in ``train``.

    Raises:
        UsageError: the folder, an override, the data or the base model does not fit, or a record of the journal is
            damaged.
        Interrupted: as in ``train``.
    """
    run = RunFolder(folder)
    with run.reopened(), run.journal(append=True) as journal:
        recipe = resumed_recipe(run, journal, overrides)
        left, words = what_is_left(run, journal, recipe)
        ProgressDisplay(recipe.generations, recipe.minutes).say(words)
        if left:
            with _checked(recipe, watcher, functions) as context:
                journal.check_data(context.objective.fingerprint())
                as_begun = with_recorded_batches(recipe, journal)
                with nullcontext(engine) if engine else build_engine(as_begun, context.blueprint) as ready:
                    evolve(context, ready, journal)
    return run


def evolve(context: RunContext, engine: Engine, journal: Journal | None = None) -> None:
    """The training loop; with the ``journal`` of a run that was cut short, from where that ended."""
    recipe, objective = context.recipe, context.objective
    with journalled(context, engine, journal) as session:
        for generation in session.remaining():
            when = generation, recipe.generations, session.clock.spent
            sigma, lr = noise_scale(recipe.population, *when), learning_rate(recipe.optimizer, *when)
            population = Population(recipe.seed, generation, recipe.population, sigma)  # numbers, no tensors
            judged = objective.judge(engine, population, session.clock)  # the members answer, rewards judge: [N, P]
            weights_N = fitness(judged.scores_NP, recipe.fitness, recipe.population.antithetic)
            update = Update(population, tuple(weights_N.tolist()), lr)  # N numbers: all that ever crosses a process
            entry = entry_of(update, judged, session.clock.lap("score"))
            with session.committed(entry):  # in the journal, and on the disk, before the step is taken
                session.log_step(entry, engine.apply(update))  # regenerates the noise, steps a torch optimizer
        session.finish(draw_run)


@contextmanager
def _checked(
    recipe: Recipe, watcher: Watcher | None, functions: Mapping[str, Callable[..., Any]] | None
) -> Iterator[RunContext]:
    """Check the recipe against the engine, and open everything that the loop needs besides the engine."""
    check_fitness(recipe.fitness, recipe.population.size, recipe.population.antithetic)
    blueprint = check_engine(recipe)
    with prepared(recipe, objective_of(recipe, blueprint, functions), blueprint, watcher) as context:
        context.display.say("; ".join(blueprint.shares()))
        yield context
