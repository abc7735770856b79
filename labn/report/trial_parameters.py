"""Figures of how a search's scores depend on the parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator
from numpy.typing import NDArray

from labn.report.style import BLUE, GREY, add_heading, new_figure, polish, share_legend
from labn.report.trials import (
    SCORE_COLOURS,
    TrialRecord,
    count_trials,
    mark_trials,
    score_of,
    scored_trials,
)

_FEWEST_TO_INTERPOLATE = 4


def slices_figure(trials: Sequence[TrialRecord], score: str, is_log: Mapping[str, bool]) -> Figure:
    """Return a figure of the score by each parameter, one panel per parameter."""
    num_rows = -(-len(is_log) // 4)
    num_columns = -(-len(is_log) // num_rows)
    figure = new_figure(1.0 + 2.5 * num_columns, 1.0 + 2.5 * num_rows)
    grid = figure.subplots(num_rows, num_columns, sharey=True, squeeze=False)
    for axes in grid.flat[len(is_log) :]:
        axes.set_visible(False)
    for axes, name in zip(grid.flat, is_log, strict=False):
        with_it = [trial for trial in scored_trials(trials) if name in trial.parameters]
        scale = _Scale([trial.parameters[name] for trial in with_it], is_log[name])
        mark_trials(axes, with_it, scale.places, [trial.score for trial in with_it])
        scale.label(axes)
        axes.set_xlabel(_wrapped(name), fontsize=9, parse_math=False)
        polish(axes)
    for axes in grid[:, 0]:
        axes.set_ylabel(score)
    share_legend(figure, ncols=4)
    add_heading(figure, f"{score} by parameter of {count_trials(trials)}")
    return figure


def parallel_figure(
    trials: Sequence[TrialRecord], score: str, is_log: Mapping[str, bool]
) -> Figure:
    """Return a figure of each trial as a line over its parameters, coloured by its score.

    Pruned trials are dashed. An axis is labelled at its ends, where no line crosses the text.
    """
    names = list(is_log)
    known = [trial for trial in scored_trials(trials) if trial.parameters.keys() >= set(names)]
    scales = [_Scale([trial.parameters[n] for trial in known], is_log[n]) for n in names]
    scales.append(_Scale([trial.score for trial in known], is_log=False))
    figure = new_figure(max(6.0, 1.5 * (len(names) + 1)), 4.6)
    axes = figure.subplots()
    scores = np.array([trial.score for trial in known], dtype=float)
    norm = Normalize(scores.min(), scores.max()) if len(known) else Normalize(0, 1)
    heights = np.array([scale.shares for scale in scales])
    for trial, line in sorted(zip(known, heights.T, strict=True), key=lambda p: score_of(p[0])):
        style = "--" if trial.state == "pruned" else "-"
        axes.plot(line, style, color=SCORE_COLOURS(norm(score_of(trial))), linewidth=1.8)
    for place, (name, scale) in enumerate(zip([*names, score], scales, strict=True)):
        axes.vlines(place, 0, 1, color=GREY, linewidth=0.8, zorder=0)
        low, high = scale.ends
        axes.text(place, -0.03, low, ha="center", va="top", fontsize=8, parse_math=False)
        text = f"{_wrapped(name)}\n{high}"
        axes.text(place, 1.03, text, ha="center", va="bottom", fontsize=8, parse_math=False)
    axes.set(xlim=(-0.3, len(names) + 0.3), ylim=(-0.12, 1.3))
    axes.set_axis_off()
    figure.colorbar(ScalarMappable(norm, cmap=SCORE_COLOURS), ax=axes, label=score)
    add_heading(figure, f"Parameters and {score} of {count_trials(known)}; dashed: pruned")
    return figure


def contour_figure(trials: Sequence[TrialRecord], score: str, is_log: Mapping[str, bool]) -> Figure:
    """Return a figure of the score over two parameters: points, and colours between them.

    Colours are interpolated linearly between finished trials, where four or more span an area.
    """
    x_name, y_name = is_log
    known = [trial for trial in scored_trials(trials) if trial.parameters.keys() >= set(is_log)]
    finished = [trial for trial in known if trial.state == "finished"]
    x, y = (_Scale([trial.parameters[name] for trial in known], is_log[name]) for name in is_log)
    scores = np.array([trial.score for trial in known], dtype=float)
    figure = new_figure(7.0, 5.2)
    axes = figure.subplots()
    is_done = np.array([trial.state == "finished" for trial in known], dtype=bool)
    norm = Normalize(scores.min(), scores.max()) if len(known) else Normalize(0, 1)
    is_filled = len(finished) >= _FEWEST_TO_INTERPOLATE and _fill(
        axes, x.places[is_done], y.places[is_done], scores[is_done], norm
    )
    for of_group, marker in ((is_done, "o"), (~is_done, "X")):
        axes.scatter(
            x.places[of_group], y.places[of_group], c=scores[of_group], norm=norm,
            cmap=SCORE_COLOURS, marker=marker, s=60, edgecolors="black",
            label="finished" if marker == "o" else "pruned (last score)",
        )  # fmt: skip
    x.label(axes)
    y.label(axes, is_vertical=True)
    axes.set_xlabel(x_name, parse_math=False)
    axes.set_ylabel(y_name, parse_math=False)
    polish(axes)
    figure.colorbar(ScalarMappable(norm, cmap=SCORE_COLOURS), ax=axes, label=score)
    share_legend(figure, ncols=2)
    between = "colours interpolated between" if is_filled else "too few to interpolate between:"
    add_heading(figure, f"{score} over two parameters; {between} {len(finished)} finished trials")
    return figure


def importances_figure(shares: Mapping[str, float], score: str, num_trials: int) -> Figure:
    """Return a figure of the parameters' importance for the score, the most important on top."""
    figure = new_figure(7.0, 1.5 + 0.34 * len(shares))
    axes = figure.subplots()
    bars = axes.barh(range(len(shares)), list(shares.values()), color=BLUE, height=0.6)
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
    axes.set_yticks(range(len(shares)), list(shares), parse_math=False)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel(f"share of the differences in {score}")
    polish(axes)
    add_heading(figure, f"Importance of the parameters, over {num_trials} finished trials")
    return figure


