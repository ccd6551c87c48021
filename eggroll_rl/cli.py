"""The command line: ``eggroll-rl train | evaluate | recipes | plan``. A user's mistake is one line and exit code 2."""

import json
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from eggroll_rl.config import load_recipe, shipped_recipes
from eggroll_rl.errors import UsageError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

RecipeArgument = Annotated[str, typer.Argument(help="a recipe file, or the name of a shipped recipe")]
Overrides = Annotated[list[str] | None, typer.Argument(help="overrides, as in population.size=64")]


@app.command()
def train(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Train a recipe; everything about the run goes into its output_dir."""
    resolved = load_recipe(recipe, overrides or [])
    from eggroll_rl.train import train as run_training

    run_training(resolved)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="a Hugging Face folder or name, an embedded model, or a run folder")],
    task: Annotated[str, typer.Option(help="what to ask")] = "countdown",
    split: Annotated[str, typer.Option(help="test or train")] = "test",
    n: Annotated[int, typer.Option("--n", help="number of problems")] = 512,
    k: Annotated[int, typer.Option("--k", help="also sample k answers of each problem, for pass@k")] = 1,
    temperature: Annotated[float, typer.Option(help="of the sampled answers")] = 1.0,
    max_new_tokens: Annotated[int | None, typer.Option(help="length of an answer; default: the model's own")] = None,
    seed: Annotated[int, typer.Option(help="of the sampled answers")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the result to this file")] = None,
) -> None:
    """Greedy accuracy with its Wilson 95 % interval, and pass@k."""
    from eggroll_rl.eval.evaluate import evaluate_model

    result = evaluate_model(model, task, split, n, k, temperature, max_new_tokens, seed)
    line = f"accuracy {result['accuracy']:.1%} [{result['low']:.1%}, {result['high']:.1%}] of {result['n']}"
    typer.echo("  ".join([line, *(f"{name} {value:.1%}" for name, value in result.items() if name.startswith("pass@"))]))
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n")


@app.command()
def recipes() -> None:
    """List the shipped recipes."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name in shipped_recipes():
        table.add_row(name, load_recipe(name).description)
    Console().print(table)


@app.command()
def plan(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Say what a recipe would load, generate and hold in memory, without loading its model."""
    resolved = load_recipe(recipe, overrides or [])
    from eggroll_rl.planning import plan as lines_of

    table = Table(box=None, show_header=False, pad_edge=False)
    for what, much in lines_of(resolved):
        table.add_row(what, much)
    Console().print(table)


def main() -> None:
    """Entry point of ``eggroll-rl``."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        app()
    except UsageError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
