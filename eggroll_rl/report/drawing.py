"""Charts as SVG that takes its colours and its font from the page around it, for light and dark alike."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Literal, NamedTuple

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (4.6, 2.8)  # inches, each of 72 units of the SVG: on a phone a unit is about a pixel
SMALL = 9.5  # units, of the text
SERIES = 6  # colours for series

# A colour of a chart is a role. On a page it is drawn in a stand-in, which then becomes a variable of the style sheet.
ROLES = ("muted", "grid", *(f"series-{n}" for n in range(1, SERIES + 1)))
STAND_INS = {role: f"#0000{n:02x}" for n, role in enumerate(ROLES, start=1)}
PAPER = {"muted": "#5b616b", "grid": "#e3e5e8", "series-1": "#2f6feb", "series-2": "#d97706"}

Mark = Literal["line", "thin", "dot", "band", "light", "mid", "deep"]
Colours = Mapping[str, str]
Draw = Callable[["Axes", Colours], None]


class Key(NamedTuple):
    """A line of a legend: what is drawn how."""

    label: str
    role: str
    mark: Mark = "line"


@dataclass(frozen=True)
class Chart:
    """A picture with its words; the legend is the page's, not the picture's."""

    title: str
    note: str
    svg: Markup
    keys: Sequence[Key]


class Charts:
    """Draws the charts of one page."""

    def __init__(self) -> None:
        self._numbers = count(1)

    def __call__(self, title: str, note: str, keys: Sequence[Key], draw: Draw) -> Chart:
        figure, axes = new_axes(STAND_INS)
        draw(axes, STAND_INS)
        return Chart(title, note, as_svg(figure, title, f"chart{next(self._numbers)}-"), keys)


def series_role(index: int) -> str:
    """The role of the ``index``-th series, from 0; beyond ``SERIES`` they come again."""
    return f"series-{index % SERIES + 1}"


def new_axes(colours: Colours, size: tuple[float, float] = SIZE) -> "tuple[Figure, Axes]":
    """Calm axes: no frame, horizontal grid lines, small muted labels."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = Figure(figsize=size, layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(colours["grid"])
    axes.grid(axis="y", color=colours["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=5, labelsize=SMALL, labelcolor=colours["muted"])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=5, min_n_ticks=3))
        axis.set_major_formatter(FuncFormatter(lambda value, _: shown(value)))
        axis.label.set(size=SMALL, color=colours["muted"])
    axes.margins(x=0.01)
    return figure, axes


def shown(value: float) -> str:
    """A number at an axis: ``12,000``, ``0.25``, ``2e-05``."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def as_svg(figure: "Figure", title: str, prefix: str) -> Markup:
    """The figure as an element of a page; ``prefix`` keeps its ids apart from those of others."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r"font-family: [^;\"]*;?|(?<=px) '[^;\"]*", "", text).replace("font: ", "font-size: ")
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{prefix}", text)
    text = re.sub(r"\n\s*", "\n", text)
    for role, stand_in in STAND_INS.items():
        text = text.replace(stand_in, f"var(--{role})")
    label = Markup('<svg role="img" aria-label="{}"').format(title)
    return label + Markup(text.removeprefix("<svg"))
