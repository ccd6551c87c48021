"""A comparison for people: learning curves and a table."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eggroll_rl.comparison.schema import Comparison, Summary

COLORS = {"eggroll": "tab:orange", "grpo": "tab:blue", "openes": "tab:green"}


def draw_curves(comparison: "Comparison", folder: Path) -> None:
    """Held-out accuracy against training time and against rollouts, as two PNG files; bands span the seeds."""
    from matplotlib.figure import Figure

    for name, key, scale, label in (
        ("curves_time.png", "seconds", 60, "minutes of training"),
        ("curves_rollouts.png", "rollouts", 1, "rollouts"),
    ):
        figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
        axes = figure.subplots()
        for summary in comparison["summaries"]:
            points: Any = summary["curve"]
            x, color = [point[key] / scale for point in points], COLORS[summary["method"]]
            axes.plot(x, [p["accuracy"] for p in points], color=color, marker="o", markersize=3, label=summary["label"])
            axes.fill_between(
                x, [p["low"] for p in points], [p["high"] for p in points], color=color, alpha=0.2, linewidth=0
            )
        n, seeds = comparison["runs"][0]["n"], len(comparison["seeds"])
        axes.set(xlabel=label, ylabel=f"held-out accuracy ({n} problems)")
        if key == "rollouts":
            axes.set_xscale("symlog", linthresh=100)
        axes.grid(alpha=0.3)
        axes.legend(loc="best", frameon=False, title=f"mean and range of {seeds} seeds" if seeds > 1 else "one seed")
        figure.savefig(folder / name)


def markdown(comparison: "Comparison") -> str:
    """The table of ``compare.md``: a row for each figure, a column for each method."""
    summaries = comparison["summaries"]
    rows = [
        ["", *(summary["label"] for summary in summaries)],
        ["---", *("---:" for _ in summaries)],
        *([name, *(str(show(summary)) for summary in summaries)] for name, show in ROWS),
        *(
            [name, *(f"{summary['pass_at_k'][name]:.1%}" for summary in summaries)]
            for name in summaries[0]["pass_at_k"]
        ),
    ]
    device = comparison["environment"]
    budget = f"{comparison['minutes']:g} minutes of training for each run"
    if comparison["memory_gib"] is not None:
        budget += f" within {comparison['memory_gib']:g} GiB"
    lines = [
        f"# {comparison['recipe_name']}: {' against '.join(summary['label'] for summary in summaries)}",
        "",
        comparison["conclusion"],
        "",
        f"{budget}; seeds {', '.join(map(str, comparison['seeds']))}; {device['device']}, {device['threads']} threads.",
        "",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        *(f"- {summary['label']}: {_settings(summary)}" for summary in summaries),
    ]
    if comparison["trials"]:
        lines += ["", f"Settings tried, on {comparison['trials'][0]['n']} problems that no run is judged by:", ""]
        lines += ["| method | settings | accuracy | |", "| --- | --- | ---: | --- |"]
        lines += [
            f"| {trial['method']} | {_shown(trial['settings'])} | {trial['accuracy']:.1%} | "
            f"{'chosen' if trial['chosen'] else ''} |"
            for trial in comparison["trials"]
        ]
    if comparison["probes"]:
        lines += ["", "Memory of a batch:", "", "| method | rollouts | peak GiB | |", "| --- | ---: | ---: | --- |"]
        lines += [
            f"| {probe['method']} | {probe['rollouts']:,} | {_gib(probe['peak_memory_gib'])} | "
            f"{'chosen' if probe['chosen'] else ''} |"
            for probe in comparison["probes"]
        ]
    return "\n".join(lines) + "\n"


ROWS: tuple[tuple[str, Any], ...] = (
    ("held-out accuracy, greedy (Wilson 95 %)", lambda s: f"{s['accuracy']:.1%} [{s['low']:.1%}, {s['high']:.1%}]"),
    ("of each seed", lambda s: ", ".join(f"{accuracy:.1%}" for accuracy in s["seed_accuracies"])),
    ("before training", lambda s: f"{s['base_accuracy']:.1%}"),
    ("rollouts", lambda s: f"{s['rollouts']:,.0f}"),
    ("tokens generated", lambda s: f"{s['tokens']:,.0f}"),
    ("updates", lambda s: f"{s['updates']:,.0f}"),
    ("rollouts per second", lambda s: f"{s['samples_per_second']:,.0f}"),
    ("tokens per second", lambda s: f"{s['tokens_per_second']:,.0f}"),
    ("peak memory", lambda s: f"{s['peak_memory_gib']:.2f} GiB"),
    ("drift from the base weights", lambda s: f"{s['drift']:.2%}"),
    ("seconds of training", lambda s: f"{s['seconds_training']:.0f}"),
    ("seconds of loading before", lambda s: f"{s['seconds_loading']:.0f}"),
)


def _settings(summary: "Summary") -> str:
    text = _shown(summary["settings"]) or "the recipe as it is"
    return f"{text}; {summary['note']}." if summary["note"] else f"{text}."


def _shown(settings: dict[str, Any]) -> str:
    shown = {key: f"{len(value)} matrices" if isinstance(value, list) else value for key, value in settings.items()}
    return ", ".join(
        f"`{key}={value:.3g}`" if isinstance(value, float) else f"`{key}={value}`" for key, value in shown.items()
    )


def _gib(peak: float | None) -> str:
    return "failed" if peak is None else f"{peak:.2f}"
