"""The equal-time comparison: every method with every seed in turn, each run in a process of its own.

    plan.json  probes/  trials/  runs/METHOD-SEED/  compare.json  compare.md  report.html
    curves_time.png  curves_rollouts.png

``eggroll_rl.comparison.schema`` says what ``compare.json`` holds. What is finished stays: the same command goes on.
"""

import difflib
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, Self, cast

from eggroll_rl import grpo
from eggroll_rl.comparison.contender import RESULT
from eggroll_rl.comparison.methods import (
    LABELS,
    Settings,
    batches,
    candidates,
    changed,
    note_of,
    rollouts_of,
    settings_of,
)
from eggroll_rl.comparison.pages import draw_curves, markdown
from eggroll_rl.comparison.schema import VERSION, Comparison, Probe, Run, Summary, Trial
from eggroll_rl.comparison.significance import conclude, curve, paired_tests, spread
from eggroll_rl.config import Recipe, dump_recipe
from eggroll_rl.data.dataset import load_data
from eggroll_rl.data.generated import Exhausted
from eggroll_rl.engines.build import check_engine
from eggroll_rl.report import write_report
from eggroll_rl.system.durable import replace_file
from eggroll_rl.system.environment import environment
from eggroll_rl.system.errors import UsageError
from eggroll_rl.system.interrupts import Interrupted, StopSignals

SAMPLES = 8  # answers to each problem, for pass@k of the final models
MARKS = 8  # parts of the budget, evaluated at the end of each
TRIAL_SHARE = 0.25  # of the budget, for each trial of a setting

Say = Callable[[str], object]


class RunFailed(UsageError):
    """The process of a run ended with an error."""


@dataclass(frozen=True)
class Plan:
    """A comparison: ``trials`` settings of each method are tried first; ``memory`` in GiB is a second budget."""

    name: str
    recipe: Recipe
    minutes: float
    seeds: tuple[int, ...]
    methods: tuple[str, ...]
    memory: float | None = None
    trials: int = 0

    @classmethod
    def from_options(
        cls, name: str, recipe: Recipe, minutes: float | None, seeds: str, methods: str, memory: float | None, tune: int
    ) -> Self:
        """The plan that a command line describes.

        Raises:
            UsageError: naming the option at fault.
        """
        budget = recipe.minutes if minutes is None else minutes
        if budget is None:
            raise UsageError("the recipe sets no minutes: give --minutes, the training time of each run")
        for option, value in (("minutes", budget), ("memory", memory)):
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"--{option} {value:g}: it must be above 0")
        if tune < 0:
            raise UsageError(f"--tune {tune}: give a number of trials, 0 for none")
        numbers = [text.strip() for text in seeds.split(",")]
        if not all(text.isascii() and text.isdecimal() and int(text) < 2**31 for text in numbers):
            raise UsageError(f"--seeds {seeds!r}: write whole numbers below 2**31 with commas, as in 0,1,2")
        names = [text.strip() for text in methods.split(",")]
        for unknown in (text for text in names if text not in LABELS):
            near = difflib.get_close_matches(unknown, LABELS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(LABELS)}"
            raise UsageError(f"--methods: no method {unknown!r}; {hint}")
        for option, given in (("seeds", [int(text) for text in numbers]), ("methods", names)):
            if len(set(given)) < len(given):
                raise UsageError(f"--{option} names one twice: {given}")
        return cls(name, recipe, budget, tuple(map(int, numbers)), tuple(names), memory, tune)

    def document(self) -> dict[str, Any]:
        """What makes this comparison another one if it changes."""
        recipe = self.recipe.model_dump(mode="json", exclude={"output_dir", "description", "minutes", "seed"})
        return json.loads(json.dumps({"version": VERSION, **asdict(self), "recipe": recipe}))

    def common(self) -> Recipe:
        """The recipe that all runs share, seed and folder aside."""
        evaluation = {"evaluation.every": 0, "evaluation.marks": MARKS, "evaluation.skip": 0}
        return changed(self.recipe, {"minutes": self.minutes, "snapshots.every": 0, **evaluation})


