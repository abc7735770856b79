"""The figure of insertion and deletion curves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from labn.report.style import BLUE, VERMILION, add_heading, new_figure, polish, share_legend


@dataclass(frozen=True)
class MethodCurves:
    """The curves of one method's maps of n images, and the scores: insertion minus deletion."""

    insertion: Float[np.ndarray, "n p"]
    deletion: Float[np.ndarray, "n p"]
    values: Float[np.ndarray, " n"]


def method_curves_figure(
    fractions: Float[np.ndarray, " p"], methods: Mapping[str, MethodCurves], score: str, place: str
) -> Figure:
    """Return a figure of each method's mean curves and the area between them.

    ``fractions`` are the shares of patches taken; curves are probabilities of the true class.
    Bands and the numbers after ± are one standard deviation over the images, to each side of the
    mean; bands end at 0 and 1. ``score`` is the name of the area, ``place`` the run and subset.

    Raises:
        ValueError: there are no methods or no images.
    """
    if not methods or not all(len(method.values) for method in methods.values()):
        raise ValueError("methods: got no images, must have at least one to draw curves")
    num_columns = min(4, len(methods))
    num_rows = -(-len(methods) // num_columns)
    size = (6.0, 4.8) if len(methods) == 1 else (2.9 * num_columns + 0.6, 2.7 * num_rows + 0.9)
    figure = new_figure(*size)
    grid = figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(methods) :]:
        axes.set_visible(False)
    for axes, (name, curves) in zip(grid.flat, methods.items(), strict=False):
        _draw_method(axes, fractions, curves)
        mean, deviation = curves.values.mean(), _deviation(curves.values)
        axes.set_title(f"{name}\n{score}: {mean:.3f}{deviation}", fontsize=10, parse_math=False)
    for axes in grid[:, 0]:
        axes.set_ylabel("probability of the true class")
    for axes in grid.flat[max(0, len(methods) - num_columns) : len(methods)]:
        axes.set_xlabel("fraction of patches taken")
        axes.tick_params(labelbottom=True)
    num_images = len(next(iter(methods.values())).values)
    add_heading(
        figure,
        f"Insertion and deletion in {len(fractions)} points of {place}; n = {num_images} images,"
        " mean ± standard deviation",
    )
    share_legend(figure, ncols=2 if num_columns < 3 else 4)
    return figure


def _deviation(values: Float[np.ndarray, " n"]) -> str:
    return f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""


def _draw_method(axes: Axes, fractions: Float[np.ndarray, " p"], curves: MethodCurves) -> None:
    _draw_curve(axes, fractions, curves.insertion, BLUE, "insertion")
    _draw_curve(axes, fractions, curves.deletion, VERMILION, "deletion")
    _shade(axes, fractions, curves.insertion.mean(axis=0), curves.deletion.mean(axis=0))
    axes.set(xlim=(0, 1), ylim=(0, 1))
    polish(axes)


def _draw_curve(
    axes: Axes,
    fractions: Float[np.ndarray, " p"],
    curves: Float[np.ndarray, "n p"],
    colour: str,
    name: str,
) -> None:
    mean, label = curves.mean(axis=0), name
    if len(curves) > 1:
        deviation, label = curves.std(axis=0, ddof=1), f"{name}, mean ± s.d."
        lower, upper = np.clip((mean - deviation, mean + deviation), 0, 1)
        axes.fill_between(fractions, lower, upper, color=colour, alpha=0.15, linewidth=0)
    style = "-" if name == "insertion" else "--"
    axes.plot(fractions, mean, style, color=colour, label=label)


def _shade(
    axes: Axes,
    fractions: Float[np.ndarray, " p"],
    insertion: Float[np.ndarray, " p"],
    deletion: Float[np.ndarray, " p"],
) -> None:
    """Fill the area between the curves, and hatch it where it lowers PID."""
    between = (fractions, insertion, deletion)
    gains, costs = insertion > deletion, insertion < deletion
    style: dict[str, Any] = {"interpolate": True, "edgecolor": "0.6", "linewidth": 0}
    if gains.any():
        axes.fill_between(*between, gains, fc="0.5", alpha=0.15, label="adds to PID", **style)
    if costs.any():
        axes.fill_between(*between, costs, fc="none", hatch="////", label="lowers PID", **style)
