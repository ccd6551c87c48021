"""One run of a comparison, a process of its own.

    python -m eggroll_rl.comparison.contender METHOD RECIPE SAMPLES STARTED

It trains, and then measures the model that it saved; what it found goes into ``result.json`` of the run folder.
"""

import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from eggroll_rl import grpo, train
from eggroll_rl.comparison.flops import Work, flops
from eggroll_rl.comparison.methods import KEPT, rollouts_of
from eggroll_rl.comparison.search import SearchingEngine
from eggroll_rl.config import Recipe, load_recipe
from eggroll_rl.data.dataset import load_data
from eggroll_rl.engines.base import Engine
from eggroll_rl.engines.build import build_engine, build_in_process, check_engine
from eggroll_rl.engines.device import device_of
from eggroll_rl.report.drift import drift
from eggroll_rl.runs.evaluation import accuracy_reward, evaluate, evaluate_samples
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.scoring import Scorer
from eggroll_rl.system.command import run_command
from eggroll_rl.system.durable import write_json
from eggroll_rl.system.errors import UsageError

TEMPERATURE = 1.0  # of the samples for pass@k and maj@k
RESULT = "result.json"


def train_and_judge(method: str, recipe: Recipe, samples: int, started: float) -> dict[str, Any]:
    """Train by a method and measure; returns the ``Run`` of ``compare.json`` without its folder.

    Args:
        samples: answers to each problem, for pass@k and maj@k; 0: none.
        started: Unix time at which the process was started.
    """
    if method in KEPT:
        engine: Engine | None = SearchingEngine(build_engine(recipe, check_engine(recipe)), KEPT[method])
        run = train.train(recipe, engine)
    else:
        engine = None
        run = grpo.train(recipe) if method == "grpo" else train.train(recipe)
    seconds_total, peak = time.time() - started, peak_gib(recipe)
    records = run.metrics()
    loaded = run.recipe_file.stat().st_mtime - started  # written when everything is loaded, and noise whitened
    seconds_loading = loaded - (records[0]["seconds"] if recipe.population.whitening and method != "grpo" else 0.0)
    generations = [record for record in records if "accuracy" not in record]
    rollouts = rollouts_of(method, recipe)
    if not generations:
        raise UsageError(f"minutes {recipe.minutes:g} are over before the first generation begins: give more")
    tokens, seconds = sum(g["tokens"] for g in generations), records[-1]["seconds"]  # the last evaluation's
    steps = recipe.grpo.minibatches * recipe.grpo.iterations if method == "grpo" else int(method not in KEPT)
    return {
        "method": method,
        "seed": recipe.seed,
        "evaluations": evaluations(records, recipe, rollouts),
        **judge(recipe, run, samples, engine),
        "generations": len(generations),
        "updates": len(generations) * steps,
        "rollouts": len(generations) * rollouts,
        "tokens": tokens,
        "seconds_training": seconds,
        "seconds_loading": seconds_loading,
        "seconds_total": seconds_total,
        "samples_per_second": len(generations) * rollouts / seconds,
        "tokens_per_second": tokens / seconds,
        "peak_memory_gib": peak,
        "drift": drift(recipe.model, run.model),
        "flops": flops(method, recipe, Work(len(generations), len(generations) * rollouts, tokens)),
        "retention": [record["retention"] for record in records if "retention" in record],
        "reward_failures": sum(sum(g["reward_failures"].values()) for g in generations),
    }


def evaluations(records: Sequence[dict[str, Any]], recipe: Recipe, rollouts: int) -> list[dict[str, Any]]:
    """The held-out accuracies in a run's metrics, each with the mark of the budget that it belongs to."""
    marks, limit = recipe.evaluation.marks or 1, 60 * (recipe.minutes or float("inf"))
    measured = [record for record in records if "accuracy" in record]

    def mark(record: dict[str, Any]) -> int:
        if record["generation"] == 0:  # whitening may have taken time before it
            return 0
        return marks if record is measured[-1] else min(int(record["seconds"] / limit * marks), marks - 1)

    return [
        {
            "mark": mark(record),
            "generation": record["generation"],
            "seconds": record["seconds"],
            "rollouts": record["generation"] * rollouts,
            **{key: record[key] for key in ("accuracy", "low", "high", "n")},
        }
        for record in measured
    ]


def judge(recipe: Recipe, run: RunFolder, samples: int, trained: Engine | None) -> dict[str, Any]:
    """Accuracy, by answers as in the run's evaluations, pass@k and maj@k, on the recipe's held-out problems: of what
    answers after training, None: of the model that the run saved."""
    held_out = load_data(recipe.data, recipe.seed).test(recipe.evaluation.n, recipe.evaluation.half)
    plainly = {"temperature": TEMPERATURE, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "seed": 0}
    sampling = recipe.held_out_sampling
    saved = recipe.model_copy(update={"model": str(run.model)})
    with trained or build_in_process(saved) as engine, Scorer([accuracy_reward(recipe)], recipe.scoring) as grader:
        final = evaluate(engine, held_out, grader, sampling)
        sampled = (
            evaluate_samples(engine, held_out, grader, sampling.model_copy(update=plainly), samples) if samples else {}
        )
    return {
        **final.summary(),
        "correct": [None if right is None else int(right) for right in final.correct],
        "pass_at_k": {name: share for name, share in sampled.items() if name.startswith("pass@")},
        "maj_at_k": {name: share for name, share in sampled.items() if name.startswith("maj@")},
    }


def peak_gib(recipe: Recipe) -> float:
    """GiB that this process held at most: torch's on the GPU, or the resident set."""
    if recipe.engine.device != "cpu" and torch.cuda.is_available():
        return torch.cuda.max_memory_allocated(device_of(recipe.engine.device)) / 2**30
    status = Path("/proc/self/status")
    if status.is_file():  # unlike ru_maxrss, which begins with what the parent process held
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30


def main(method: str, recipe: Path, samples: int, started: float) -> None:
    """Train RECIPE by METHOD and judge the model, by SAMPLES answers to each problem too; STARTED is a Unix time."""
    resolved = load_recipe(str(recipe))
    result = train_and_judge(method, resolved, samples, started)
    write_json(resolved.output_dir / RESULT, result)


if __name__ == "__main__":
    run_command(main)
