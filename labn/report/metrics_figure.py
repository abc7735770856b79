"""The figure of metrics by methods, and of the metrics' agreement."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import rankdata

from labn.report.style import add_heading, new_figure

_RANKS, _AGREEMENT = "viridis_r", "RdBu"
_DARK, _CELL_IN = 0.18, 0.62
"""Below this luminance white words are easier to read than black ones; the width of a cell."""


def metrics_figure(
    metrics: Sequence[str],
    methods: Sequence[str],
    is_better_high: Sequence[bool],
    means: Float64[np.ndarray, "metrics methods"],
    tau: Float64[np.ndarray, "metrics metrics"],
    place: str,
) -> Figure:
    """Return two heat maps: each metric's means, coloured by rank, and Kendall's tau of metrics.

    Every cell has its number. ``place`` says of which runs and subset.
    """
    width_in = 3.4 + _CELL_IN * (len(methods) + len(metrics))
    figure = new_figure(width_in, 2.6 + 0.32 * len(metrics))
    left, right = figure.subplots(1, 2, width_ratios=(len(methods), len(metrics)))
    signs = np.where(is_better_high, 1.0, -1.0)[:, None]
    ranks = rankdata(-signs * means, axis=1)
    arrows = [
        f"{name} {'↑' if is_high else '↓'}"
        for name, is_high in zip(metrics, is_better_high, strict=True)
    ]
    shares = (ranks - 1) / max(len(methods) - 1, 1)
    _draw(left, shares, means, arrows, methods, (0, 1), _RANKS)
    left.set_title("mean over images; bright: the best method", fontsize=10)
    _draw(right, tau, tau, metrics, metrics, (-1, 1), _AGREEMENT)
    right.set_title("agreement on the rank of methods (Kendall)", fontsize=10)
    add_heading(figure, f"Metrics of explanations: {place}")
    return figure


def _draw(
    axes: Axes,
    colours: np.ndarray,
    numbers: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    limits: tuple[float, float],
    colour_map: str,
) -> None:
    image = axes.imshow(colours, aspect="auto", cmap=colour_map, vmin=limits[0], vmax=limits[1])
    rgb = np.asarray(image.cmap(image.norm(colours)))[..., :3]
    luminance = rgb**2.2 @ np.array([0.2126, 0.7152, 0.0722])
    for (i, j), number in np.ndenumerate(numbers):
        text = "–" if np.isnan(number) else f"{number:z.2f}"
        colour = "white" if luminance[i, j] < _DARK else "black"
        axes.text(j, i, text, ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right", rotation_mode="anchor",
                    fontsize=8, parse_math=False)  # fmt: skip
    axes.set_yticks(range(len(rows)), rows, fontsize=8, parse_math=False)
    axes.tick_params(length=0)
