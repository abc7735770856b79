"""A run's progress on standard error: a bar on a terminal, else lines."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from labn.cli.app import without_controls
from labn.runs.reporter import Reporter

_SECONDS_BETWEEN_LINES = 30.0
_EPOCH_COLUMNS = {
    "train_loss": "loss",
    "val_loss": "val",
    "val_accuracy": "acc",
    "val_auroc": "AUROC",
    "val_pid": "PID",
}


@contextmanager
def starting() -> Iterator[None]:
    """Show on a terminal that the command has begun, while the block loads its libraries."""
    console = Console(stderr=True)
    with console.status("starting") if console.is_terminal else nullcontext():
        yield


class ConsoleReporter(Reporter):
    """A reporter that prints to the console; use it as a context manager."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", visible=False)
        self._last_line_s = time.monotonic()
        self._shows_speed = True
        self._started = ("", 0, 0.0)  # a task, how much was done at its first report, and its time

    def __enter__(self) -> ConsoleReporter:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def message(self, text: str) -> None:
        """Print a line."""
        self._console.print(without_controls(text), markup=False)

    def advance(self, task: str, done: int, total: int) -> None:
        """Move the bar; without a terminal, print a line from time to time."""
        self._bar.update(
            self._task, description=task, completed=done, total=total, visible=done < total
        )
        name = task.partition(",")[0]
        if name != self._started[0]:
            self._started = (name, done, time.monotonic())
        is_due = time.monotonic() - self._last_line_s >= _SECONDS_BETWEEN_LINES
        if not self._console.is_terminal and is_due:
            self._last_line_s = time.monotonic()
            self.message(f"{task}: {done}/{total}{self._time_left(done, total)}")

    def _time_left(self, done: int, total: int) -> str:
        _, first, start_s = self._started
        if done <= first:
            return ""
        time_s = (time.monotonic() - start_s) / (done - first) * (total - done)
        return f", about {duration(time_s)} left"

    def epoch(self, metrics: Mapping[str, float], num_epochs: int, time_s: float) -> None:
        """Print an epoch's metrics and the longest time left on one line of 80 columns."""
        epoch = int(metrics["epoch"])
        figures = [
            f"{name} {metrics[key]:.3f}" for key, name in _EPOCH_COLUMNS.items() if key in metrics
        ]
        self._last_line_s = time.monotonic()
        if self._shows_speed and "images_per_s" in metrics:
            num_workers = metrics.get("world_size", 1)
            workers = f"{num_workers:.0f} workers, " if num_workers > 1 else ""
            speed = f"{metrics['images_per_s']:.1f} images/s"
            self.message(f"{workers}training at {speed}, {time_s:.1f} s an epoch with validation")
            self._shows_speed = False
        left = _coarse(time_s * (num_epochs - epoch))
        self.message(f"epoch {epoch:3}/{num_epochs} {' '.join(figures)} {left} left")


def _coarse(time_s: float) -> str:
    if time_s < 60:
        return f"{time_s:.0f} s"
    return f"{time_s / 60:.0f} min" if time_s < 3600 else f"{time_s / 3600:.1f} h"


def duration(time_s: float) -> str:
    """Return a number of seconds as text, such as ``3 min 05 s``."""
    minutes, seconds = divmod(round(time_s), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
