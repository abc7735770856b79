"""Reporters of a run's progress; entry points decide how it is displayed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from labn.errors import Interrupted


class Reporter:
    """A receiver of a run's progress; the methods of this class do nothing."""

    def message(self, text: str) -> None:
        """Report one line of text."""

    def advance(self, task: str, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` steps of a task are done.

        The text after a comma in ``task`` is a status that may change from call to call.
        """

    def epoch(self, metrics: Mapping[str, float], num_epochs: int, time_s: float) -> None:
        """Report the metrics and the duration of a finished epoch."""


class StoppingReporter(Reporter):
    """A reporter that interrupts resumable work when a stop is requested.

    ``advance`` raises ``Interrupted`` then, between two steps of a task.
    """

    def __init__(self, reporter: Reporter, should_stop: Callable[[], bool]) -> None:
        self._reporter, self._should_stop = reporter, should_stop

    def message(self, text: str) -> None:
        """Forward one line of text."""
        self._reporter.message(text)

    def advance(self, task: str, done: int, total: int) -> None:
        """Forward progress; raise ``Interrupted`` if a stop is requested."""
        self._reporter.advance(task, done, total)
        if self._should_stop():
            raise Interrupted

    def epoch(self, metrics: Mapping[str, float], num_epochs: int, time_s: float) -> None:
        """Forward a finished epoch."""
        self._reporter.epoch(metrics, num_epochs, time_s)
