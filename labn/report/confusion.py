"""The figure of a confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from matplotlib.figure import Figure

from labn.report.style import add_heading, new_figure


def confusion_figure(
    confusion: Int[np.ndarray, "c c"], class_names: Sequence[str], place: str
) -> Figure:
    """Return a figure of a confusion matrix: rows are true classes, with counts and row shares.

    ``place`` says of which run and subset.

    Raises:
        ValueError: there are not as many names as classes.
    """
    num_classes = len(confusion)
    if len(class_names) != num_classes:
        raise ValueError(f"class_names: got {len(class_names)}, must be {num_classes}")
    row_totals = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(row_totals, 1)
    figure = new_figure(3.2 + 1.1 * num_classes, 1.8 + 1.1 * num_classes)
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, ax=axes, label="share of the true class")
    for (i, j), share in np.ndenumerate(shares):
        text = f"{confusion[i, j]}\n{share:.1%}" if row_totals[i] else "0\n–"
        colour = "white" if share > 0.5 else "black"
        axes.text(j, i, text, ha="center", va="center", color=colour)
    axes.set_xticks(range(num_classes), class_names, parse_math=False)
    axes.set_yticks(range(num_classes), class_names, parse_math=False)
    axes.set(xlabel="predicted class", ylabel="true class")
    edges = np.arange(num_classes - 1) + 0.5
    axes.set_xticks(edges, minor=True)
    axes.set_yticks(edges, minor=True)
    axes.grid(which="minor", color="0.75", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_color("0.75")
    add_heading(figure, f"Confusion matrix of {place}, n = {confusion.sum()} images")
    return figure
