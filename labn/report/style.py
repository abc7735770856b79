"""What the figures share: colours, canvases, files.

Made without pyplot, so neither a display nor global state is touched, and nothing is left open.
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
"""Okabe and Ito's, which any colour vision tells apart."""
BLUE, VERMILION = COLOURS[:2]
GREY, MASK_COLOUR = "#595959", "cyan"
_DPI = 150
_LETTER_WIDTH_IN = 0.1
"""At most, on average, of the headings' font."""


def new_figure(width_in: float, height_in: float) -> Figure:
    """Make an empty figure that places its panels itself."""
    figure = Figure(figsize=(width_in, height_in), layout="compressed")
    FigureCanvasAgg(figure)
    return figure


def add_heading(figure: Figure, text: str) -> None:
    """Set a heading above all panels, in as many lines as the figure's width asks for."""
    figure.suptitle(fill(text, int(figure.get_figwidth() / _LETTER_WIDTH_IN)), fontsize=11)


def polish(axes: Axes) -> None:
    """Leave of an axes' frame what is needed to read it."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)


def halo() -> list[AbstractPathEffect]:
    """Surround a line, so that it is seen on any ground."""
    return [withStroke(linewidth=2.2, foreground="black")]


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG that is either whole or not there, and make its folder."""
    write_atomically(path, partial(figure.savefig, format="png", dpi=_DPI))
