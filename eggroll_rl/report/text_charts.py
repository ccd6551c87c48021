"""The charts of a run on text."""

from typing import TYPE_CHECKING

import numpy as np

from eggroll_rl.report.drawing import SERIES, SMALL, Chart, Charts, Colours, Key, picture, series_role
from eggroll_rl.report.run_charts import FIRST, SECOND, lines, parts, throughput
from eggroll_rl.report.series import History, smoothed, thinned, time_scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UNIFORM = 8.0  # bits per byte of a uniform guess
KEYS = (
    Key("the members, on what they read", FIRST),
    Key("the model, on held-out text", SECOND, "dot"),
    Key("the text itself, by counts of bytes, of pairs, and by gzip", "muted", "thin"),
)


def text_charts(history: History, draw: Charts) -> dict[str, list[Chart]]:
    """Charts by section."""
    return {
        "Learning": [_learning(history, draw, "updates"), _learning(history, draw, "seconds")],
        "Steps and saturation": [_moved(history, draw), *_saturation(history, draw)],
        "Speed": [*throughput(history, draw), *parts(history, draw)],
    }


def text_curve(history: History) -> "Figure":
    """Learning against time as a picture of its own."""
    return picture(KEYS, lambda axes, colours: draw_bits(axes, colours, history, "seconds"))


def draw_bits(axes: "Axes", colours: Colours, history: History, against: str) -> None:
    """Bits per byte of the population and of the model against ``seconds`` or ``updates``, with the text's yardsticks
    as lines."""
    spent_G, spent_E = history.spent(against)
    unit, label = 1.0, "updates"
    if against == "seconds":
        unit, name = time_scale(max([*spent_G, *spent_E], default=0.0))
        label = f"{name} of training"
    bits_G, bits_E = history.column("bits_per_byte"), history.measured("bits_per_byte")
    axes.plot(thinned(spent_G) / unit, thinned(smoothed(bits_G)), color=colours[FIRST], linewidth=1.5)
    axes.plot(spent_E / unit, bits_E, color=colours[SECOND], marker="o", markersize=4, linewidth=1.4)
    yardsticks = history.evaluations[-1]["yardsticks"] if history.evaluations else {}
    for name, bits in yardsticks.items():
        axes.axhline(bits, color=colours["muted"], linewidth=1.0, linestyle="--")
        axes.annotate(
            name,
            (1, bits),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            color=colours["muted"],
            fontsize=SMALL,
        )
    values = np.array([*bits_G, *bits_E, *yardsticks.values()])
    values = values[~np.isnan(values)]
    top = min(UNIFORM, values.max(initial=0.0)) + 0.2
    axes.set(xlabel=label, ylim=(min(values.min(initial=top) - 0.2, top - 1), top))


def _learning(history: History, draw: Charts, against: str) -> Chart:
    title = "Against training time" if against == "seconds" else "Against updates"
    note = "Bits per byte, where they are below 8. " + (
        "Measuring is not counted as training." if against == "seconds" else "An update is a generation."
    )
    return draw(title, note, KEYS, lambda axes, colours: draw_bits(axes, colours, history, against))


def _moved(history: History, draw: Charts) -> Chart:
    curves = [
        ("share that moved by one", history.column("update_rms") ** 2),
        ("share that the schedule is for", history.column("lr")),
    ]
    return lines(history, draw, "Weights moved", "Of all weights, in each generation.", curves)


def _saturation(history: History, draw: Charts) -> list[Chart]:
    """The products that are most saturated at the end."""
    if not history.evaluations:
        return []
    last = history.evaluations[-1]["saturation"]["products"]
    names = sorted(last, key=lambda name: (-last[name], name))[:SERIES]
    x = history.measured("generation")
    roles = [series_role(index) for index in range(len(names))]

    def paint(axes: "Axes", colours: Colours) -> None:
        for role, name in zip(roles, names, strict=True):
            shares = [record["saturation"]["products"][name] for record in history.evaluations]
            axes.plot(x, shares, color=colours[role], linewidth=1.5)
        axes.set(xlabel="generation", ylim=(0, None))

    keys = [Key(name, role) for name, role in zip(names, roles, strict=True)]
    return [draw("Saturation", "Share of a matrix's products at -127 or 127; the six with most.", keys, paint)]
