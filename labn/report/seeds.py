"""The figure of scores of several runs: every seed, and the mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from labn.report.style import looks, new_figure, polish, spread

_BAND = 0.7
"""Share of a method's row that its conditions take."""


def seeds_figure(seeds: Mapping[tuple[str, str, str], Sequence[float]]) -> Figure:
    """Return a figure with one panel per score, one row per method and one point per run.

    ``seeds`` holds, by condition, method and score, one value per run; a condition may lack
    methods. Bars are one standard deviation (of the sample) to each side of the mean.

    Raises:
        ValueError: there is no run.
    """
    if not seeds or not all(map(len, seeds.values())):
        raise ValueError("seeds: got no runs, must have at least one for each method and score")
    conditions, methods, scores = (list(dict.fromkeys(part)) for part in zip(*seeds, strict=True))
    row_height_in = 0.26 + 0.16 * len(conditions)
    height_in = 1.1 + row_height_in * len(methods) + 0.2 * len(conditions)
    figure = new_figure(1.8 + 2.3 * len(scores), height_in)
    panels = figure.subplots(1, len(scores), sharex=True, sharey=True, squeeze=False)[0]
    styles = looks(len(conditions))
    for axes, score in zip(panels, scores, strict=True):
        for number, (condition, look) in enumerate(zip(conditions, styles, strict=True)):
            offset = _BAND * ((number + 0.5) / len(conditions) - 0.5)
            rows = {
                row + offset: np.asarray(seeds[condition, method, score])
                for row, method in enumerate(methods)
                if (condition, method, score) in seeds
            }
            _draw_condition(axes, rows, condition, look, _BAND / (2 * len(conditions)))
        axes.axvline(0, color="0.6", linewidth=0.8, zorder=0)
        axes.set_title(score, fontsize=10)
        polish(axes)
    panels[0].set_yticks(range(len(methods)), methods, parse_math=False)
    panels[0].set_ylim(len(methods) - 0.5, -0.5)
    figure.supxlabel("score: points are runs, bars mean ± s.d. over them", fontsize=10)
    if len(conditions) > 1:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside upper center", ncols=1, frameon=False, fontsize=9
        )
    return figure


def _draw_condition(
    axes: Axes,
    rows: Mapping[float, np.ndarray],
    condition: str,
    look: Mapping[str, Any],
    band: float,
) -> None:
    colour = look["color"]
    points = [
        point
        for row, values in rows.items()
        for point in zip(values, spread(row, len(values), band), strict=True)
    ]
    axes.plot(
        *zip(*points, strict=True), look["marker"], ms=3.5, color=colour, mfc="white", zorder=3
    )
    means = [values.mean() for values in rows.values()]
    # No bar for a single run, rather than one of length 0.
    bars = [values.std(ddof=1) if len(values) > 1 else np.nan for values in rows.values()]
    axes.errorbar(
        means,
        list(rows),
        xerr=bars,
        fmt="|",
        markersize=9,
        markeredgewidth=2,
        capsize=2,
        color=colour,
        label=condition,
    )
