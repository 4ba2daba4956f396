"""Charts by matplotlib, as SVG within the page: its font, and its colours by day and by night."""

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from detops.apps import require
from detops.apps.data.table import Array

INK, LINE = "#1c1e21", "#d3d6d9"  # in the page, these are its own colours
COLORS = ("#4285b4", "#e8710a", "#188038", "#d93025", "#9334e6", "#12a4af", "#b06000", "#e52592")
SIZE = (4.8, 3.2)  # inches; letters of 10 points stay legible where it is 350 pixels wide
RANGE = 20.0  # values that span more than this factor are drawn on a logarithmic axis
POINTS = 400  # more of one curve cannot be seen
Curve = tuple[Sequence[float], Sequence[float]]
Limits = tuple[float, float | None] | None
STYLE = {
    "font.size": 10, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.edgecolor": INK, "axes.linewidth": 0.6, "grid.color": LINE, "grid.linewidth": 0.6, "axes.grid": True,
    "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "legend.fontsize": 9, "axes.titlesize": 11, "axes.titlelocation": "left", "svg.fonttype": "none",
    "svg.hashsalt": "detops", "lines.linewidth": 1.6,
}  # fmt: skip


def lines(
    title: str,
    curves: Mapping[str, Curve],
    labels: tuple[str, str],
    *,
    bold: str = "",
    limits: tuple[Limits, Limits] = (None, None),
    log: bool = False,
    whole: bool = False,
    mark: tuple[float, float] | None = None,
    dots: bool = False,
) -> str:
    """Draw curves.

    Args:
        title: What they are.
        curves: x and y of each, by name; one without a name has no entry in the legend.
        labels: Names of both axes.
        bold: Name of the curve that is drawn in ink, on top.
        limits: Limits of both axes; None fits the data.
        log: Draw y on a logarithmic axis, if it is positive and spans much.
        whole: Whole numbers on x.
        mark: A point.
        dots: Mark each value of a short curve.
    """
    ticker = require("matplotlib.ticker", "matplotlib")

    def draw(axes: Any) -> None:
        for index, (name, (x, y)) in enumerate(curves.items()):
            step = max(1, len(x) // POINTS)
            style = {"color": INK, "lw": 2.2, "zorder": 3} if name == bold else {"color": COLORS[index % len(COLORS)]}
            if dots and len(x) < 30:
                style |= {"marker": "o", "ms": 3.5}
            axes.plot(x[::step], y[::step], label=name or "_", **style)
        values = [v for _, y in curves.values() for v in y if math.isfinite(v)]
        axes.set(title=title, xlabel=labels[0], ylabel=labels[1])
        if log and values and min(values) > 0 and max(values) > RANGE * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(ticker.NullFormatter())
        elif limits[1] is None:
            axes.set_ylim(0, None)
        if limits[0]:
            axes.set_xlim(*limits[0])
        if limits[1]:
            axes.set_ylim(*limits[1])
        if whole:
            axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        if mark is not None:
            axes.plot(*mark, "o", color=INK, ms=5, zorder=4)
        if any(curves):
            axes.legend(ncols=2 if len(curves) > 4 else 1)

    return _drawn(title, draw)


def bars(title: str, groups: Mapping[str, Sequence[float]], names: Sequence[str], label: str, end: float = 0) -> str:
    """Draw upright bars: one group per name, one bar per group of values; the axis ends at `end`, or fits the data."""

    def draw(axes: Any) -> None:
        width = 0.8 / max(1, len(groups))
        for index, (group, values) in enumerate(groups.items()):
            places = [place + (index - (len(groups) - 1) / 2) * width for place in range(len(values))]
            axes.bar(places, values, width * 0.94, color=COLORS[index], label=group or "_")
        axes.set(title=title, ylabel=label)
        axes.set_xticks(range(len(names)), names)
        axes.grid(visible=False, axis="x")
        if end:
            axes.set_ylim(0, end)
        if len(names) > 6:
            axes.tick_params(axis="x", labelrotation=45)
        if any(groups):
            axes.legend()

    return _drawn(title, draw)


def ranking(title: str, groups: Mapping[str, Sequence[float]], names: Sequence[str], label: str, end: float = 0) -> str:
    """Draw lying bars, the first on top: for names that may be long.

    Args:
        title: What they show.
        groups: Values by group.
        names: One per value.
        label: Name of the axis.
        end: End of the axis; 0 fits the data.
    """

    def draw(axes: Any) -> None:
        height = 0.8 / max(1, len(groups))
        for index, (group, values) in enumerate(groups.items()):
            places = [place + (index - (len(groups) - 1) / 2) * height for place in range(len(values))]
            axes.barh(places, values, height * 0.94, color=COLORS[index], label=group or "_")
        axes.set(title=title, xlabel=label)
        axes.set_yticks(range(len(names)), [name if len(name) <= 24 else f"{name[:23]}…" for name in names])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        if end:
            axes.set_xlim(0, end)
        if any(groups):
            axes.legend()

    return _drawn(title, draw, (SIZE[0], max(SIZE[1], 0.9 + 0.21 * len(names) * max(1, 0.7 * len(groups)))))


def _drawn(title: str, draw: Any, size: tuple[float, float] = SIZE) -> str:
    """Draw one chart, in the colours of the page."""
    matplotlib = require("matplotlib", "matplotlib", "train")
    figure_module = require("matplotlib.figure", "matplotlib", "train")
    with matplotlib.rc_context(STYLE):
        figure = figure_module.Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    svg = re.sub(r"font(-family)?: ([^;\"]*?)'DejaVu Sans'[^;\"]*", r"font\1: \2system-ui, sans-serif", svg)
    for color, name in ((INK, "ink"), (LINE, "line")):
        svg = svg.replace(color, f"var(--{name})")
    named = f'<svg role="img" aria-label="{html.escape(title, quote=True)}"'
    return f'<figure class="chart">{svg.replace("<svg", named, 1)}</figure>'


def of_curve(x: Array, y: Array) -> Curve:
    """Return a curve of arrays as lists."""
    return x.tolist(), y.tolist()
