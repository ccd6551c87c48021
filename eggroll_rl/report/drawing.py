"""Charts as SVG that takes its colours and its font from the page around it, for light and dark alike."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (4.6, 2.8)  # inches, each of 72 units of the SVG: on a phone a unit is about a pixel
SMALL = 9.5  # units, of the text
SERIES = 6  # colours for series

# A chart names colours by role. For a page it is drawn in stand-in colours, which become variables of the style sheet.
ROLES = ("muted", "grid", *(f"series-{n}" for n in range(1, SERIES + 1)))
STAND_INS = {role: f"#0000{n:02x}" for n, role in enumerate(ROLES, start=1)}
FONT = "DejaVu Sans"  # by which matplotlib measures text; on a page the text has the page's font
ON_PAPER = ("#5b616b", "#e3e5e8", "#2f6feb", "#d97706", "#0f8a7e", "#a04bc0", "#c0394f", "#7a6a2f")
PAPER = dict(zip(ROLES, ON_PAPER, strict=True))

Stroke = Literal["line", "thin", "dot", "band", "light", "mid", "deep"]
Colours = Mapping[str, str]
Painter = Callable[["Axes", Colours], None]


class Key(NamedTuple):
    """A line of a legend: label, colour role, and how it is drawn."""

    label: str
    role: str
    mark: Stroke = "line"


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

    def __call__(self, title: str, note: str, keys: Sequence[Key], draw: Painter) -> Chart:
        figure, axes = new_axes(STAND_INS)
        draw(axes, STAND_INS)
        return Chart(title, note, as_svg(figure, f"chart{next(self._numbers)}-"), keys)


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


def picture(keys: Sequence[Key], draw: Painter, size: tuple[float, float] = (7.0, 4.0)) -> "Figure":
    """A chart as a figure of its own, on white and with its legend."""
    figure, axes = new_axes(PAPER, size)
    figure.patch.set(visible=True, facecolor="white")
    draw(axes, PAPER)
    handles = [
        axes.plot([], [], color=PAPER[key.role], marker="o" if key.mark == "dot" else None, label=key.label)[0]
        for key in keys
    ]
    axes.legend(handles=handles, loc="best", frameon=False, fontsize=9)
    return figure


def as_svg(figure: "Figure", prefix: str) -> Markup:
    """The figure as an element of a page; ``prefix`` keeps its ids apart from those of others."""
    import matplotlib

    file = io.StringIO()
    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": prefix,
        "font.family": "sans-serif",
        "font.sans-serif": [FONT],
    }
    with matplotlib.rc_context(style):
        figure.draw_without_rendering()  # makes the ticks
        for number, artist in enumerate(figure.findobj()):
            artist.set_gid(f"{prefix}{number}")
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(f"font-family: '{FONT}', sans-serif; ", "")
    for role, stand_in in STAND_INS.items():
        text = text.replace(stand_in, f"var(--{role})")
    return Markup(text)