def run_comparison(plan: Plan, folder: Path, say: Say) -> Comparison:
    """Run what is left of a comparison, and write its files into ``folder``.

    Raises:
        UsageError: another comparison is there, or a run fails or cannot begin.
        Interrupted: on Ctrl-C or SIGTERM; the same call goes on.
    """
    _claim(folder, plan)
    check(plan)
    problems = tuning_problems(plan.recipe) if plan.trials else 0
    common = plan.common()
    settings: dict[str, Settings] = {method: settings_of(method, common) for method in plan.methods}
    recipes = {method: changed(common, settings[method]) for method in plan.methods}
    probes: list[Probe] = []
    trials: list[Trial] = []
    runs: list[Run] = []
    with StopSignals():
        for method in plan.methods:
            if plan.memory is not None:
                fit, tried = largest_batch(method, recipes[method], plan.memory, folder / "probes", say)
                probes += tried
                settings[method] |= fit
                recipes[method] = changed(recipes[method], fit)
        for method in plan.methods:
            if plan.trials:
                best, made = tuned(method, recipes[method], plan, problems, folder / "trials", say)
                trials += made
                settings[method] |= best
                recipes[method] = changed(recipes[method], best)
        for seed in plan.seeds:
            for method in plan.methods:
                path = folder / "runs" / f"{method}-{seed}"
                run = contend(method, changed(recipes[method], {"seed": seed}), path, say, SAMPLES)
                runs.append(cast(Run, {"folder": str(path.relative_to(folder)), **run}))
    summaries = [
        summarize(method, [run for run in runs if run["method"] == method], settings[method], note_of(method, common))
        for method in plan.methods
    ]
    tests = paired_tests(runs, plan.methods, plan.seeds)
    result: Comparison = {
        "version": VERSION,
        "recipe_name": plan.name,
        "recipe": common.model_dump(mode="json", exclude={"seed", "output_dir"}),
        "minutes": plan.minutes,
        "marks": MARKS,
        "seeds": list(plan.seeds),
        "methods": list(plan.methods),
        "memory_gib": plan.memory,
        "environment": environment(common.engine.device),
        "probes": probes,
        "trials": trials,
        "runs": runs,
        "summaries": summaries,
        "tests": tests,
        "conclusion": conclude(summaries, tests, plan.minutes),
    }
    _write(folder / "compare.json", json.dumps(result, indent=2) + "\n")
    _write(folder / "compare.md", markdown(result))
    draw_curves(result, folder)
    write_report(folder)
    return result


def check(plan: Plan) -> None:
    """Find mistakes before anything runs: what a method cannot do.

    Raises:
        UsageError: naming what is at fault.
    """
    common = plan.common()
    for method in plan.methods:
        recipe = changed(common, settings_of(method, common))
        if method == "grpo":
            grpo.check(recipe)
        check_engine(recipe)
    load_data(plan.recipe.data, 0)


def tuning_problems(recipe: Recipe) -> int:
    """How many held-out problems to tune on: as many as the comparison has, or what these leave.

    Raises:
        UsageError: they leave none.
    """
    n = recipe.evaluation.n
    data = load_data(recipe.data, 0)
    try:
        return len(data.test(n, skip=n).indices)
    except Exhausted as exhausted:
        if exhausted.count > n:
            return exhausted.count - n
        raise


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


