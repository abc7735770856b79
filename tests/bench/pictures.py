"""Figures of the measurements."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from labn.report.style import BLUE, GREY, VERMILION, looks, new_figure, polish
from tests.bench.growth import Growth
from tests.bench.timing import Row

_ROW_IN = 0.62
_NAME_LETTERS = 58
_COLUMNS = 3
_COSTS = {"s": "time (s)", "MB": "memory (MB)"}


def ratios_figure(rows: Sequence[Row]) -> Figure:
    """Draw each ratio with its quartiles, and the required ratio if there is one."""
    figure = new_figure(10.0, 1.2 + _ROW_IN * len(rows))
    axes = figure.subplots()
    for place, row in enumerate(rows):
        colour = VERMILION if row.falls_short else BLUE
        axes.barh(place, row.ratio, color=colour, height=0.6)
        axes.plot([row.low, row.high], [place, place], color="black", linewidth=1.2)
        if row.at_least is not None:
            axes.plot([row.at_least] * 2, [place - 0.4, place + 0.4], color=GREY, linestyle=":")
        axes.annotate(
            f"{row.ratio:.3g}x", (max(row.high, row.ratio), place), xytext=(4, 0),
            textcoords="offset points", va="center", fontsize=8,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [fill(row.name, _NAME_LETTERS) for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("times better (line: quartiles; dotted: required; orange: falls short)")
    polish(axes)
    return figure


def growth_figure(panels: Sequence[Growth]) -> Figure:
    """Draw one panel per cost, on logarithmic axes."""
    num_rows = -(-len(panels) // _COLUMNS)
    figure = new_figure(4.0 * _COLUMNS, 3.4 * num_rows)
    grid = figure.subplots(num_rows, _COLUMNS, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw(axes, panel)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    return figure


def _draw(axes: Axes, panel: Growth) -> None:
    for (name, values), look in zip(panel.lines.items(), looks(len(panel.lines)), strict=True):
        axes.plot(panel.sizes, values, label=name, **look)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(panel.sizes, [str(size) for size in panel.sizes])
    axes.minorticks_off()
    axes.set_xlabel(panel.size)
    axes.set_ylabel(_COSTS[panel.unit])
    axes.set_title(panel.name, fontsize=10)
    axes.legend(fontsize=8)
    polish(axes)
