"""The page of an equal-time comparison, from its ``compare.json`` (see ``eggroll_rl.comparison.schema``) and its runs.

Legend: E evaluations of a run.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import yaml

from eggroll_rl.report.drawing import Chart, Charts, Colours, Key, series_role
from eggroll_rl.report.pages import write_page
from eggroll_rl.report.run_page import describe_environment, is_run, last_answers, model_name, write_run_page
from eggroll_rl.report.series import time_scale
from eggroll_rl.report.words import count, duration, interval, plural, setting, share
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.system.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILE = "compare.json"
VERSION = 2

Facts = dict[str, Any]


class Cell(NamedTuple):
    """Of a table: a figure and what qualifies it."""

    value: str
    detail: str = ""


def write_comparison_page(folder: Path, path: Path) -> None:
    """Write the page of a comparison, and the pages of those of its runs that have none.

    In the comparison's folder it links to them; elsewhere it stands alone, to be passed on.

    Raises:
        UsageError: there is no comparison of a known version, or a file cannot be written.
    """
    comparison = _load(folder / FILE)
    runs = {(run["method"], run["seed"]): RunFolder(folder / run["folder"]) for run in comparison["runs"]}
    for run in runs.values():
        if is_run(run) and not run.report.is_file():
            write_run_page(run, run.report)
    at_home = path.parent.resolve() == folder.resolve()
    pages = {key: run.report for key, run in runs.items() if at_home and run.report.is_file()}
    links = {key: quote(page.relative_to(folder).as_posix()) for key, page in pages.items()}
    summaries = comparison["summaries"]
    labels = {summary["method"]: summary["label"] for summary in summaries}
    recipe, seeds = comparison["recipe"], plural(len(comparison["seeds"]), "seed")
    methods = [{**summary, "role": series_role(index)} for index, summary in enumerate(summaries)]
    facts = {
        "title": f"{' vs '.join(labels.values())}: {model_name(str(recipe.get('model', '')))}",
        "lede": comparison["conclusion"],
        "description": f"{duration(60 * comparison['minutes'])} of training for every method, {seeds}.",
        "methods": methods,
        "figures": _figures(summaries),
        "curves": _curves(comparison, methods, Charts()),
        "tests": [_test(test, labels) for test in comparison["tests"]],
        "problems": _problems(comparison, labels, runs),
        "runs": [_run(run, labels, links) for run in comparison["runs"]],
        "trials": [_trial(trial, labels) for trial in comparison["trials"]],
        "probes": [_probe(probe, labels) for probe in comparison["probes"]],
        "memory_gib": comparison["memory_gib"],
        "settings": [(s["label"], "; ".join(filter(None, [setting(s["settings"]), s["note"]]))) for s in summaries],
        "recipe": yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True),
        "recipe_name": comparison["recipe_name"],
        "environment": describe_environment(comparison["environment"]),
    }
    write_page("comparison", facts, path)


def _load(file: Path) -> Facts:
    try:
        comparison = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read as a comparison: {error}") from error
    version = comparison.get("version") if isinstance(comparison, dict) else None
    if version != VERSION:
        raise UsageError(f"{file} is a comparison of version {version}, and this package reads version {VERSION}")
    return comparison


def _figures(summaries: Sequence[Facts]) -> list[tuple[str, list[Cell]]]:
    """Rows of the table: a quantity, and its cell for each method."""

    def row(name: str, cell: Callable[[Facts], Cell]) -> tuple[str, list[Cell]]:
        return name, [cell(summary) for summary in summaries]

    def plain(name: str, key: str, words: Callable[[float], str] = count) -> tuple[str, list[Cell]]:
        return row(name, lambda s: Cell(words(s[key])))

    ks = dict.fromkeys(k for summary in summaries for k in summary["pass_at_k"])
    return [
        row("Held-out accuracy", _accuracy),
        plain("answers judged", "n"),
        row("of each seed", lambda s: Cell(", ".join(map(share, s["seed_accuracies"])))),
        plain("before training", "base_accuracy", share),
        *(row(k, partial(_pass_at, k)) for k in ks),
        plain("Rollouts", "rollouts"),
        plain("Tokens", "tokens"),
        plain("Generations", "generations"),
        plain("Updates", "updates"),
        plain("Rollouts per second", "samples_per_second", lambda value: f"{value:,.1f}"),
        plain("Tokens per second", "tokens_per_second"),
        plain("Peak memory, GiB", "peak_memory_gib", lambda value: f"{value:.2f}"),
        plain("Drift from the base", "drift", lambda value: f"{value:.2%}"),
        plain("Training time", "seconds_training", duration),
        plain("Loading time", "seconds_loading", duration),
    ]


def _pass_at(k: str, summary: Facts) -> Cell:
    return Cell(share(summary["pass_at_k"][k]) if k in summary["pass_at_k"] else "")


def _curves(comparison: Facts, methods: Sequence[Facts], draw: Charts) -> list[Chart]:
    """Held-out accuracy of every seed and their mean, against training time and against rollouts."""
    longest = max((mark["seconds"] for run in comparison["runs"] for mark in run["evaluations"]), default=0.0)
    unit, name = time_scale(longest)
    keys = [Key(method["label"], method["role"]) for method in methods]

    def chart(title: str, label: str, against: str, unit: float) -> Chart:
        def paint(axes: "Axes", colours: Colours) -> None:
            for method in methods:
                colour, curve = colours[method["role"]], method["curve"]
                for run in comparison["runs"]:
                    if run["method"] == method["method"]:
                        x = [mark[against] / unit for mark in run["evaluations"]]
                        accuracies = [mark["accuracy"] for mark in run["evaluations"]]
                        axes.plot(x, accuracies, color=colour, alpha=0.4, linewidth=0.8)
                x = [point[against] / unit for point in curve]
                low, high = ([point[end] for point in curve] for end in ("low", "high"))
                axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)
                axes.plot(x, [point["accuracy"] for point in curve], color=colour, linewidth=2.2)
            axes.set(xlabel=label, ylim=(0, None))

        return draw(title, "Thick: the mean of the seeds. Thin: each seed.", keys, paint)

    return [
        chart("Against training time", f"{name} of training", "seconds", unit),
        chart("Against rollouts", "rollouts", "rollouts", 1.0),
    ]


def _test(test: Facts, labels: dict[str, str]) -> Facts:
    return {
        "pair": f"{labels[test['first']]} against {labels[test['second']]}",
        "seed": "all" if test["seed"] is None else str(test["seed"]),
        "alone": Cell(f"{test['only_first']} : {test['only_second']}", f"of {plural(test['n'], 'answer')}"),
        "difference": Cell(f"{100 * test['difference']:+.1f} points", _points(test["low"], test["high"])),
        "p_value": f"{test['p_value']:.3f}" if test["p_value"] >= 0.001 else f"{test['p_value']:.0e}",
    }


def _points(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{100 * low:+.1f} to {100 * high:+.1f}"


def _problems(comparison: Facts, labels: dict[str, str], runs: dict[tuple[str, int], RunFolder]) -> list[Facts]:
    """The first held-out problems with the final answers of every method's first seed."""
    answers: dict[str, list[Facts]] = {}
    for run in comparison["runs"]:
        found = last_answers(runs[run["method"], run["seed"]])
        if found:
            answers.setdefault(run["method"], [{**answer, "who": labels[run["method"]]} for answer in found])
    return [
        {"prompt": same[0]["prompt"], "answers": [answer for answer in same if answer["prompt"] == same[0]["prompt"]]}
        for same in zip(*answers.values(), strict=False)
    ]


