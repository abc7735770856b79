"""Colours, canvases and files of the figures.

Figures are made without pyplot: they need neither a display nor global state.
"""

from __future__ import annotations

from functools import partial
from itertools import cycle, islice
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import AbstractPathEffect, withStroke

from labn.storage.files import write_atomically

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "black")
"""Okabe and Ito's colours, without the yellow that is faint on white.

Any two are at least 15 apart in CIELAB, also where a kind of cone is missing: a test measures it.
"""
BLUE, VERMILION = COLOURS[:2]
_MARKERS = "osD^vP"
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
GREY, MASK_COLOUR, THRESHOLD_COLOUR = "#595959", "cyan", "white"
_DPI = 150
_LETTER_WIDTH_IN = 0.1
"""Upper bound of the average letter's width in headings."""


def looks(number: int) -> list[dict[str, Any]]:
    """Return distinct looks of lines: colour, marker and line style, which change together.

    Two looks differ in two of the three at least, so that none depends on colours alone.
    """
    # The counts have no common divisor: a combination returns after their product only.
    styles = zip(cycle(COLOURS), cycle(_MARKERS), cycle(_LINES), strict=False)
    names = ("color", "marker", "linestyle")
    return [dict(zip(names, style, strict=True)) for style in islice(styles, number)]


def new_figure(width_in: float, height_in: float) -> Figure:
    """Return an empty figure with automatic layout."""
    figure = Figure(figsize=(width_in, height_in), layout="compressed")
    FigureCanvasAgg(figure)
    return figure


def spread(place: float, number: int, band: float = 0.5) -> Float[np.ndarray, " n"]:
    """Return heights about ``place`` for points in a row, so that equal ones are seen."""
    shares: Float[np.ndarray, " n"] = (np.arange(number) + 0.5) / max(number, 1) - 0.5
    return place + band * shares


def add_heading(figure: Figure, text: str) -> None:
    """Add a heading above all panels, wrapped to the figure's width."""
    figure.suptitle(fill(text, int(figure.get_figwidth() / _LETTER_WIDTH_IN)), fontsize=11)


def share_legend(figure: Figure, ncols: int) -> None:
    """Add one legend below all panels, which names each label once."""
    entries = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if entries:
        figure.legend(
            entries.values(),
            entries.keys(),
            loc="outside lower center",
            ncols=min(ncols, len(entries)),
            frameon=False,
            fontsize=9,
        )


def polish(axes: Axes) -> None:
    """Reduce an axes' frame to two spines and a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)


def halo() -> list[AbstractPathEffect]:
    """Return a path effect that makes a line visible on any background."""
    return [withStroke(linewidth=2.2, foreground="black")]


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG atomically, with a description in words, and create its folder."""
    described = {"Description": description(figure)}
    write_atomically(path, partial(figure.savefig, format="png", dpi=_DPI, metadata=described))


def description(figure: Figure) -> str:
    """Return a text alternative: the figure's heading, panels, axes and legend."""
    shown = [axes for axes in figure.axes if axes.get_visible()]
    parts = {
        "": [figure.get_suptitle()],
        "panels": [axes.get_title() for axes in shown],
        "horizontal": [figure.get_supxlabel(), *(axes.get_xlabel() for axes in shown)],
        "vertical": [figure.get_supylabel(), *(axes.get_ylabel() for axes in shown)],
        "legend": [
            text.get_text()
            for legend in (*figure.legends, *(axes.get_legend() for axes in shown))
            if legend is not None
            for text in legend.get_texts()
        ],
    }
    sentences = []
    for name, texts in parts.items():
        words = list(dict.fromkeys(" ".join(text.split()) for text in texts if text.strip()))
        if words:
            sentences.append((f"{name}: " if name else "") + "; ".join(words))
    return ". ".join(sentences)