class _Scale:
    """The places of parameter values on an axis: numbers, their logarithms, or ranks of choices."""

    def __init__(self, values: Sequence[Any], is_log: bool) -> None:
        self._choices: list[str] | None = None
        numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
        self._is_log = is_log and len(numbers) == len(values)
        if len(numbers) < len(values):
            texts = [str(value) for value in values]
            self._choices = sorted(set(texts))
            numbers = [self._choices.index(text) for text in texts]
        self.places: NDArray[np.float64] = np.array(numbers, dtype=float)
        if self._is_log:
            self.places = np.log10(self.places)

    @property
    def shares(self) -> NDArray[np.float64]:
        """The places between the least, 0, and the largest, 1."""
        low, high = self.places.min(initial=np.inf), self.places.max(initial=-np.inf)
        if not low < high:
            return np.full_like(self.places, 0.5)
        shares: NDArray[np.float64] = (self.places - low) / (high - low)
        return shares

    @property
    def ends(self) -> tuple[str, str]:
        """The least and the largest value, as text."""
        if not len(self.places):
            return "", ""
        low, high = self.places.min(), self.places.max()
        return self._text(low), self._text(high)

    def label(self, axes: Axes, *, is_vertical: bool = False) -> None:
        """Label an axis with few values, so that they stay apart."""
        axis = axes.yaxis if is_vertical else axes.xaxis
        if self._choices is not None:
            axis.set_ticks(range(len(self._choices)), self._choices, parse_math=False)
        else:
            ticks = self._decades() if self._is_log else []
            axis.set_major_locator(FixedLocator(ticks) if len(ticks) > 1 else MaxNLocator(3))
            axis.set_major_formatter(lambda place, _: self._text(place))

    def _decades(self) -> list[float]:
        """Return the places of 1, 2 and 5 in each decade, or of 1 alone where those are many."""
        low, high = self.places.min(initial=np.inf), self.places.max(initial=-np.inf)
        for steps in ((1, 2, 5), (1,)):
            exponents = range(-12, 13)
            places = [float(np.log10(step) + power) for power in exponents for step in steps]
            if len(shown := [place for place in places if low <= place <= high]) <= 4:
                return shown
        return []

    def _text(self, place: float) -> str:
        if self._choices is not None:
            return self._choices[round(place)]
        return f"{10**place if self._is_log else place:.3g}"


def _fill(
    axes: Axes,
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"],
    norm: Normalize,
) -> bool:
    """Colour the area between points; return whether they span one."""
    try:
        axes.tricontourf(x, y, scores, levels=12, cmap=SCORE_COLOURS, norm=norm, alpha=0.6)
    except (ValueError, RuntimeError):  # all on a line
        return False
    return True


def _wrapped(name: str) -> str:
    """Return a dotted key on two lines."""
    section, dot, key = name.rpartition(".")
    return f"{section}{dot}\n{key}" if dot else name
