"""Settings of a method, found by short runs: the largest batch that fits, and the best of those to try."""

import math
from pathlib import Path
from typing import Any, cast

from eggroll_rl.comparison.methods import LABELS, Settings, changed, growing_batches, rollouts_of
from eggroll_rl.comparison.plan import Plan
from eggroll_rl.comparison.processes import RunFailed, Say, contend
from eggroll_rl.comparison.schema import Probe, Trial
from eggroll_rl.config import Recipe
from eggroll_rl.system.errors import UsageError

TRIAL_SHARE = 0.25  # of the budget, for each trial of a setting


def largest_batch(method: str, recipe: Recipe, memory: float, folder: Path, say: Say) -> tuple[Settings, list[Probe]]:
    """The largest batch, by doubling, that a run of two generations holds in ``memory`` GiB, and ends within the time.

    Raises:
        UsageError: not even the smallest does.
    """
    probes: list[Probe] = []
    for settings in growing_batches(method, recipe):
        probed = changed(recipe, {**settings, "generations": 2, "evaluation.marks": 0})
        rollouts, peak, in_time = rollouts_of(method, probed), None, False
        try:
            run = contend(method, probed, folder / f"{method}-{rollouts}", say)
            peak, in_time = run["peak_memory_gib"], run["seconds_training"] < 60 * (recipe.minutes or math.inf)
        except RunFailed:  # killed for its memory, say
            if not probes:
                raise
        facts = {"rollouts": rollouts, "peak_memory_gib": peak, "in_time": in_time}
        probes.append(cast(Probe, {"method": method, "settings": settings, **facts, "chosen": False}))
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


def tuned(method: str, recipe: Recipe, plan: Plan, folder: Path, say: Say) -> tuple[Settings, list[Trial]]:
    """The best of ``plan.trials`` settings, each run for a share of the budget with a seed of its own and judged on
    the half of the held-out problems that the comparison does not see; of equals the first. A setting whose run fails,
    by memory or by weights that are no numbers, is out.

    Raises:
        RunFailed: all of them do.
    """
    seed, minutes = max(plan.seeds) + 1, plan.minutes * TRIAL_SHARE
    common = {"seed": seed, "minutes": minutes, "evaluation.marks": 0, "evaluation.half": "tuning"}
    trials: list[Trial] = []
    for number, settings in enumerate(plan.settings_to_try(method, recipe)):
        path = folder / f"{method}-{number}"
        found: dict[str, Any] = {}
        try:
            found = contend(method, changed(recipe, {**common, **settings}), path, say)
        except RunFailed as error:
            failure = error
            say(f"{path.name} is out: {error}")
        facts = {key: found.get(key) for key in ("accuracy", "low", "high", "n")}
        facts |= {"folder": str(path.relative_to(folder.parent)), "seed": seed, "minutes": minutes, "chosen": False}
        trials.append(cast(Trial, {"method": method, "settings": settings, **facts}))
    best = max(trials, key=lambda trial: -1.0 if trial["accuracy"] is None else trial["accuracy"])
    if best["accuracy"] is None:
        raise failure
    best["chosen"] = True
    return best["settings"], trials
