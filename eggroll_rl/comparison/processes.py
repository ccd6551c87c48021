"""Runs of a comparison, each in a process of its own."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from eggroll_rl.comparison.contender import RESULT
from eggroll_rl.comparison.methods import changed
from eggroll_rl.config import Recipe, dump_recipe, load_recipe
from eggroll_rl.system.errors import UsageError
from eggroll_rl.system.interrupts import Interrupted
from eggroll_rl.system.ownership import owned

Say = Callable[[str], object]


class RunFailed(UsageError):
    """The process of a run ended with an error."""


def contend(method: str, recipe: Recipe, path: Path, say: Say, samples: int = 0) -> dict[str, Any]:
    """The result of one run in ``path``, from a process of its own unless it is there already.

    A run that was cut short, or that had another recipe, is moved aside with its log and begun anew: GRPO cannot
    resume, and the methods are to be treated alike.

    Raises:
        RunFailed: its process ended with an error.
        UsageError: another process is still at work in ``path``.
    """
    result, recipe = path / RESULT, _moved(recipe, path)
    recipe_file, log = path.with_name(f"{path.name}.yaml"), path.with_name(f"{path.name}.log")
    if not (result.is_file() and recipe_file.is_file() and _moved(load_recipe(recipe_file), path) == recipe):
        _moved_aside(path, recipe_file, log)
        path.parent.mkdir(parents=True, exist_ok=True)
        dump_recipe(recipe, recipe_file)
        command = [sys.executable, "-m", "eggroll_rl.comparison.contender", method, str(recipe_file), str(samples)]
        with log.open("wb") as output:
            code = subprocess.run([*command, str(time.time())], stdout=output, stderr=output, check=False).returncode
        if code in (130, 143):
            raise Interrupted(code - 128)
        if code != 0:
            last = (log.read_text(errors="replace").strip() or "error: no output").splitlines()[-1]
            why = last.removeprefix("error: ")
            if code < 0:
                why = f"ended by {signal.Signals(-code).name}, which a lack of memory sends, too; its last line: {why}"
            raise RunFailed(f"{path} failed: {why} (the log is {log})")
    run: dict[str, Any] = json.loads(result.read_text())
    share = f"{run['accuracy']:.1%} [{run['low']:.1%}, {run['high']:.1%}] of {run['n']}"
    say(
        f"{path.name}: {share}, {run['rollouts']:,} rollouts in {run['seconds_training']:.0f} s "
        f"(+ {run['seconds_loading']:.0f} s loading), peak {run['peak_memory_gib']:.2f} GiB"
    )
    return run


def _moved(recipe: Recipe, path: Path) -> Recipe:
    return changed(recipe, {"output_dir": str(path)})


def _moved_aside(path: Path, *beside: Path) -> None:
    """Give an unfinished run in ``path``, and the files beside it, names of their own."""
    if not path.exists():
        return
    with owned(path):  # else its process goes on, and writes by that path
        number = next(n for n in count(1) if not path.with_name(f"{path.name}.unfinished-{n}").exists())
    for one in (path, *beside):
        if one.exists():
            one.rename(one.with_name(f"{path.name}.unfinished-{number}{one.name.removeprefix(path.name)}"))
