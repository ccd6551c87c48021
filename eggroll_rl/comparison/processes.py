"""Runs of a comparison, each in a process of its own."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eggroll_rl.comparison.contender import RESULT
from eggroll_rl.comparison.methods import changed
from eggroll_rl.config import Recipe, dump_recipe
from eggroll_rl.system.errors import UsageError
from eggroll_rl.system.interrupts import Interrupted

Say = Callable[[str], object]


class RunFailed(UsageError):
    """The process of a run ended with an error."""


def contend(method: str, recipe: Recipe, path: Path, say: Say, samples: int = 0) -> dict[str, Any]:
    """The result of one run in ``path``, from a process of its own unless it is there already.

    A run that was cut short is moved aside and begun anew: GRPO cannot resume, and the methods are to be treated alike.

    Raises:
        RunFailed: its process ended with an error.
    """
    result = path / RESULT
    if not result.is_file():
        if path.exists():
            aside = (path.with_name(f"{path.name}.unfinished-{n}") for n in range(1, 10**6))
            path.rename(next(name for name in aside if not name.exists()))
        path.parent.mkdir(parents=True, exist_ok=True)
        recipe_file, log = path.with_name(f"{path.name}.yaml"), path.with_name(f"{path.name}.log")
        dump_recipe(changed(recipe, {"output_dir": str(path)}), recipe_file)
        command = [sys.executable, "-m", "eggroll_rl.comparison.contender", method, str(recipe_file), str(samples)]
        with log.open("wb") as output:
            code = subprocess.run([*command, str(time.time())], stdout=output, stderr=output, check=False).returncode
        if code in (130, 143):
            raise Interrupted(code - 128)
        if code != 0:
            last = (log.read_text(errors="replace").strip() or "error: no output").splitlines()[-1]
            raise RunFailed(f"{path} failed: {last.removeprefix('error: ')} (the log is {log})")
    run: dict[str, Any] = json.loads(result.read_text())
    share = f"{run['accuracy']:.1%} [{run['low']:.1%}, {run['high']:.1%}] of {run['n']}"
    say(
        f"{path.name}: {share}, {run['rollouts']:,} rollouts in {run['seconds_training']:.0f} s "
        f"(+ {run['seconds_loading']:.0f} s loading), peak {run['peak_memory_gib']:.2f} GiB"
    )
    return run
