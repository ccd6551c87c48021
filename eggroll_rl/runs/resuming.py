"""Resuming a run: the recipe that it goes on with, what is left to do, and its newest undamaged state."""

from collections.abc import Sequence

from eggroll_rl.config import Recipe, build_recipe, load_recipe
from eggroll_rl.engines.base import Engine
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.runs.journal import Journal
from eggroll_rl.runs.journal.snapshots import Snapshot, Snapshots
from eggroll_rl.runs.session import RunContext
from eggroll_rl.system.errors import UsageError

CHANGEABLE = ("generations", "minutes")


def resumed_recipe(run: RunFolder, journal: Journal, overrides: Sequence[str]) -> Recipe:
    """The run's recipe with the overrides, and with the folder where the run is now as ``output_dir``.

    Raises:
        UsageError: an override is not of ``generations`` or ``minutes``, or the recipe's file was changed beyond these.
    """
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key not in CHANGEABLE:
            raise UsageError(
                f"{override!r}: a run that goes on keeps its recipe, only {' and '.join(CHANGEABLE)} may change; "
                "begin a new run for anything else"
            )
    if run.recipe_file.is_file():
        recipe = load_recipe(run.recipe_file, overrides)
    else:
        recipe = build_recipe(journal.recipe.model_dump(mode="json"), overrides)
    for key in Recipe.model_fields:
        now, then = getattr(recipe, key), getattr(journal.recipe, key)
        if now != then and key not in (*CHANGEABLE, "output_dir", "description"):
            raise UsageError(
                f"{run.recipe_file} was changed: {key} is {now!s}, and {journal.path} says {then!s}; put it back, or "
                "begin a new run"
            )
    return recipe.model_copy(update={"output_dir": run.path})


def with_recorded_batches(recipe: Recipe, journal: Journal) -> Recipe:
    """The recipe with the ``batch_bytes`` that the run began with, so that its engine makes the same batches however
    much memory is free now: to the bit, an answer depends on the rows that are computed beside it."""
    if journal.header.batch_bytes is None:
        return recipe
    engine = recipe.engine.model_copy(update={"batch_bytes": journal.header.batch_bytes})
    return recipe.model_copy(update={"engine": engine})


def what_is_left(run: RunFolder, journal: Journal, recipe: Recipe) -> tuple[bool, str]:
    """Whether the run has generations left or lacks files, and a sentence for the user that says so."""
    spent = f"{len(journal)} generations and {journal.seconds / 60:.1f} minutes"
    if journal.has_left(recipe):
        return True, f"{run.path} goes on after {spent}"
    missing = ", ".join(run.lacks(journal))
    if missing:
        return True, f"{run.path} is complete after {spent}, and what it lacks is made again: {missing}"
    return False, f"{run.path} is complete after {spent}; nothing is left to do, unless you add generations=..."


def restore(engine: Engine, context: RunContext, journal: Journal) -> int:
    """Load the newest snapshot into engine and objective, and cut metrics and samples back to it.

    Half-written files of a killed process, and snapshots that it had no time to drop, are removed.

    Returns:
        The number of updates in the snapshot; 0 where there is none. The caller replays the journal from there.
    """
    run = context.run
    run.sweep()
    snapshots = Snapshots(run.snapshots, journal.recipe.snapshots.keep)
    snapshot = snapshots.newest(min(len(journal), run.generations_logged()), journal.hashes)
    if snapshot is not None:
        engine.load_state_dict(snapshot.of_engine())
        context.objective.load_state_dict(snapshot.of_objective())
        snapshots.prune(snapshot.generation)
    generation = 0 if snapshot is None else snapshot.generation
    run.rewind(generation)
    return generation


def is_snapshot_due(recipe: Recipe, generation: int) -> bool:
    """Whether the recipe wants a snapshot after so many updates."""
    return bool(recipe.snapshots.every) and generation % recipe.snapshots.every == 0


def save_snapshot(engine: Engine, context: RunContext, journal: Journal, generation: int) -> None:
    """Save a snapshot of engine and objective after so many updates, once the weights' hash is in the journal and the
    logs are on the disk."""
    weights = engine.weights_hash()
    journal.append_hash(generation, weights)
    context.run.sync()
    snapshot = Snapshot.of(generation, weights, engine.state_dict(), context.objective.state_dict())
    Snapshots(context.run.snapshots, journal.recipe.snapshots.keep).save(snapshot)
