"""Sweep a recipe over settings and print a Markdown table of held-out accuracy: how the shipped values were chosen.

python -m eggroll_rl.recipes.sweep countdown_tiny --minutes 2 population.sigma=0.01,0.02,0.04 optimizer.lr=5e-4,1e-3
"""

import argparse
import itertools
from pathlib import Path

from eggroll_rl.config import load_recipe
from eggroll_rl.system.errors import UsageError
from eggroll_rl.train import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("settings", nargs="+", help="key=value,value,...: every combination is trained")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--output", type=Path, default=Path("runs/sweep"))
    args = parser.parse_args()
    keys, values = zip(*(_setting(text) for text in args.settings), strict=True)
    rows = []
    for combination in itertools.product(*values):
        overrides = [f"{key}={value}" for key, value in zip(keys, combination, strict=True)]
        folder = args.output / "_".join(
            f"{key.rpartition('.')[2]}{value}" for key, value in zip(keys, combination, strict=True)
        )
        recipe = load_recipe(args.recipe, [*overrides, f"minutes={args.minutes}", f"output_dir={folder}"])
        records = train(recipe).metrics()
        marks = [record for record in records if "accuracy" in record]
        steps = [record["update_rms"] for record in records if "update_rms" in record]
        accuracies = [f"{mark['accuracy']:.1%}" for mark in (marks[0], marks[-1])]
        rows.append([*combination, *accuracies, str(len(steps)), f"{sum(steps) / len(steps):.1e}"])
    header = [*keys, "before", "after", "generations", "step RMS"]
    lines = [header, ["---"] * len(header), *rows]
    print("\n".join("| " + " | ".join(line) + " |" for line in lines))


def _setting(text: str) -> tuple[str, list[str]]:
    key, separator, values = text.partition("=")
    if not separator:
        raise UsageError(f"{text!r} is not of the form key=value,value")
    return key, values.split(",")


if __name__ == "__main__":
    main()
