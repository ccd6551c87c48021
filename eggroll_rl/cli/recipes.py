"""Commands that take a recipe."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from eggroll_rl.cli.arguments import Overrides, RecipeArgument, as_in_a_shell, found
from eggroll_rl.config import load_recipe
from eggroll_rl.system.errors import UsageError
from eggroll_rl.system.shipped import shipped_recipes


def train(
    recipe: Annotated[str | None, typer.Argument(help="a recipe file, or the name of a shipped recipe")] = None,
    overrides: Overrides = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="go on with a run; overrides: generations=... minutes=...", callback=as_in_a_shell
        ),
    ] = None,
) -> None:
    """Train a recipe; everything about the run goes into its output_dir. Or go on with a run that was cut short."""
    if resume is None:
        if recipe is None:
            raise UsageError("name a recipe, or a run by --resume RUN; `eggroll-rl recipes` lists the shipped recipes")
        resolved = found(load_recipe(recipe, overrides or []))
    elif recipe is not None and "=" not in recipe:
        raise UsageError(f"a run has its recipe: leave out {recipe!r} beside --resume")
    from eggroll_rl import train as training

    if resume is None:
        training.train(resolved)
    else:
        training.resume(resume, [text for text in (recipe, *(overrides or [])) if text])


def grpo(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Train a recipe by GRPO instead, with TRL; what only GRPO has is in the recipe's section ``grpo``."""
    resolved = found(load_recipe(recipe, overrides or []))
    from eggroll_rl.grpo import train as train_by_grpo

    train_by_grpo(resolved)


def compare(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    minutes: Annotated[float | None, typer.Option(help="training time of each run; default: the recipe's")] = None,
    seeds: Annotated[str, typer.Option(help="of the runs, each method takes all")] = "0,1,2",
    methods: Annotated[str, typer.Option(help="any of eggroll, grpo, openes, random, randopt")] = "eggroll,grpo",
    memory: Annotated[
        float | None, typer.Option(metavar="GIB", help="also equal memory: the largest batch that fits for each")
    ] = None,
    tune: Annotated[int, typer.Option(metavar="TRIALS", help="first try so many settings of each method")] = 0,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="default: runs/compare-RECIPE", callback=as_in_a_shell)
    ] = None,
) -> None:
    """Train by several methods for the same time, and say which is ahead; an interrupted comparison goes on."""
    resolved = found(load_recipe(recipe, overrides or []))
    name = Path(recipe).stem
    from eggroll_rl.comparison.compare import run_comparison
    from eggroll_rl.comparison.plan import Plan

    plan = Plan.from_options(name, resolved, minutes, seeds, methods, memory, tune)
    result = run_comparison(plan, output or Path("runs") / f"compare-{name}", typer.echo)
    typer.echo(result["conclusion"])


def tune(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="of answers and training")] = 10.0,
) -> None:
    """Find sigma and the learning rate of a recipe by short runs, and print them as overrides."""
    resolved = found(load_recipe(recipe, overrides or []))
    from eggroll_rl.planning import tune as tuning

    typer.echo(" ".join(tuning.tune(resolved, minutes, typer.echo)))


def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="also foresee a generation with so many")] = None,
    bench: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN|JSON", help="what that is reckoned from; default: the output_dir", callback=as_in_a_shell
        ),
    ] = None,
) -> None:
    """Say what a recipe would load, generate and hold in memory, without loading its model."""
    resolved = found(load_recipe(recipe, overrides or []))
    from eggroll_rl.planning.memory import plan as lines_of

    table = Table(box=None, show_header=False, pad_edge=False)
    for what, much in lines_of(resolved):
        table.add_row(what, much)
    console = Console(markup=False, emoji=False)
    console.print(table)
    if replicas is not None:
        from eggroll_rl.planning.forecast import load_timings, scaling, scaling_table

        forecasts, conclusions = scaling(resolved, load_timings(bench or [resolved.output_dir]), replicas)
        console.print("", scaling_table(forecasts, replicas), "", *conclusions, sep="\n")


def recipes() -> None:
    """List the shipped recipes."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name in shipped_recipes():
        table.add_row(name, load_recipe(name).description)
    Console(markup=False, emoji=False).print(table)
