"""The figure of how alike the maps of several networks are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from labn.report.style import add_heading, new_figure

_LIGHT = 0.5
"""Correlations above it are on a dark ground."""


def agreement_figure(
    correlations: Mapping[str, Float[np.ndarray, "k k"]],
    labels: Mapping[str, Sequence[str]],
    heading: str,
) -> Figure:
    """Return a figure with one matrix of correlations in [-1, 1] per condition, with its numbers.

    Raises:
        ValueError: there is no condition.
    """
    if not correlations:
        raise ValueError("correlations: got no condition, must be at least one")
    side_in = 1.6 + 0.6 * max(map(len, labels.values()))
    figure = new_figure(side_in * len(correlations) + 0.8, side_in + 0.6)
    panels = figure.subplots(1, len(correlations), squeeze=False)[0]
    for axes, (condition, values) in zip(panels, correlations.items(), strict=True):
        picture = axes.imshow(values, cmap="Blues", vmin=0, vmax=1)
        for (i, j), value in np.ndenumerate(values):
            colour = "white" if value > _LIGHT else "black"
            text = "–" if np.isnan(value) else f"{value:z.2f}"
            axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=9)
        for ticks in (axes.set_xticks, axes.set_yticks):
            ticks(range(len(values)), labels[condition])
        axes.set(xlabel="seed", ylabel="seed")
        axes.set_title(condition, fontsize=10, parse_math=False)
    figure.colorbar(
        picture, ax=list(panels), label="Spearman's correlation of pixels", extend="min"
    )
    add_heading(figure, heading)
    return figure
