"""A search's progress on standard error: a live table on a terminal, else lines."""

from __future__ import annotations

import time

from rich.console import Console
from rich.live import Live
from rich.table import Table

from labn.cli.progress import duration
from labn.sweeps.search.status import SearchReporter, SearchStatus

_SECONDS_BETWEEN_TABLES = 0.5
_SECONDS_BETWEEN_LINES = 60.0


class SearchDisplay(SearchReporter):
    """A reporter that prints to the console; use it as a context manager."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._last_s = time.monotonic()

    def __enter__(self) -> SearchDisplay:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def message(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False)

    def show(self, status: SearchStatus) -> None:
        """Refresh the table; without a terminal, print it as a line from time to time."""
        now_s = time.monotonic()
        is_terminal = self._console.is_terminal
        pause_s = _SECONDS_BETWEEN_TABLES if is_terminal else _SECONDS_BETWEEN_LINES
        if now_s - self._last_s < pause_s:
            return
        self._last_s = now_s
        if is_terminal:
            self._live.update(_table(status), refresh=True)
        else:
            self.message(status_as_text(status))


def status_as_text(status: SearchStatus) -> str:
    """Return the state of a search on one line."""
    parts = [f"{count} {state}" for state, count in status.ended.items() if count]
    parts.append(f"{len(status.running)} running")
    if status.best is not None:
        number, metrics = status.best
        scores = ", ".join(f"{name} {metrics[name]:.3f}" for name in _names(metrics))
        parts.append(f"best trial {number}: {scores}")
    if status.left_s is not None:
        parts.append(f"about {duration(status.left_s)} left")
    return f"{status.num_ended} of {status.num_trials} trials: {'; '.join(parts)}"


def _names(metrics: dict[str, float]) -> list[str]:
    return [name for name in ("val_pid", "val_auroc", "val_accuracy") if name in metrics]


def _table(status: SearchStatus) -> Table:
    table = Table(title=status_as_text(status), title_justify="left", expand=False)
    for name in ("trial", "epoch", "PID", "AUROC", "settings"):
        table.add_column(name, overflow="ellipsis", no_wrap=True)
    for trial in status.running.values():
        parameters = " ".join(
            f"{key.rpartition('.')[2]}={value:.3g}" if isinstance(value, float)
            else f"{key.rpartition('.')[2]}={value}"
            for key, value in trial.parameters.items()
        )  # fmt: skip
        scores = [
            f"{trial.metrics[name]:.3f}" if name in trial.metrics else ""
            for name in ("val_pid", "val_auroc")
        ]
        table.add_row(str(trial.number), f"{trial.epoch}/{trial.num_epochs}", *scores, parameters)
    return table
