"""Run and comparison folders with made-up numbers, written as trainers write them."""

import json
import math
import random
from pathlib import Path
from statistics import fmean
from typing import Any

from eggroll_rl.comparison.schema import VERSION
from eggroll_rl.config import Recipe, dump_recipe
from eggroll_rl.runs.evaluation import wilson_interval
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.runs.metrics import QUANTILES

PROBLEMS = 64
HOSTILE = '<script>document.title = "owned"</script><img src="https://example.org/x.png" onerror="alert(1)">'
LONG_WORD = "9" * 400
ANSWERS = ("<think>7+9=16</think>\n<answer>(7+9)-1</answer>", HOSTILE, LONG_WORD, "half \ud83d of a pair", "", "é → 終")
METHODS = {"eggroll": "EGGROLL", "grpo": "GRPO"}


def recipe_for(folder: Path, **changes: Any) -> Recipe:
    values = {
        "description": "made up <b>for a test</b>",
        "model": "embedded:rwkv7-countdown",
        "rewards": [{"fn": "eggroll_rl.rewards.countdown:countdown"}],
        "population": {"size": 16},
        "output_dir": str(folder),
    }
    return Recipe.model_validate(values | changes)


def evaluation(generation: int, seconds: float, right: int) -> dict[str, Any]:
    low, high = wilson_interval(right, PROBLEMS)
    answers = [
        {"prompt": f"Make {problem} of [1, 2].", "completion": text, "correct": problem < generation}
        for problem, text in enumerate(ANSWERS)
    ]
    facts = {"accuracy": right / PROBLEMS, "low": low, "high": high, "n": PROBLEMS, "answers": answers}
    return {"generation": generation, "seconds": seconds, **facts}


def generation_record(generation: int, seconds: float, level: float, chance: random.Random) -> dict[str, Any]:
    mean = level + chance.uniform(-0.1, 0.1)
    return {
        "generation": generation,
        "reward_mean": mean,
        "reward_quantiles": [mean + (q - 0.5) * 0.6 for q in QUANTILES],
        "rewards": {"countdown": mean},
        "reward_failures": {"timeout": int(generation == 3), "crash": 0},
        "tokens": 128 * 24,
        "lr": 1e-3,
        "seconds": seconds,
        "seconds_generation": 2.0,
        "seconds_generate": 1.5,
        "seconds_score": 0.1,
        "seconds_update": 0.4,
        "tokens_per_second": 128 * 12 * chance.uniform(0.9, 1.1),
        "update_rms": 1e-3 / math.sqrt(1 + generation),
    }


def write_run(folder: Path, generations: int = 60, seed: int = 0, **changes: Any) -> RunFolder:
    """A run that is evaluated at its start, after each fifth of its generations, and so at its end."""
    folder.mkdir(parents=True)
    run, recipe, chance = RunFolder(folder), recipe_for(folder, seed=seed, **changes), random.Random(seed)
    dump_recipe(recipe, run.recipe_file)
    run.write_environment(recipe)
    run.log_evaluation(evaluation(0, 0.0, 16))
    for generation in range(generations):
        level = 0.7 - 0.45 * math.exp(-3 * generation / generations)
        run.log(generation_record(generation, 2.0 * (generation + 1), level, chance), [])
        if (generation + 1) % (generations // 5) == 0:
            right = round(level * PROBLEMS) + chance.randrange(4)
            run.log_evaluation(evaluation(generation + 1, 2.0 * (generation + 1), right))
    return run


def write_comparison(folder: Path, generations: int = 30) -> None:
    """Two methods with two seeds each: ``compare.json`` and its runs."""
    runs, summaries = [], []
    for method, label in METHODS.items():
        mine = []
        for seed in (0, 1):
            run = write_run(folder / f"{method}-{seed}", generations, seed)
            if method == "grpo":
                run.grpo_file.write_text("{}")
            mine.append(_run(method, seed, run))
        runs += mine
        summaries.append(_summary(method, label, mine))
    tried = {"method": "eggroll", "settings": {"population.size": 16, "optimizer.lr": 1e-3}, "chosen": True}
    comparison = {
        "version": VERSION,
        "recipe_name": "countdown_tiny",
        "recipe": recipe_for(folder).model_dump(mode="json"),
        "minutes": 1.0,
        "marks": 5,
        "seeds": [0, 1],
        "methods": list(METHODS),
        "memory_gib": 2.0,
        "environment": {"device": "cpu", "cpus": 2, "threads": 1, "platform": "Linux", "versions": {"torch": "2.13"}},
        "probes": [
            tried | {"rollouts": 128, "peak_memory_gib": 0.9, "in_time": True},
            tried | {"rollouts": 999, "peak_memory_gib": None, "in_time": False},
        ],
        "trials": [tried | {"folder": "t", "seed": 7, "minutes": 0.2} | _share(40)],
        "runs": runs,
        "summaries": summaries,
        "tests": [
            {"first": "eggroll", "second": "grpo", "seed": seed, "only_first": 9, "only_second": 4}
            | {"n": PROBLEMS, "difference": 5 / PROBLEMS, "p_value": 0.267, "low": low, "high": high}
            for seed, low, high in ((None, -0.0312, 0.1874), (0, None, None), (1, None, None))
        ],
        "conclusion": "After one minute each, EGGROLL & GRPO do not differ <measurably>.",
    }
    (folder / "compare.json").write_text(json.dumps(comparison), encoding="utf-8")


def _share(right: int, n: int = PROBLEMS) -> dict[str, Any]:
    low, high = wilson_interval(right, n)
    return {"accuracy": right / n, "low": low, "high": high, "n": n}


def _run(method: str, seed: int, run: RunFolder) -> dict[str, Any]:
    marks = [record for record in run.metrics() if "accuracy" in record]
    return {
        "method": method,
        "seed": seed,
        "folder": run.path.name,
        "evaluations": [{**mark, "mark": k, "rollouts": 128 * mark["generation"]} for k, mark in enumerate(marks)],
        **_share(round(marks[-1]["accuracy"] * PROBLEMS)),
        "correct": [1] * PROBLEMS,
        "pass_at_k": {"pass@1": 0.5, "pass@4": 0.75},
        "maj_at_k": {"maj@4": 0.625},
        "generations": marks[-1]["generation"],
        "updates": marks[-1]["generation"],
        "rollouts": 128 * marks[-1]["generation"],
        "tokens": 98765,
        "seconds_training": 60.0,
        "seconds_loading": 3.0,
        "seconds_total": 80.0,
        "samples_per_second": 64.0,
        "tokens_per_second": 1500.0,
        "peak_memory_gib": 1.25,
        "drift": 0.0123,
        "flops": 1.5e12,
        "retention": [0.5, 0.25],
        "reward_failures": 1,
    }


def _summary(method: str, label: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    curve = []
    for marks in zip(*(run["evaluations"] for run in runs), strict=True):
        accuracies = [mark["accuracy"] for mark in marks]
        point = {"low": min(accuracies), "high": max(accuracies), "accuracy": fmean(accuracies)}
        curve.append({key: marks[0][key] for key in ("mark", "seconds", "rollouts")} | point)
    pooled = _share(round(sum(run["accuracy"] for run in runs) * PROBLEMS), len(runs) * PROBLEMS)
    return (
        runs[0]
        | pooled
        | {
            "method": method,
            "label": label,
            "settings": {"population.size": 16},
            "note": "",
            "seed_accuracies": [run["accuracy"] for run in runs],
            "base_accuracy": 0.25,
            "retention": 0.25,
            "curve": curve,
        }
    )
