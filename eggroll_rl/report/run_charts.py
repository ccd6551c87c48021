"""The charts of one run."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from eggroll_rl.report.drawing import Chart, Charts, Colours, Key, Stroke, picture, series_role
from eggroll_rl.report.series import SMOOTH, Array, History, smoothed, thinned, time_scale
from eggroll_rl.runs.metrics import QUANTILES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIRST, SECOND, THIRD = (series_role(index) for index in range(3))
BANDS = 60  # points of the quantiles, at most
MEAN = Key(f"training reward, mean of {SMOOTH} generations", FIRST)
ACCURACY = Key("held-out accuracy, Wilson 95%", SECOND, "dot")


RETENTION = Key("accuracy on what is not trained", THIRD, "dot")


def run_charts(history: History, draw: Charts) -> dict[str, list[Chart]]:
    """Charts by section, without those for which the run has no numbers."""
    sections = {
        "Learning": [_learning(history, draw, "seconds"), _learning(history, draw, "rollouts")],
        "Rewards and answers": [
            *_distribution(history, draw),
            *_lengths(history, draw),
            *_by_function(history, draw),
        ],
        "Steps and speed": [*_steps(history, draw), *throughput(history, draw), *parts(history, draw)],
    }
    return {name: charts for name, charts in sections.items() if charts}


def draw_learning(axes: "Axes", colours: Colours, history: History, against: str) -> None:
    """Mean reward of the population and held-out accuracy against ``seconds`` or ``rollouts``."""
    spent_G, spent_E = history.spent(against)
    unit, label = 1.0, "rollouts"
    if against == "seconds":
        unit, name = time_scale(max([*spent_G, *spent_E], default=0.0))
        label = f"{name} of training"
    reward_G, x_E = history.column("reward_mean"), spent_E / unit
    axes.plot(thinned(spent_G) / unit, thinned(reward_G), color=colours[FIRST], alpha=0.3, linewidth=0.8)
    axes.plot(thinned(spent_G) / unit, thinned(smoothed(reward_G)), color=colours[FIRST], linewidth=1.8)
    axes.fill_between(
        x_E, history.measured("low"), history.measured("high"), color=colours[SECOND], alpha=0.18, linewidth=0
    )
    axes.plot(x_E, history.measured("accuracy"), color=colours[SECOND], marker="o", markersize=4, linewidth=1.4)
    axes.plot(x_E, history.measured("retention"), color=colours[THIRD], marker="o", markersize=4, linewidth=1.4)
    axes.set(xlabel=label, ylim=(min([0.0, *reward_G[~np.isnan(reward_G)]]), None))


def learning_curve(history: History) -> "Figure":
    """Learning against time as a picture of its own."""
    return picture(_keys(history), lambda axes, colours: draw_learning(axes, colours, history, "seconds"))


def _keys(history: History) -> list[Key]:
    is_measured = bool(np.isfinite(history.measured("retention")).any())
    return [MEAN, ACCURACY, *([RETENTION] if is_measured else [])]


def _learning(history: History, draw: Charts, against: str) -> Chart:
    title = "Against training time" if against == "seconds" else "Against rollouts"
    note = "Evaluation is not counted as training." if against == "seconds" else "A rollout is one sampled answer."
    return draw(title, note, _keys(history), lambda axes, colours: draw_learning(axes, colours, history, against))


def _distribution(history: History, draw: Charts) -> list[Chart]:
    quantiles_GQ = history.quantiles()
    if not quantiles_GQ.shape[1]:
        return []
    x, y_Q = thinned(history.column("generation"), BANDS), thinned(quantiles_GQ, BANDS).T
    middle = len(QUANTILES) // 2
    depths: list[tuple[Stroke, float]] = [("light", 0.12), ("mid", 0.2), ("deep", 0.32)]
    keys = [Key("median member", FIRST)]
    keys += [
        Key(f"{100 * QUANTILES[low]:.0f}\u2013{QUANTILES[-1 - low]:.0%}" if low else "all members", FIRST, mark)
        for low, (mark, _) in enumerate(depths)
    ]

    def paint(axes: "Axes", colours: Colours) -> None:
        for low, (_, alpha) in enumerate(depths):
            axes.fill_between(x, y_Q[low], y_Q[-1 - low], color=colours[FIRST], alpha=alpha, linewidth=0)
        axes.plot(x, y_Q[middle], color=colours[FIRST], linewidth=1.8)
        axes.set(xlabel="generation")

    return [draw("Reward of the members", "Each member's mean over its prompts, in each generation.", keys, paint)]


def _by_function(history: History, draw: Charts) -> list[Chart]:
    names = list(dict.fromkeys(name for record in history.generations for name in record.get("rewards", {})))
    curves = [(name, smoothed(history.reward(name))) for name in names]
    return [lines(history, draw, "Reward functions", "Each one's mean, before weights.", curves)] if curves[1:] else []


def _steps(history: History, draw: Charts) -> list[Chart]:
    charts = []
    if history.has("update_rms"):
        curves = [("root mean square of the step", history.column("update_rms"))]
        charts.append(lines(history, draw, "Size of the update", "Over all parameters that evolve.", curves))
    if history.has("signal"):
        curves = [(f"signal, mean of {SMOOTH} generations", smoothed(history.column("signal")))]
        note = "What share of the differences between members other prompts would confirm."
        charts.append(lines(history, draw, "Signal", note, curves))
    if len(set(history.column("lr"))) > 1:
        curves = [("learning rate", history.column("lr"))]
        charts.append(lines(history, draw, "Learning rate", "", curves))
    return charts


def throughput(history: History, draw: Charts) -> list[Chart]:
    if not history.has("tokens_per_second"):
        return []
    curves = [("tokens per second", history.column("tokens_per_second"))]
    return [lines(history, draw, "Throughput", "Of whole generations: sampling, scoring and updating.", curves)]


def _lengths(history: History, draw: Charts) -> list[Chart]:
    if not history.has("tokens"):
        return []
    curves = [("tokens of an answer", history.column("tokens") / history.rollouts)]
    return [lines(history, draw, "Length of answers", "Mean over the answers of a generation.", curves)]


def parts(history: History, draw: Charts) -> list[Chart]:
    """A stacked chart of the seconds of a generation by their parts (generate, score, update); none without such."""
    names = history.parts()
    if not names:
        return []
    x, parts = thinned(history.column("generation")), [thinned(history.column(f"seconds_{name}")) for name in names]
    roles = [series_role(index) for index in range(len(names))]

    def paint(axes: "Axes", colours: Colours) -> None:
        heights = np.nan_to_num(np.array(parts))
        colors = [colours[role] for role in roles]
        axes.stackplot(x, heights, colors=colors, alpha=0.75, linewidth=0)
        axes.set(xlabel="generation", ylim=(0, None))

    keys = [Key(name, role, "band") for name, role in zip(names, roles, strict=True)]
    return [draw("Seconds of a generation", "By what they were spent on.", keys, paint)]


def lines(history: History, draw: Charts, title: str, note: str, curves: Sequence[tuple[str, Array]]) -> Chart:
    """Curves over the generations."""
    x = thinned(history.column("generation"))
    roles = [series_role(index) for index in range(len(curves))]

    def paint(axes: "Axes", colours: Colours) -> None:
        for role, (_, values) in zip(roles, curves, strict=True):
            axes.plot(x, thinned(values), color=colours[role], linewidth=1.5)
        axes.set(xlabel="generation", ylim=(min(0.0, axes.get_ylim()[0]), None))

    return draw(title, note, [Key(name, role) for role, (name, _) in zip(roles, curves, strict=True)], paint)
