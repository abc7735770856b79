"""The figure of a network's reliability."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from labn.report.style import BLUE, GREY, add_heading, new_figure, polish


def reliability_figure(
    confidence: Float[np.ndarray, " bins"],
    accuracy: Float[np.ndarray, " bins"],
    counts: Int[np.ndarray, " bins"],
    expected_error: float,
    place: str,
) -> Figure:
    """Return a figure of accuracy by confidence, with the number of images in each bin.

    Points on the diagonal are as often right as they are sure; below it a network is too sure.
    ``place`` says of which run and subset.
    """
    figure = new_figure(4.6, 4.8)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.2)
    filled = counts > 0
    axes.plot(confidence[filled], accuracy[filled], color=BLUE, marker="o", markersize=5)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), ylabel="accuracy")
    num_bins = len(counts)
    below.bar((np.arange(num_bins) + 0.5) / num_bins, counts, width=0.9 / num_bins, color=BLUE)
    below.set(xlabel="confidence: probability of the predicted class", ylabel="images")
    for one in (axes, below):
        polish(one)
    add_heading(
        figure,
        f"Reliability of {place}, n = {counts.sum()} images; expected calibration error"
        f" {expected_error:.3f} (dotted: as often right as sure)",
    )
    return figure
