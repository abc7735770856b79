"""Figures that compare the conditions of a study: scores, differences, training, curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from labn.report.style import BLUE, COLOURS, GREY, VERMILION, add_heading, new_figure, polish

_CONFIDENCE = 0.95
_FEWEST_SEEDS = 3
"""With two seeds, the interval is too wide to be of use."""


@dataclass(frozen=True)
class ConditionDifference:
    """A condition's mean minus the reference's, and its uncertainty.

    ``low`` and ``high`` bound it over images, None if there were too few; ``by_seed`` holds the
    difference for each seed that both conditions were trained with.
    """

    condition: str
    mean: float
    low: float | None
    high: float | None
    by_seed: Sequence[float]


@dataclass(frozen=True)
class ConditionCurves:
    """Mean insertion and deletion curves of a condition's runs, one row per run."""

    fractions: Float[np.ndarray, " p"]
    insertion: Float[np.ndarray, "n p"]
    deletion: Float[np.ndarray, "n p"]


def scores_figure(scores: Mapping[str, Mapping[str, Sequence[float]]], method: str) -> Figure:
    """Return a figure of scores, with one panel per score and one row per condition.

    Points are seeds; bars are Student's interval of the mean, over three seeds or more.

    Raises:
        ValueError: there are no scores.
    """
    conditions = list(dict.fromkeys(name for rows in scores.values() for name in rows))
    if not conditions:
        raise ValueError("scores: got no conditions, must have at least one")
    figure, panels = _rows(scores, conditions)
    for axes, rows in zip(panels, scores.values(), strict=True):
        for place, condition in enumerate(conditions):
            values = np.asarray(rows.get(condition, ()), dtype=float)
            if not len(values):
                continue
            colour = BLUE if place == 0 else VERMILION
            axes.plot(values, np.full(len(values), place), "o", ms=4, color=colour, mfc="white")
            mean = values.mean()
            axes.errorbar(mean, place, xerr=_half_width(values), fmt="|", ms=11, mew=2,
                          capsize=3, color=colour, zorder=1)  # fmt: skip
    figure.supxlabel(
        "points: seeds; ticks: their mean; bars: its 95 % interval over three seeds or more",
        fontsize=9,
    )
    add_heading(figure, f"Scores by condition; ID and PID are of {method}")
    return figure


def differences_figure(
    differences: Mapping[str, Sequence[ConditionDifference]], reference: str
) -> Figure:
    """Return a figure of differences from the reference: a panel per score, a row per condition.

    Raises:
        ValueError: there are no differences.
    """
    conditions = list(dict.fromkeys(one.condition for rows in differences.values() for one in rows))
    if not conditions:
        raise ValueError("differences: got none, must have at least one")
    figure, panels = _rows(differences, conditions)
    for axes, rows in zip(panels, differences.values(), strict=True):
        axes.axvline(0, color=GREY, linewidth=0.9, zorder=0)
        for one in rows:
            place = conditions.index(one.condition)
            seeds = np.asarray(one.by_seed, dtype=float)
            axes.plot(seeds, np.full(len(seeds), place), "o", ms=4, color=VERMILION, mfc="white")
            axes.plot(one.mean, place, "|", ms=11, mew=2, color=VERMILION)
            if one.low is not None and one.high is not None:
                axes.hlines(place, one.low, one.high, color=VERMILION, zorder=1)
    figure.supxlabel(
        "points: pairs of one seed; bars: 95 % interval over images, seeds averaged", fontsize=9
    )
    add_heading(figure, f"Each condition minus {reference}")
    return figure


def training_figure(
    histories: Mapping[str, Mapping[str, Sequence[Sequence[float]]]],
) -> Figure:
    """Return a figure of training, with one panel per metric and one line per condition.

    ``histories`` holds, by metric and condition, each run's value of every epoch. Runs are thin,
    their mean is bold, up to the last epoch that all of a condition's runs have.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not histories or not all(histories.values()):
        raise ValueError("histories: got none, must have at least one run for each metric")
    figure = new_figure(4.6 * len(histories), 3.6)
    panels = figure.subplots(1, len(histories), squeeze=False)[0]
    for axes, (metric, conditions) in zip(panels, histories.items(), strict=True):
        for colour, (condition, runs) in zip(cycle(COLOURS), conditions.items(), strict=False):
            for values in runs:
                axes.plot(range(1, len(values) + 1), values, color=colour, lw=0.7, alpha=0.45)
            shared = min(map(len, runs))
            mean = np.mean([list(values)[:shared] for values in runs], axis=0)
            axes.plot(range(1, shared + 1), mean, color=colour, lw=2, label=condition)
        axes.set(title=metric, xlabel="epoch")
        polish(axes)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def condition_curves_figure(
    conditions: Mapping[str, ConditionCurves], method: str, score: str
) -> Figure:
    """Return a figure of mean insertion and deletion curves, with one panel per condition.

    Raises:
        ValueError: there are no conditions.
    """
    if not conditions:
        raise ValueError("conditions: got none, must have at least one")
    num_columns = min(4, len(conditions))
    num_rows = -(-len(conditions) // num_columns)
    figure = new_figure(2.7 * num_columns + 0.6, 2.7 * num_rows + 0.8)
    grid = figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(conditions) :]:
        axes.set_visible(False)
    for axes, (condition, curves) in zip(grid.flat, conditions.items(), strict=False):
        for rows, colour, label in (
            (curves.insertion, BLUE, "insertion"),
            (curves.deletion, VERMILION, "deletion"),
        ):
            axes.plot(curves.fractions, rows.T, color=colour, lw=0.7, alpha=0.45)
            axes.plot(curves.fractions, rows.mean(axis=0), color=colour, lw=2, label=label)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="fraction of patches taken")
        axes.set_title(condition, fontsize=10, parse_math=False)
        polish(axes)
    figure.supylabel("probability of the true class", fontsize=9)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    add_heading(figure, f"Curves of {method} by {score}: each run, and the mean over seeds")
    return figure


def _rows(panels: Mapping[str, object], rows: Sequence[str]) -> tuple[Figure, Iterator[Axes]]:
    """Return a figure with a panel for each title, and row names at the left."""
    num_columns = min(4, len(panels))
    num_rows = -(-len(panels) // num_columns)
    figure = new_figure(1.6 + 2.3 * num_columns, 0.9 + (0.6 + 0.3 * len(rows)) * num_rows)
    grid = figure.subplots(num_rows, num_columns, sharey=True, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    made = grid.flat[: len(panels)]
    for axes, title in zip(made, panels, strict=True):
        axes.set_title(title, fontsize=10, parse_math=False)
        axes.locator_params(axis="x", nbins=4)
        polish(axes)
    made[0].set_yticks(range(len(rows)), rows, parse_math=False)
    made[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure, iter(made)


def _half_width(values: Float[np.ndarray, " n"]) -> float:
    if len(values) < _FEWEST_SEEDS:
        return float("nan")
    quantile = stats.t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1)
    return float(quantile * values.std(ddof=1) / np.sqrt(len(values)))
