"""What is known of a search at a moment, and how its watchers hear of it."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from labn.sweeps.search.space import Point


@dataclass
class RunningTrial:
    """A trial that trains now; its scores are the last epoch's."""

    number: int
    point: Point
    num_epochs: int
    epoch: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    start_s: float = field(default_factory=time.monotonic)


@dataclass
class SearchStatus:
    """The state of a search. ``best`` is the number of the best trial and its scores."""

    num_trials: int
    running: dict[int, RunningTrial] = field(default_factory=dict)
    ended: Counter[str] = field(default_factory=Counter)
    best: tuple[int, dict[str, float]] | None = None
    num_ended_here: int = 0
    """Trials that ended since this process started, from which the time left follows."""
    start_s: float = field(default_factory=time.monotonic)

    @property
    def num_ended(self) -> int:
        """How many trials have ended, however they did."""
        return sum(self.ended.values())

    @property
    def left_s(self) -> float | None:
        """Seconds until the last trial ends, at the pace so far; None where that is not known."""
        if not self.num_ended_here:
            return None
        pace_s = (time.monotonic() - self.start_s) / self.num_ended_here
        return pace_s * max(0, self.num_trials - self.num_ended)


@runtime_checkable  # for the type checks under pytest
class SearchReporter(Protocol):
    """Hears how a search goes."""

    def message(self, text: str) -> None:
        """Pass on one line for a person."""

    def show(self, board: SearchStatus) -> None:
        """Hear that the board has changed, or that some time has passed."""


def point_as_text(point: Point) -> str:
    """Write a point on one line."""
    return " ".join(f"{key}={_short(value)}" for key, value in point.items())


def scores_as_text(metrics: dict[str, float]) -> str:
    """Write the scores that a search may maximise."""
    names = ("val_pid", "val_auroc", "val_accuracy")
    return ", ".join(f"{name} {metrics[name]:.3f}" for name in names if name in metrics)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace(" ", "")
