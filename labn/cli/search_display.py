"""A search's progress on standard error: a live table on a terminal, else lines."""

from __future__ import annotations

import time
from textwrap import fill

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from labn.cli.app import without_controls
from labn.cli.progress import duration
from labn.sweeps.search.status import (
    SearchReporter,
    SearchStatus,
    TrialStatus,
    parameters_as_text,
    scores_as_text,
)

_SECONDS_BETWEEN_TABLES = 0.5
_SECONDS_BETWEEN_LINES = 60.0
_LINES_AROUND_ROWS = 8
"""Lines of a terminal that are kept for the status, the head of the table and messages."""
_FEWEST_ROWS = 3
_MOST_IMPORTANT = 5
"""How many parameters' importances are shown."""


class SearchDisplay(SearchReporter):
    """A reporter that prints to the console; use it as a context manager.

    With ``show_settings`` every trial's settings are shown whole, else as far as the table's
    width allows.
    """

    def __init__(self, *, show_settings: bool = False) -> None:
        self._show_settings = show_settings
        self._announced: set[int] = set()
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
        self._console.print(without_controls(text), markup=False)

    def show(self, status: SearchStatus) -> None:
        """Refresh the table; without a terminal, print it as a line from time to time."""
        if self._show_settings:
            self._announce(status)
        now_s = time.monotonic()
        is_terminal = self._console.is_terminal
        pause_s = _SECONDS_BETWEEN_TABLES if is_terminal else _SECONDS_BETWEEN_LINES
        if now_s - self._last_s < pause_s:
            return
        self._last_s = now_s
        if is_terminal:
            console = self._console
            self._live.update(progress_table(status, console.width, console.height), refresh=True)
        else:
            self.message(status_as_text(status))

    def _announce(self, status: SearchStatus) -> None:
        for number, trial in status.running.items():
            if number not in self._announced:
                self._announced.add(number)
                self.message(f"trial {number}: {parameters_as_text(trial.parameters)}")


def status_as_text(status: SearchStatus) -> str:
    """Return the state of a search on one line."""
    counts = _counts_as_text(status)
    if status.best is None:
        return counts
    number, metrics = status.best
    return f"{counts}; best trial {number}: {scores_as_text(metrics)}"


def _counts_as_text(status: SearchStatus) -> str:
    parts = [f"{count} {state}" for state, count in status.ended.items()]
    parts.append(f"{len(status.running)} running")
    if status.left_s is not None:
        parts.append(f"about {duration(status.left_s)} left")
    return f"{status.num_ended} of {status.num_trials} trials: {'; '.join(parts)}"


def progress_table(status: SearchStatus, width: int, height: int) -> Table:
    """Return a table of the trials that fits a terminal: settings are cut off first.

    Running trials come last; of those that have ended, the best and the latest are shown.
    """
    # Wrapped here: a console with soft wrapping wraps nothing.
    title = fill(_counts_as_text(status), width)
    table = Table(title=title, title_justify="left", title_style="none", caption_justify="left")
    for name in ("trial", "state", "epoch", "PID", "AUROC"):
        table.add_column(name, no_wrap=True, justify="left" if name == "state" else "right")
    # Alone of all columns it may be narrowed; its cells stay on one line.
    table.add_column("settings", overflow="ellipsis")
    has_nodes = len({trial.node for trial in status.running.values()} - {""}) > 1
    if has_nodes:
        table.add_column("node", no_wrap=True)
    num_rows = max(_FEWEST_ROWS, height - _LINES_AROUND_ROWS - len(status.running))
    shown = _latest_and_best(status, num_rows)
    captions = [_importances_as_text(status)] if status.importances else []
    if len(shown) < len(status.past):
        captions.insert(0, f"{len(status.past) - len(shown)} more have ended")
    table.caption = "\n".join(fill(caption, width) for caption in captions) or None
    for trial in (*shown, *status.running.values()):
        settings = Text(_short_settings(trial), no_wrap=True, overflow="ellipsis")
        scores = [
            f"{trial.metrics[name]:.3f}" if name in trial.metrics else ""
            for name in ("val_pid", "val_auroc")
        ]
        is_best = status.best is not None and status.best[0] == trial.number
        state = "best so far" if is_best else trial.state
        epochs = f"{trial.epoch}/{trial.num_epochs}"
        node = [trial.node] if has_nodes else []
        table.add_row(str(trial.number), state, epochs, *scores, settings, *node)
    return table


def _importances_as_text(status: SearchStatus) -> str:
    shares = [f"{key.rpartition('.')[2]} {share:.2f}" for key, share in status.importances.items()]
    return f"importance: {', '.join(shares[:_MOST_IMPORTANT])}"


def _latest_and_best(status: SearchStatus, num_rows: int) -> list[TrialStatus]:
    numbers = sorted(status.past)
    shown = set(numbers[-num_rows:])
    if status.best is not None and status.best[0] in status.past and status.best[0] not in shown:
        shown = {status.best[0], *numbers[len(numbers) - num_rows + 1 :]}
    return [status.past[number] for number in sorted(shown)]


def _short_settings(trial: TrialStatus) -> str:
    named = {key.rpartition(".")[2]: value for key, value in trial.parameters.items()}
    return parameters_as_text(named)
