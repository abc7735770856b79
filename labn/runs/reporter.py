"""What a run tells whoever watches it; how that looks is the entry point's affair."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from labn.errors import Interrupted


class Reporter:
    """Receives a run's progress. The methods of this class do nothing."""

    def message(self, text: str) -> None:
        """Pass on one line for a person."""

    def advance(self, task: str, done: int, total: int) -> None:
        """Receive that ``done`` of ``total`` parts of a task are done.

        What follows a comma in ``task`` says how it goes, and may change.
        """

    def epoch(self, metrics: Mapping[str, float], num_epochs: int, time_s: float) -> None:
        """Receive what a finished epoch gave and took."""


class SilentReporter(Reporter):
    """A reporter that shows nothing."""


class StoppingReporter(Reporter):
    """Passes all on, and ends work that can be gone on with where someone asked for an end.

    ``advance`` raises ``Interrupted`` then: between two parts of a task.
    """

    def __init__(self, reporter: Reporter, should_stop: Callable[[], bool]) -> None:
        self._reporter, self._should_stop = reporter, should_stop

    def message(self, text: str) -> None:
        """Pass on one line for a person."""
        self._reporter.message(text)

    def advance(self, task: str, done: int, total: int) -> None:
        """Pass on progress; raise ``Interrupted`` if nothing more shall be done."""
        self._reporter.advance(task, done, total)
        if self._should_stop():
            raise Interrupted

    def epoch(self, metrics: Mapping[str, float], num_epochs: int, time_s: float) -> None:
        """Pass on a finished epoch."""
        self._reporter.epoch(metrics, num_epochs, time_s)
