"""A comparison for people: its page, the same in Markdown, and its learning curves as pictures."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import yaml

from eggroll_rl.comparison.methods import LABELS
from eggroll_rl.comparison.schema import VERSION
from eggroll_rl.comparison.tables import METHODS, TESTS, markdown_table, settings_texts, tables
from eggroll_rl.report import write_report as write_run_report
from eggroll_rl.report.drawing import Chart, Charts, Colours, Key, Painter, picture, series_role
from eggroll_rl.report.pages import write_page
from eggroll_rl.report.run_page import environment_facts, is_run, last_answers, model_name
from eggroll_rl.report.series import time_scale
from eggroll_rl.report.words import duration, plural
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.system.durable import replace_file
from eggroll_rl.system.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from eggroll_rl.comparison.schema import Comparison, Summary

FILE = "compare.json"
REPORT = "report.html"
CURVES = {"seconds": "curves_time.png", "rollouts": "curves_rollouts.png"}


def write_pages(comparison: "Comparison", folder: Path) -> None:
    """Write ``compare.md``, the learning curves and the page of a comparison, whose ``compare.json`` is there."""
    replace_file(folder / "compare.md", lambda file: file.write_text(markdown(comparison), encoding="utf-8"))
    for against, name in CURVES.items():
        figure = picture(_keys(comparison), _curves(comparison, against))
        replace_file(folder / name, partial(figure.savefig, dpi=150, format="png"))
    write_report(folder)


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write the page of a comparison, and the pages of those of its runs that have none; returns the file.

    In the comparison's folder it links to them; elsewhere it stands alone, to be passed on.

    Raises:
        UsageError: there is no comparison of this version, or a file cannot be written.
    """
    path = output or folder / REPORT
    comparison = _load(folder / FILE)
    runs = {(run["method"], run["seed"]): RunFolder(folder / run["folder"]) for run in comparison["runs"]}
    for run in runs.values():
        if is_run(run) and not run.report.is_file():
            write_run_report(run.path)
    is_at_home = path.parent.resolve() == folder.resolve()
    pages = {key: run.report for key, run in runs.items() if is_at_home and run.report.is_file()}
    links = {key: quote(page.relative_to(folder).as_posix()) for key, page in pages.items()}
    recipe, draw = comparison["recipe"], Charts()
    made = tables(comparison, links)
    facts = {
        "title": f"{' vs '.join(s['label'] for s in comparison['summaries'])}: {model_name(str(recipe['model']))}",
        "lede": comparison["conclusion"],
        "description": _budget(comparison),
        "methods": made.pop(METHODS),
        "curves": [_chart(comparison, draw, against) for against in CURVES],
        "tests": made.pop(TESTS, None),
        "problems": _problems(comparison, runs),
        "tables": list(made.values()),
        "settings": [(summary["label"], _settings(summary)) for summary in comparison["summaries"]],
        "recipe": yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True),
        "recipe_name": comparison["recipe_name"],
        "environment": environment_facts(comparison["environment"]),
    }
    write_page("comparison", facts, path, "eggroll_rl.comparison")
    return path


def markdown(comparison: "Comparison") -> str:
    """The text of ``compare.md``."""
    labels = " against ".join(summary["label"] for summary in comparison["summaries"])
    lines = [f"# {comparison['recipe_name']}: {labels}", "", comparison["conclusion"], "", _budget(comparison), ""]
    for table in tables(comparison, {}).values():
        lines += [f"## {table.title}", "", *([table.note, ""] if table.note else []), *markdown_table(table), ""]
    lines += ["## Settings", "", *(f"- {s['label']}: {_settings(s, '`')}" for s in comparison["summaries"])]
    return "\n".join(lines) + "\n"


def _load(file: Path) -> "Comparison":
    try:
        comparison = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read as a comparison: {error}") from error
    version = comparison.get("version") if isinstance(comparison, dict) else None
    if version != VERSION:
        raise UsageError(f"{file} is a comparison of version {version}, and this package reads version {VERSION}")
    return comparison


def _budget(comparison: "Comparison") -> str:
    memory, device = comparison["memory_gib"], comparison["environment"]
    within = "" if memory is None else f" within {memory:g} GiB"
    seeds = ", ".join(map(str, comparison["seeds"]))
    return (
        f"{duration(60 * comparison['minutes'])} of training for each run{within}; seeds {seeds}; {device['device']}, "
        f"{plural(device['threads'], 'thread')}."
    )


def _settings(summary: "Summary", quote: str = "") -> str:
    texts = settings_texts(summary["settings"])
    text = ", ".join(f"{quote}{text}{quote}" for text in texts) or "the recipe as it is"
    return f"{text}; {summary['note']}." if summary["note"] else f"{text}."


def _keys(comparison: "Comparison") -> list[Key]:
    return [Key(summary["label"], series_role(index)) for index, summary in enumerate(comparison["summaries"])]


def _chart(comparison: "Comparison", draw: Charts, against: str) -> Chart:
    title = "Against training time" if against == "seconds" else "Against rollouts"
    note = "Thick: the mean of the seeds. Thin: each seed."
    return draw(title, note, _keys(comparison), _curves(comparison, against))


def _curves(comparison: "Comparison", against: str) -> Painter:
    """Draws held-out accuracy, of every seed and their mean, against training time (seconds) or rollouts."""
    unit, label = 1.0, "rollouts"
    if against == "seconds":
        seconds = [evaluation["seconds"] for run in comparison["runs"] for evaluation in run["evaluations"]]
        unit, name = time_scale(max(seconds, default=0.0))
        label = f"{name} of training"

    def spent(points: Sequence[Any]) -> list[float]:
        return [point[against] / unit for point in points]

    def paint(axes: "Axes", colours: Colours) -> None:
        for index, summary in enumerate(comparison["summaries"]):
            colour, points = colours[series_role(index)], summary["curve"]
            for run in comparison["runs"]:
                if run["method"] == summary["method"]:
                    accuracies = [evaluation["accuracy"] for evaluation in run["evaluations"]]
                    axes.plot(spent(run["evaluations"]), accuracies, color=colour, alpha=0.4, linewidth=0.8)
            low, high = [point["low"] for point in points], [point["high"] for point in points]
            axes.fill_between(spent(points), low, high, color=colour, alpha=0.14, linewidth=0)
            axes.plot(spent(points), [point["accuracy"] for point in points], color=colour, linewidth=2.2)
        axes.set(xlabel=label, ylim=(0, None))

    return paint


def _problems(comparison: "Comparison", runs: dict[tuple[str, int], RunFolder]) -> list[dict[str, Any]]:
    """The first held-out problems with the final answers of every method's first seed."""
    answers: dict[str, list[dict[str, Any]]] = {}
    for key, run in runs.items():
        found = last_answers(run)
        if found:
            answers.setdefault(key[0], [{**answer, "who": LABELS[key[0]]} for answer in found])
    return [
        {"prompt": same[0]["prompt"], "answers": [answer for answer in same if answer["prompt"] == same[0]["prompt"]]}
        for same in zip(*answers.values(), strict=False)
    ]
