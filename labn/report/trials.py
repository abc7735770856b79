"""Figures of a search's trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib import colormaps, dates
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from labn.report.style import (
    BLUE,
    COLOURS,
    GREY,
    VERMILION,
    add_heading,
    looks,
    new_figure,
    polish,
    share_legend,
)

_GROUPS: dict[str, dict[str, Any]] = {
    "finished": {"color": BLUE, "marker": "o"},
    "constraint violated": {"color": COLOURS[3], "marker": "^"},
    "pruned (last score)": {"color": GREY, "marker": "x"},
}
_STATE_COLOURS = {"finished": BLUE, "pruned": "0.75", "failed": VERMILION}
_STATE_HATCHES = {"finished": "", "pruned": "///", "failed": "xx"}
_LIGHTEST = 0.9
"""The end of the colour map viridis; beyond it, lines are faint on white."""
SCORE_COLOURS = ListedColormap(colormaps["viridis"](np.linspace(0, _LIGHTEST, 256)))
_LARGEST_LEGEND = 20


@dataclass(frozen=True)
class TrialRecord:
    """A trial: its parameters, and its score so far or at its end, None before the first.

    ``epochs`` holds the score of each epoch; ``counted`` is the epoch whose network was scored.
    """

    number: int
    state: str
    parameters: Mapping[str, Any]
    score: float | None
    second_score: float | None = None
    epochs: Mapping[int, float] | None = None
    counted: int | None = None
    is_feasible: bool = True
    start: datetime | None = None
    end: datetime | None = None

    @property
    def group(self) -> str:
        """How the trial is marked."""
        if self.state == "pruned":
            return "pruned (last score)"
        return "finished" if self.is_feasible else "constraint violated"


def trial_history_figure(trials: Sequence[TrialRecord], score: str) -> Figure:
    """Return a figure of the scores in the order of the trials, and the best so far."""
    figure = new_figure(8.0, 4.4)
    axes = figure.subplots()
    known = scored_trials(trials)
    mark_trials(axes, known, [trial.number for trial in known], [trial.score for trial in known])
    counting = [trial for trial in known if trial.group == "finished"]
    if counting:
        best = np.maximum.accumulate([score_of(trial) for trial in counting])
        numbers = [*(trial.number for trial in counting), max(trial.number for trial in trials)]
        axes.step(numbers, [*best, best[-1]], where="post", color=VERMILION, label="best so far")
    axes.set(xlabel="trial", ylabel=score)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    polish(axes)
    share_legend(figure, ncols=4)
    add_heading(figure, f"Scores of {count_trials(trials)}")
    return figure


def epochs_figure(trials: Sequence[TrialRecord], score: str) -> Figure:
    """Return a figure of the scores by epoch: a line per trial, the epoch that counts in a ring."""
    figure = new_figure(8.0, 5.2)
    axes = figure.subplots()
    drawn = [trial for trial in trials if trial.epochs]
    for trial, look in zip(drawn, _trial_looks(len(drawn)), strict=True):
        assert trial.epochs is not None
        epochs, values = zip(*sorted(trial.epochs.items()), strict=True)
        width = 1.0 if trial.state == "pruned" else 2.0
        end = "" if trial.state == "finished" else f" ({trial.state})"
        axes.plot(epochs, values, lw=width, ms=4, label=f"trial {trial.number}{end}", **look)
        if trial.counted is not None:
            counted = trial.counted, trial.epochs[trial.counted]
            axes.plot(*counted, "o", ms=11, mfc="none", mec="black", mew=1.5, label="counted epoch")
    axes.set(xlabel="epoch", ylabel=score)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    polish(axes)
    if len(drawn) <= _LARGEST_LEGEND:
        share_legend(figure, ncols=4)
    else:
        norm = Normalize(drawn[0].number, drawn[-1].number)
        figure.colorbar(ScalarMappable(norm, cmap=SCORE_COLOURS), ax=axes, label="trial")
    add_heading(figure, f"Scores by epoch of {count_trials(drawn)}; ring: the epoch that counts")
    return figure


def _trial_looks(number: int) -> list[dict[str, Any]]:
    """Return distinct looks: of more trials than colours, evenly along a colour map."""
    styles = looks(number)
    if number > len(COLOURS):
        places = np.linspace(0, 1, number)
        colours = SCORE_COLOURS(places)
        styles = [look | {"color": one} for look, one in zip(styles, colours, strict=True)]
    return styles


def timeline_figure(trials: Sequence[TrialRecord]) -> Figure:
    """Return a figure of when each trial ran, and how it ended."""
    timed = [trial for trial in trials if trial.start is not None and trial.end is not None]
    figure = new_figure(8.0, 1.6 + max(1.6, min(0.3 * len(timed), 8.0)))
    axes = figure.subplots()
    for trial in timed:
        assert trial.start is not None
        assert trial.end is not None
        left, right = (
            dates.date2num(time)  # type: ignore[no-untyped-call]
            for time in (trial.start, trial.end)
        )
        axes.barh(trial.number, right - left, left=left, height=0.8, edgecolor="black",
                  linewidth=0.5, color=_STATE_COLOURS[trial.state],
                  hatch=_STATE_HATCHES[trial.state])  # fmt: skip
    axes.xaxis_date()
    locator = dates.AutoDateLocator(minticks=3, maxticks=7)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    formatter = dates.ConciseDateFormatter(locator)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_formatter(formatter)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(xlabel="time", ylabel="trial")
    polish(axes)
    states = [state for state in _STATE_COLOURS if any(t.state == state for t in timed)]
    handles = [
        Patch(fc=_STATE_COLOURS[state], hatch=_STATE_HATCHES[state], ec="black", label=state)
        for state in states
    ]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    add_heading(figure, f"When {count_trials(timed)} ran")
    return figure


def pareto_figure(trials: Sequence[TrialRecord], scores: Sequence[str], front: set[int]) -> Figure:
    """Return a figure of two scores, in which a line joins the best compromises."""
    figure = new_figure(7.0, 5.0)
    axes = figure.subplots()
    known = [trial for trial in scored_trials(trials) if trial.second_score is not None]
    mark_trials(axes, known, [t.score for t in known], [t.second_score for t in known])
    best = sorted((score_of(t), t.second_score) for t in known if t.number in front)
    if best:
        axes.step(*zip(*best, strict=True), color=VERMILION, where="pre", label="Pareto front")
    axes.set(xlabel=scores[0], ylabel=scores[1])
    polish(axes)
    share_legend(figure, ncols=4)
    add_heading(figure, f"Two scores of {count_trials(known)}")
    return figure


def mark_trials(
    axes: Axes, trials: Sequence[TrialRecord], x: Sequence[Any] | NDArray[Any], y: Sequence[Any]
) -> None:
    """Draw trials as points, marked by how they ended."""
    for group, look in _GROUPS.items():
        points = [(a, b) for trial, a, b in zip(trials, x, y, strict=True) if trial.group == group]
        if points:
            axes.plot(*zip(*points, strict=True), linestyle="none", ms=6, label=group, **look)


def scored_trials(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the finished and pruned trials that have a score."""
    return [t for t in trials if t.score is not None and t.state in ("finished", "pruned")]


def score_of(trial: TrialRecord) -> float:
    """Return the score of a trial that has one."""
    assert trial.score is not None
    return trial.score


def count_trials(trials: Sequence[TrialRecord]) -> str:
    """Return how many trials there are, by state."""
    states = groupby(sorted(trial.state for trial in trials))
    parts = ", ".join(f"{len(list(members))} {state}" for state, members in states)
    return f"{len(trials)} trial{'s' if len(trials) != 1 else ''} ({parts})"
