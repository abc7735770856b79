"""Colours, canvases and files of the figures.

Figures are made without pyplot: they need neither a display nor global state.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import AbstractPathEffect, withStroke

from labn.storage.files import write_atomically

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
"""Okabe and Ito's colours, distinct for any colour vision."""
BLUE, VERMILION = COLOURS[:2]
GREY, MASK_COLOUR = "#595959", "cyan"
_DPI = 150
_LETTER_WIDTH_IN = 0.1
"""Upper bound of the average letter's width in headings."""


def new_figure(width_in: float, height_in: float) -> Figure:
    """Return an empty figure with automatic layout."""
    figure = Figure(figsize=(width_in, height_in), layout="compressed")
    FigureCanvasAgg(figure)
    return figure


def add_heading(figure: Figure, text: str) -> None:
    """Add a heading above all panels, wrapped to the figure's width."""
    figure.suptitle(fill(text, int(figure.get_figwidth() / _LETTER_WIDTH_IN)), fontsize=11)


def polish(axes: Axes) -> None:
    """Reduce an axes' frame to two spines and a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)


def halo() -> list[AbstractPathEffect]:
    """Return a path effect that makes a line visible on any background."""
    return [withStroke(linewidth=2.2, foreground="black")]


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG atomically, and create its folder."""
    write_atomically(path, partial(figure.savefig, format="png", dpi=_DPI))