def _run(run: Facts, labels: dict[str, str], links: dict[tuple[str, int], str]) -> Facts:
    return {
        "label": labels[run["method"]],
        "seed": run["seed"],
        "link": links.get((run["method"], run["seed"])),
        "folder": run["folder"],
        "accuracy": _accuracy(run),
        "rollouts": count(run["rollouts"]),
        "time": duration(run["seconds_total"]),
        "failures": count(run["reward_failures"]),
    }


def _trial(trial: Facts, labels: dict[str, str]) -> Facts:
    tried = Cell(setting(trial["settings"]), duration(60 * trial["minutes"]))
    return {**trial, "label": labels.get(trial["method"], trial["method"]), "tried": tried, "cell": _accuracy(trial)}


def _probe(probe: Facts, labels: dict[str, str]) -> Facts:
    memory = probe["peak_memory_gib"]
    return {
        **probe,
        "label": labels.get(probe["method"], probe["method"]),
        "tried": Cell(setting(probe["settings"]), f"{plural(probe['rollouts'], 'rollout')} in one batch"),
        "memory": "failed, or longer than the budget" if memory is None else f"{memory:.2f} GiB",
    }


def _accuracy(facts: Facts) -> Cell:
    return Cell(share(facts["accuracy"]), interval(facts["low"], facts["high"]))
