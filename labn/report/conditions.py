"""Figures that compare the conditions of a study: scores, differences, training, curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from scipy import stats

from labn.report.style import GREY, add_heading, looks, new_figure, polish, share_legend, spread

_CONFIDENCE = 0.95
_FEWEST_SEEDS = 3
"""With two seeds, the interval is too wide to be of use."""
_SIGNED = ("ID", "PID", "TSS")
"""Scores from -1 to 1; the others are from 0 to 1."""


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

    Points are seeds; bars are Student's interval of the mean, over three seeds or more, within
    the range of the score.

    Raises:
        ValueError: there are no scores.
    """
    conditions = list(dict.fromkeys(name for rows in scores.values() for name in rows))
    if not conditions:
        raise ValueError("scores: got no conditions, must have at least one")
    figure, panels = _rows(scores, conditions)
    for axes, (score, rows) in zip(panels, scores.items(), strict=True):
        for (place, condition), look in zip(
            enumerate(conditions), looks(len(conditions)), strict=True
        ):
            values = np.asarray(rows.get(condition, ()), dtype=float)
            if not len(values):
                continue
            colour = look["color"]
            axes.plot(values, spread(place, len(values)), "o", ms=4, color=colour, mfc="white")
            mean = values.mean()
            axes.errorbar(mean, place, xerr=_interval(values, score), fmt="|", ms=11, mew=2,
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
    # The first colour is the reference's.
    colours = [look["color"] for look in looks(len(conditions) + 1)[1:]]
    figure, panels = _rows(differences, conditions)
    for axes, rows in zip(panels, differences.values(), strict=True):
        axes.axvline(0, color=GREY, linewidth=0.9, zorder=0)
        for one in rows:
            place = conditions.index(one.condition)
            seeds = np.asarray(one.by_seed, dtype=float)
            colour = colours[place]
            axes.plot(seeds, spread(place, len(seeds)), "o", ms=4, color=colour, mfc="white")
            axes.plot(one.mean, place, "|", ms=11, mew=2, color=colour)
            if one.low is not None and one.high is not None:
                axes.hlines(place, one.low, one.high, color=colour, zorder=1)
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
    names = list(dict.fromkeys(name for conditions in histories.values() for name in conditions))
    styles = dict(zip(names, looks(len(names)), strict=True))
    figure = new_figure(4.6 * len(histories), 3.6)
    panels = figure.subplots(1, len(histories), squeeze=False)[0]
    for axes, (metric, conditions) in zip(panels, histories.items(), strict=True):
        for condition, runs in conditions.items():
            look = styles[condition]
            for values in runs:
                epochs = range(1, len(values) + 1)
                axes.plot(epochs, values, color=look["color"], lw=0.7, alpha=0.45)
            shared = min(map(len, runs))
            mean = np.mean([list(values)[:shared] for values in runs], axis=0)
            axes.plot(range(1, shared + 1), mean, lw=2, ms=4, label=condition, **look)
        axes.set(title=metric, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        polish(axes)
    share_legend(figure, ncols=4)
    add_heading(figure, "Training by condition: each run (thin), and the mean over them")
    return figure


def condition_curves_figure(
    conditions: Mapping[str, ConditionCurves], method: str, score: str
) -> Figure:
    """Return a figure of mean insertion and deletion curves, with one panel per condition.

    Insertion is a full line, deletion a dashed one, both in the condition's colour.

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
    for axes, (condition, curves), look in zip(
        grid.flat, conditions.items(), looks(len(conditions)), strict=False
    ):
        for rows, style in ((curves.insertion, "-"), (curves.deletion, "--")):
            axes.plot(curves.fractions, rows.T, style, color=look["color"], lw=0.7, alpha=0.45)
            axes.plot(curves.fractions, rows.mean(axis=0), style, color=look["color"], lw=2)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="fraction of patches taken")
        axes.set_title(condition, fontsize=10, parse_math=False)
        polish(axes)
    figure.supylabel("probability of the true class", fontsize=9)
    handles = [
        Line2D([], [], color=GREY, linestyle="-", lw=2, label="insertion"),
        Line2D([], [], color=GREY, linestyle="--", lw=2, label="deletion"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
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
        axes.ticklabel_format(axis="x", scilimits=(-2, 4))  # long numbers would overlap
        polish(axes)
    made[0].set_yticks(range(len(rows)), rows, parse_math=False)
    made[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure, iter(made)


def _interval(values: Float[np.ndarray, " n"], score: str) -> Float[np.ndarray, "2 1"]:
    """Return how far the interval of the mean reaches to each side, within the score's range."""
    if len(values) < _FEWEST_SEEDS:
        return np.full((2, 1), np.nan)
    mean = values.mean()
    quantile = stats.t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1)
    half = quantile * values.std(ddof=1) / np.sqrt(len(values))
    least = -1.0 if score.split()[0] in _SIGNED else 0.0
    return np.array([[min(half, mean - least)], [min(half, 1 - mean)]])
