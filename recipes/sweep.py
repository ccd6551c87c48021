"""Sweep a recipe over settings and print a Markdown table of held-out accuracy: how the shipped values were chosen.

python -m eggroll_rl.recipes.sweep countdown_tiny --minutes 2 population.sigma=0.01,0.02,0.04 optimizer.lr=5e-4,1e-3
"""

import itertools
from pathlib import Path
from typing import Annotated

import typer

from eggroll_rl.config import load_recipe
from eggroll_rl.system.command import run_command
from eggroll_rl.system.errors import UsageError
from eggroll_rl.train import train


def main(
    recipe: Annotated[str, typer.Argument(help="a recipe file, or the name of a shipped recipe")],
    settings: Annotated[list[str], typer.Argument(help="key=value,value,...: every combination is trained")],
    minutes: Annotated[float, typer.Option(help="training time of each run")] = 2.0,
    output: Annotated[Path, typer.Option(help="where the runs go")] = Path("runs/sweep"),
) -> None:
    """Train RECIPE with every combination of SETTINGS, and print a table of held-out accuracy."""
    keys, values = zip(*(_setting(text) for text in settings), strict=True)
    rows = []
    for combination in itertools.product(*values):
        overrides = [f"{key}={value}" for key, value in zip(keys, combination, strict=True)]
        folder = output / "_".join(
            f"{key.rpartition('.')[2]}{value}" for key, value in zip(keys, combination, strict=True)
        )
        overrides += [f"minutes={minutes}", f"output_dir={folder}"]
        records = train(load_recipe(recipe, overrides)).metrics()
        marks = [record for record in records if "accuracy" in record]
        steps = [record["update_rms"] for record in records if "update_rms" in record]
        accuracies = [f"{mark['accuracy']:.1%}" for mark in (marks[0], marks[-1])]
        rows.append([*combination, *accuracies, str(len(steps)), f"{sum(steps) / len(steps):.1e}"])
    header = [*keys, "before", "after", "generations", "step RMS"]
    lines = [header, ["---"] * len(header), *rows]
    typer.echo("\n".join("| " + " | ".join(line) + " |" for line in lines))


def _setting(text: str) -> tuple[str, list[str]]:
    key, separator, values = text.partition("=")
    if not separator:
        raise UsageError(f"{text!r} is not of the form key=value,value")
    return key, values.split(",")


if __name__ == "__main__":
    run_command(main)
