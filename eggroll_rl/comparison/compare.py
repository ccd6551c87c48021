"""The equal-time comparison: every method with every seed in turn, each run in a process of its own.

    plan.json  probes/  trials/  runs/METHOD-SEED/  compare.json  compare.md  report.html
    curves_time.png  curves_rollouts.png

``eggroll_rl.comparison.schema`` says what ``compare.json`` holds. What is finished stays: the same command goes on.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, cast

from eggroll_rl.comparison.methods import LABELS, Settings, changed, note_of, settings_of
from eggroll_rl.comparison.pages import FILE, write_pages
from eggroll_rl.comparison.plan import Plan
from eggroll_rl.comparison.processes import Say, contend
from eggroll_rl.comparison.schema import VERSION, Comparison, Probe, Run, Summary, Trial
from eggroll_rl.comparison.significance import Estimate, conclude, correct_by_run, curve, estimate, paired_tests
from eggroll_rl.comparison.tuning import largest_batch, tuned
from eggroll_rl.runs.evaluation import wilson_interval
from eggroll_rl.runs.folder import RunFolder, is_in_use
from eggroll_rl.system.durable import write_json
from eggroll_rl.system.errors import UsageError
from eggroll_rl.system.interrupts import StopSignals
from eggroll_rl.system.ownership import owned

PLAN = "plan.json"
SAMPLES = 8  # answers to each problem, for pass@k and maj@k of the final models


def run_comparison(plan: Plan, folder: Path, say: Say) -> Comparison:
    """Run what is left of a comparison, and write its files into ``folder``, which is made when all is found in order.

    Raises:
        UsageError: another comparison is there, or a run fails or cannot begin.
        Interrupted: on Ctrl-C or SIGTERM; the same call goes on.
    """
    refuse_other(folder, plan)
    plan.check()
    with owned(folder), StopSignals():
        refuse_other(folder, plan)
        if not (folder / PLAN).is_file():
            write_json(folder / PLAN, plan.document())
        result = _compared(plan, folder, say)
        write_json(folder / FILE, result)
        write_pages(result, folder)
    return result


def _compared(plan: Plan, folder: Path, say: Say) -> Comparison:
    common = plan.common()
    settings: dict[str, Settings] = {method: settings_of(method, common) for method in plan.methods}
    recipes = {method: changed(common, settings[method]) for method in plan.methods}
    probes: list[Probe] = []
    trials: list[Trial] = []
    runs: list[Run] = []
    for method in plan.methods:
        if plan.memory is not None:
            fit, tried = largest_batch(method, recipes[method], plan.memory, folder / "probes", say)
            probes += tried
            settings[method] |= fit
            recipes[method] = changed(recipes[method], fit)
    for method in plan.methods:
        if plan.trials:
            best, made = tuned(method, recipes[method], plan, folder / "trials", say)
            trials += made
            settings[method] |= best
            recipes[method] = changed(recipes[method], best)
    for seed in plan.seeds:
        for method in plan.methods:
            path = folder / "runs" / f"{method}-{seed}"
            run = contend(method, changed(recipes[method], {"seed": seed}), path, say, SAMPLES)
            runs.append(cast(Run, {"folder": str(path.relative_to(folder)), **run}))
    answers = correct_by_run(runs)
    summaries = [
        summarize(
            [run for run in runs if run["method"] == method],
            estimate([answers[method, seed] for seed in plan.seeds]),
            len(answers[method, plan.seeds[0]]),
            settings[method],
            note_of(method, common),
            common.evaluation.marks,
        )
        for method in plan.methods
    ]
    tests = paired_tests(runs, plan.methods, plan.seeds)
    return {
        "version": VERSION,
        "recipe_name": plan.name,
        "recipe": common.model_dump(mode="json", exclude={"seed", "output_dir"}),
        "minutes": plan.minutes,
        "marks": common.evaluation.marks,
        "seeds": list(plan.seeds),
        "methods": list(plan.methods),
        "memory_gib": plan.memory,
        "environment": json.loads(RunFolder(folder / runs[0]["folder"]).environment_file.read_text()),
        "probes": probes,
        "trials": trials,
        "runs": runs,
        "summaries": summaries,
        "tests": tests,
        "conclusion": conclude(summaries, tests, plan.minutes),
    }


def summarize(
    runs: Sequence[Run], over_all: Estimate, judged: int, settings: Settings, note: str, marks: int
) -> Summary:
    """A method over its seeds, whose accuracy is ``over_all`` on the problems ``judged``, evaluated at ``marks``."""
    method = runs[0]["method"]
    low, high = over_all.interval() if len(runs) > 1 else wilson_interval(round(over_all.value * judged), judged)
    means: Any = {
        key: _mean([cast(Any, run)[key] for run in runs])
        for key in (
            *("generations", "updates", "rollouts", "tokens", "seconds_training", "seconds_loading"),
            *("samples_per_second", "tokens_per_second", "drift", "flops"),
        )
    }
    points = curve(runs, marks)
    summary = {
        "method": method,
        "label": LABELS[method],
        "settings": settings,
        "note": note,
        "accuracy": over_all.value,
        "low": low,
        "high": high,
        "n": judged * len(runs),
        "seed_accuracies": [run["accuracy"] for run in runs],
        "base_accuracy": points[0]["accuracy"],
        "pass_at_k": {k: fmean(run["pass_at_k"][k] for run in runs) for k in runs[0]["pass_at_k"]},
        "maj_at_k": {k: fmean(run["maj_at_k"][k] for run in runs) for k in runs[0]["maj_at_k"]},
        "retention": _mean([run["retention"][-1] if run["retention"] else None for run in runs]),
        "peak_memory_gib": max(run["peak_memory_gib"] for run in runs),
        "curve": points,
        **means,
    }
    return cast(Summary, summary)


def refuse_other(folder: Path, plan: Plan) -> None:
    """Raise UsageError where the folder holds anything but the very same comparison."""
    file, document = folder / PLAN, plan.document()
    if file.is_file():
        found = json.loads(file.read_text(encoding="utf-8"))
        other = _differences(found, document)
        if other:
            raise UsageError(
                f"{folder} holds a comparison with {'; '.join(other)}: choose another --output, or give the same "
                f"options to go on with it"
            )
    elif is_in_use(folder):
        raise UsageError(f"{folder} exists and is never overwritten: choose another --output")


def _differences(found: Any, wanted: Any, key: str = "") -> list[str]:
    """Where two documents differ: ``key X (now Y)``."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = dict.fromkeys([*found, *wanted])
        return [
            line
            for one in keys
            for line in _differences(found.get(one), wanted.get(one), f"{key}.{one}" if key else one)
        ]
    return [] if found == wanted else [f"{key} {found!r} (now {wanted!r})"]


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values; None where one of them is None, which was not measured."""
    measured = [value for value in values if value is not None]
    return fmean(measured) if len(measured) == len(values) else None
