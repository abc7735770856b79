"""What a run tells whoever watches it; how that looks is the entry point's affair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable


@runtime_checkable  # for the type checks under pytest
class Reporter(Protocol):
    """Hears of a run's progress."""

    def say(self, text: str) -> None:
        """Pass on one line for a person."""

    def advance(self, task: str, done: int, total: int) -> None:
        """Hear that ``done`` of ``total`` parts of a task are done.

        What follows a comma in ``task`` says how it goes, and may change.
        """

    def epoch(self, metrics: Mapping[str, float], num_epochs: int, time_s: float) -> None:
        """Hear what a finished epoch gave and took."""


class SilentReporter:
    """Tells nobody."""

    def say(self, text: str) -> None:
        """Ignore the line."""

    def advance(self, task: str, done: int, total: int) -> None:
        """Ignore the progress."""

    def epoch(self, metrics: Mapping[str, float], num_epochs: int, time_s: float) -> None:
        """Ignore the epoch."""
