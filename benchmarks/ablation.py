"""What each choice of `countdown_tiny` brings: its recipe with plain noise, and one thing changed at a time, at equal
generations.

    python -m benchmarks.ablation runs/ablation --generations 20 --seeds 0,1,2
    python -m benchmarks.ablation runs/ablation --of objectives --generations 40 --seeds 0,1,2
    python -m benchmarks.ablation runs/ablation --of settings --generations 20 --seeds 0,1,2

Every generation has 2,048 answers of at most 144 tokens, but for variants that say otherwise. A run that is there is
not made again, one that was cut short goes on. All models are judged alike: by eight sampled answers and one greedy
answer to each held-out problem. `settings` ends with the rank correlation of accuracy and the mean `signal` of the
first ten generations.

Legend: S seeds, P held-out problems.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any, Literal

import numpy as np
import typer
from scipy.stats import norm, spearmanr

from eggroll_rl import train
from eggroll_rl.comparison.significance import estimate
from eggroll_rl.config import Recipe, load_recipe
from eggroll_rl.data.dataset import load_data
from eggroll_rl.engines.build import build_in_process
from eggroll_rl.report.drift import drift
from eggroll_rl.runs.evaluation import accuracy_reward, evaluate, pass_at_k
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.scoring import Scorer
from eggroll_rl.system.command import run_command
from eggroll_rl.system.durable import write_json
from eggroll_rl.system.errors import UsageError

RECIPE = "countdown_tiny"
SAMPLES, EARLY = 8, 10  # answers to each held-out problem; generations whose signal is to tell of the end
OWN = "plain noise, sigma 0.04"
ALL = ('parameters.frozen=["*embed*", "*norm*", "*.r_k"]', "optimizer.lr=1.0e-3")  # the head, and the layers' matrices
BASE = (  # of every run
    "population.whitening=null",
    "population.sigma=0.04",
    "optimizer.lr=8.0e-3",
    "sampling.max_new_tokens=144",
    "evaluation.max_new_tokens=null",
    "retention={data: {name: countdown, numbers: [3, 4]}, max_new_tokens: 48, n: 512, stop: ['</answer>'], "
    "reward: {fn: 'eggroll_rl.rewards.countdown:countdown'}}",
)
CHOICES: dict[str, tuple[str, ...]] = {
    OWN: (),
    "whitened noise, sigma 0.04": ("population.whitening=0.03",),
    "whitened noise, sigma 0.06, lr 1.6e-2": (
        "population.whitening=0.03",
        "population.sigma=0.06",
        "optimizer.lr=1.6e-2",
    ),  # the recipe
    "answers of up to 256 tokens": ("sampling.max_new_tokens=256",),
    "no average of the weights": ("optimizer.average=0",),
    "constant rate": ("optimizer.schedule=constant",),
    "SGD": ("optimizer.name=sgd", "optimizer.lr=1.0e-3"),
    "SGD, momentum 0.9": ("optimizer.name=sgd", "optimizer.lr=3.0e-4", "optimizer.momentum=0.9"),
    "Adam without momentum": ("optimizer.betas=[0.0, 0.999]",),
    "all matrices, sigma 0.02, lr 1e-3": (*ALL, "population.sigma=0.02"),
    "no antithetic pairs": ("population.antithetic=false",),
    "greedy members": ("sampling.temperature=0",),
    "512 members x 4 prompts": ("population.size=512", "data.prompts=4"),
    "128 members x 16 prompts": ("population.size=128", "data.prompts=16"),
}
OBJECTIVES: dict[str, tuple[str, ...]] = {
    OWN: (),
    "pass@4": ("data.prompts=2", "fitness.samples=4", "fitness.objective=max"),
    "mean of 4 samples": ("data.prompts=2", "fitness.samples=4"),
    "anchor 0.01": ("optimizer.anchor=0.01",),
    "anchor 0.03": ("optimizer.anchor=0.03",),
}
SETTINGS: dict[str, tuple[str, ...]] = {
    OWN: (),  # the head, 8 prompts
    "head, sigma 0.01, 8 prompts": ("population.sigma=0.01",),
    "head, sigma 0.16, 8 prompts": ("population.sigma=0.16",),
    "head, sigma 0.01, 2 prompts": ("population.sigma=0.01", "data.prompts=2"),
    "head, sigma 0.04, 2 prompts": ("data.prompts=2",),
    "head, sigma 0.16, 2 prompts": ("population.sigma=0.16", "data.prompts=2"),
    "all matrices, sigma 0.01, 8 prompts": (*ALL, "population.sigma=0.01"),
    "all matrices, sigma 0.04, 8 prompts": ALL,
    "all matrices, sigma 0.01, 2 prompts": (*ALL, "population.sigma=0.01", "data.prompts=2"),
    "all matrices, sigma 0.04, 2 prompts": (*ALL, "data.prompts=2"),
}
GROUPS = {"choices": CHOICES, "objectives": OBJECTIVES, "settings": SETTINGS}

Judged = dict[str, Any]


def main(
    folder: Annotated[Path, typer.Argument(help="for the runs; those that are there are kept")],
    of: Annotated[Literal["choices", "objectives", "settings"], typer.Option(help="what is varied")] = "choices",
    generations: Annotated[int, typer.Option(min=1, help="of each run")] = 20,
    seeds: Annotated[str, typer.Option(help="a run of each variant for each")] = "0",
    only: Annotated[list[str] | None, typer.Option(help="these variants alone, by their names in the table")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="of every run, as in evaluation.n=64")] = None,
) -> None:
    """Train the variants of `countdown_tiny` seed by seed, and print what came of them as a table of Markdown."""
    variants = {name: settings for name, settings in GROUPS[of].items() if not only or name in only}
    runs: dict[str, list[Judged]] = {name: [] for name in variants}
    for seed in seeds.split(","):
        for name, settings in variants.items():
            chosen = [*BASE, *(overrides or []), *settings, f"generations={generations}", f"seed={seed}"]
            path = folder / f"{generations}-generations" / f"{name.replace(' ', '-')}-{seed}"
            runs[name].append(judged(path, chosen))
            typer.echo(f"{name}, seed {seed}: {np.mean(runs[name][-1]['right']):.1%}", err=True)
    typer.echo("\n".join(table(runs)))
    if of == "settings":
        typer.echo(correlation(runs))


def judged(path: Path, overrides: Sequence[str]) -> Judged:
    """Train the recipe in this folder, unless it is done, and judge the model that it leaves."""
    result = path / "judged.json"
    if not result.is_file():
        fixed = ["minutes=null", "evaluation.every=0", "snapshots.every=0", f"output_dir={path}"]
        recipe = load_recipe(RECIPE, [*overrides, *fixed])
        run = RunFolder(path)
        if run.journal_file.is_file():
            train.resume(path)
        else:
            train.train(recipe)
        write_json(result, judge(recipe, run) | {"overrides": list(overrides)})
    found: Judged = json.loads(result.read_text())
    if found["overrides"] != list(overrides):
        raise UsageError(f"{path} is a run with other settings: give another folder")
    return found


def judge(recipe: Recipe, run: RunFolder) -> Judged:
    """What share of sampled answers is right for each held-out problem, pass@k and greedy accuracy; and of the run the
    last retention, drift, median step, and mean signal of its first generations."""
    held_out = load_data(recipe.data, recipe.seed).test(recipe.evaluation.n)
    greedy, sampled = (recipe.held_out_sampling.model_copy(update={"temperature": t}) for t in (0.0, 1.0))
    saved = recipe.model_copy(update={"model": str(run.model)})
    with build_in_process(saved) as engine, Scorer([accuracy_reward(recipe)], recipe.scoring) as grader:
        answered = evaluate(engine, held_out.repeated(SAMPLES), grader, sampled)
        once = evaluate(engine, held_out, grader, greedy)
    right_PS = np.array(answered.correct, dtype=float).reshape(-1, SAMPLES)
    records = run.metrics()
    steps = [record for record in records if "update_rms" in record]
    signals = [record["signal"] for record in steps[:EARLY] if record["signal"] is not None]
    return {
        "right": right_PS.mean(1).tolist(),
        f"pass@{SAMPLES}": fmean(pass_at_k(SAMPLES, int(right), SAMPLES) for right in right_PS.sum(1)),
        "greedy": once.accuracy,
        "retention": [record["retention"] for record in records if "retention" in record],
        "drift": drift(recipe.model, run.model),
        "step": median(record["update_rms"] for record in steps),
        "finished": steps[-1]["finished"],
        "signal": fmean(signals) if signals else 0.0,
    }


def table(runs: Mapping[str, Sequence[Judged]]) -> Iterator[str]:
    """Lines of Markdown, a row for each variant and the same seeds."""
    heads = [
        "variant",
        "accuracy",
        "of each seed",
        "difference",
        "pass@8",
        "greedy",
        "within 48 tokens",
        "drift",
        "step",
        "signal",
    ]
    yield "| " + " | ".join(heads) + " |"
    yield "|---|" + "---:|" * (len(heads) - 1)
    own = next(iter(runs.values()))
    for name, made in runs.items():
        right_SP = [one["right"] for one in made]
        value, low, high = found(right_SP)
        cells = [name, f"{value:.1%} [{low:.1%}, {high:.1%}]"]
        cells.append(", ".join(f"{np.mean(right):.1%}" for right in right_SP))
        value, low, high = found(right_SP, [one["right"] for one in own])
        cells.append("" if made is own else f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]")
        means = {key: fmean(one[key] for one in made) for key in ("pass@8", "greedy", "drift", "step", "signal")}
        retained = fmean(one["retention"][-1] for one in made)
        cells += [f"{means['pass@8']:.1%}", f"{means['greedy']:.1%}", f"{retained:.1%}", f"{means['drift']:.1%}"]
        cells += [f"{means['step']:.1e}", f"{means['signal']:+.2f}"]
        yield "| " + " | ".join(cells) + " |"


def found(*right_SP: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """An accuracy, or the difference of two, and its 95 % interval: over seeds and problems, or of one seed over the
    problems alone."""
    over_all = estimate(*right_SP)
    if len(right_SP[0]) > 1:
        return over_all.value, *over_all.interval()
    half = norm.isf(0.025) * over_all.problems**0.5
    return over_all.value, over_all.value - half, over_all.value + half


def correlation(runs: Mapping[str, Sequence[Judged]]) -> str:
    """Spearman's rank correlation of the variants' early signal and their accuracy, means over the seeds."""
    signals = [fmean(one["signal"] for one in made) for made in runs.values()]
    accuracies = [fmean(np.mean(one["right"]) for one in made) for made in runs.values()]
    rho, p_value = spearmanr(signals, accuracies)
    return f"Spearman's rho of early signal and accuracy over {len(runs)} settings: {rho:+.2f} (p = {p_value:.2g})"


if __name__ == "__main__":
    run_command(main)