def largest_batch(method: str, recipe: Recipe, memory: float, folder: Path, say: Say) -> tuple[Settings, list[Probe]]:
    """The largest batch, by doubling, that a run of two generations holds in ``memory`` GiB, and ends within the time.

    Raises:
        UsageError: not even the smallest does.
    """
    probes: list[Probe] = []
    for settings in batches(method, recipe):
        probed = changed(recipe, {**settings, "generations": 2, "evaluation.marks": 0})
        rollouts, peak, in_time = rollouts_of(method, probed), None, False
        try:
            run = contend(method, probed, folder / f"{method}-{rollouts}", say)
            peak, in_time = run["peak_memory_gib"], run["seconds_training"] < 60 * (recipe.minutes or math.inf)
        except RunFailed:  # killed for its memory, say
            if not probes:
                raise
        probes.append(
            {"method": method, "settings": settings, "rollouts": rollouts, "peak_memory_gib": peak, "chosen": False}
        )
        if peak is None or peak > memory or not in_time:
            break
    if len(probes) == 1:
        took = (
            f"already takes {peak:.2f} GiB: give more"
            if in_time
            else "takes longer than the minutes: give more minutes"
        )
        raise UsageError(f"--memory {memory:g}: the smallest batch of {LABELS[method]}, {rollouts} rollouts, {took}")
    probes[-2]["chosen"] = True
    return probes[-2]["settings"], probes


def tuned(
    method: str, recipe: Recipe, plan: Plan, problems: int, folder: Path, say: Say
) -> tuple[Settings, list[Trial]]:
    """The best of ``plan.trials`` settings, each run for a share of the budget with a seed of its own and judged on
    so many held-out problems that the comparison does not see; of equals the first."""
    seed, minutes = max(plan.seeds) + 1, plan.minutes * TRIAL_SHARE
    evaluation = {"evaluation.marks": 0, "evaluation.skip": recipe.evaluation.n, "evaluation.n": problems}
    common = {"seed": seed, "minutes": minutes, **evaluation}
    trials: list[Trial] = []
    for number, settings in enumerate(islice(candidates(method, recipe), plan.trials)):
        path = folder / f"{method}-{number}"
        run = contend(method, changed(recipe, {**common, **settings}), path, say)
        trials.append(
            {
                "method": method,
                "settings": settings,
                "folder": str(path.relative_to(folder.parent)),
                "seed": seed,
                "minutes": minutes,
                "accuracy": run["accuracy"],
                "low": run["low"],
                "high": run["high"],
                "n": run["n"],
                "chosen": False,
            }
        )
    best = max(trials, key=lambda trial: trial["accuracy"])
    best["chosen"] = True
    return best["settings"], trials


def summarize(method: str, runs: Sequence[Run], settings: Settings, note: str) -> Summary:
    """A method over its seeds."""
    over_all = spread([run["correct"] for run in runs])
    low, high = over_all.interval() if len(runs) > 1 else (runs[0]["low"], runs[0]["high"])
    means: Any = {
        key: fmean(cast(Any, run)[key] for run in runs)
        for key in (
            *("generations", "updates", "rollouts", "tokens", "seconds_training", "seconds_loading"),
            *("samples_per_second", "tokens_per_second", "drift"),
        )
    }
    points = curve(runs, MARKS)
    summary = {
        "method": method,
        "label": LABELS[method],
        "settings": settings,
        "note": note,
        "accuracy": over_all.value,
        "low": low,
        "high": high,
        "n": sum(run["n"] for run in runs),
        "seed_accuracies": [run["accuracy"] for run in runs],
        "base_accuracy": points[0]["accuracy"],
        "pass_at_k": {k: fmean(run["pass_at_k"][k] for run in runs) for k in runs[0]["pass_at_k"]},
        "peak_memory_gib": max(run["peak_memory_gib"] for run in runs),
        "curve": points,
        **means,
    }
    return cast(Summary, summary)


def _claim(folder: Path, plan: Plan) -> None:
    """Make the folder, or find the very same comparison in it."""
    file, document = folder / "plan.json", plan.document()
    if file.is_file():
        found = json.loads(file.read_text())
        other = [key for key in document if found.get(key) != document[key]]
        if other:
            raise UsageError(
                f"{folder} holds a comparison with other {' and '.join(other)}: choose another --output, or give the "
                f"same options to go on with it"
            )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is never overwritten: choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    _write(file, json.dumps(document, indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    replace_file(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))
