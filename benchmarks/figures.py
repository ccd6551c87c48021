"""Throughput of a commit, kept as JSON for the page of figures.

    python -m benchmarks.figures rwkv7-256x4 --tokens 32 --repeats 3

writes ``benchmarks/figures/COMMIT.json``, what ``eggroll-rl bench --full --json`` writes, when, and of what commit.
A machine whose figures are compared stays the same, and has nothing else to do meanwhile.
"""

import json
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from eggroll_rl.planning.bench import measure
from eggroll_rl.planning.bench_model import SHAPES
from eggroll_rl.system.command import run_command
from eggroll_rl.system.errors import UsageError

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "figures"


def figures(
    models: Annotated[list[str] | None, typer.Argument(help="presets or models; default: rwkv7-256x4")] = None,
    tokens: Annotated[int, typer.Option(min=16, help="length of an answer")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="of each measurement, interleaved")] = 5,
    folder: Annotated[Path, typer.Option(help="where the file goes")] = FOLDER,
) -> None:
    """Measure this commit."""
    if _git("status", "--porcelain", "--untracked-files=no"):
        raise UsageError("files differ from the commit: figures are of a commit, so commit first")
    commit, date = _git("log", "-1", "--format=%h %cs").split()
    results = [measure(name, None, None, tokens, repeats, full=True) for name in models or list(SHAPES)[:1]]
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{commit}.json"
    file.write_text(json.dumps({"commit": commit, "date": date, "results": results}, indent=1) + "\n")
    typer.echo(str(file))


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    run_command(figures)
