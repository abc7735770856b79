"""The figure of maps' changes as a network's weights are randomised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from labn.report.style import GREY, add_heading, looks, new_figure, polish

_MAX_LEVEL_LABELS = 5


def sanity_figure(rows: Sequence[Mapping[str, Any]], num_images: int, place: str) -> Figure:
    """Return a figure of maps' rank correlation with the trained network's: a line per method.

    A row holds ``method``, ``stage``, and the images' ``mean`` and ``std`` (None if undefined).
    Stages are drawn in the order of their first rows, after the trained network itself, whose
    correlation is 1. Bands are one standard deviation over the ``num_images`` to each side, within
    -1 and 1. ``place`` says of which run and subset.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("rows: got none, must be at least one")
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure = new_figure(max(6.0, 2.5 + 0.38 * len(stages)), 4.6)
    axes = figure.subplots()
    axes.axhline(0, color=GREY, linewidth=0.8)
    for method, look in zip(methods, looks(len(methods)), strict=True):
        of_method = {row["stage"]: row for row in rows if row["method"] == method}
        mean, std = (
            np.array([of_method[stage][key] for stage in stages], dtype=np.float64)
            for key in ("mean", "std")
        )
        places = np.arange(len(stages) + 1)
        mean, std = np.append(1.0, mean), np.append(0.0, np.nan_to_num(std))
        lower, upper = np.clip((mean - std, mean + std), -1, 1)
        axes.fill_between(places, lower, upper, color=look["color"], alpha=0.12, linewidth=0)
        axes.plot(places, mean, markersize=5, label=method, **look)
    angle = 60 if len(stages) > _MAX_LEVEL_LABELS else 0
    axes.set_xticks(range(len(stages) + 1), ["none", *stages], rotation=angle)
    axes.set(xlabel="randomised up to and including", ylim=(-1.05, 1.05))
    axes.set_ylabel("rank correlation with the trained map")
    add_heading(
        figure,
        f"Cascading weight randomisation of {place}; n = {num_images} images, mean ± standard"
        " deviation",
    )
    polish(axes)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure
