"""The status of a running search, its file, and the protocol of its reporters."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from labn.errors import UserError
from labn.storage.files import write_json

STATUS_FILE = "status.json"
"""The file in a search's folder, by which other processes watch it."""


@dataclass
class TrialStatus:
    """A trial; ``metrics`` are those of its last epoch, or those it ended with."""

    number: int
    parameters: dict[str, Any]
    num_epochs: int
    state: str = "running"
    epoch: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    node: str = ""
    """The name of the machine that it runs on."""
    start_s: float = field(default_factory=time.monotonic)


@dataclass
class SearchStatus:
    """The state of a search. ``best`` is the number of the best trial and its scores."""

    num_trials: int
    running: dict[int, TrialStatus] = field(default_factory=dict)
    past: dict[int, TrialStatus] = field(default_factory=dict)
    """The trials that have ended, also before this process started."""
    best: tuple[int, dict[str, float]] | None = None
    num_ended_here: int = 0
    """Trials that ended since this process started, for the estimate of the time left."""
    start_s: float = field(default_factory=time.monotonic)
    importances: dict[str, float] = field(default_factory=dict)
    """The share of each parameter in the differences between scores, the largest first."""
    has_ended: bool = False
    """Whether the process of the search has ended."""

    @property
    def ended(self) -> Counter[str]:
        """The number of trials that have ended, by state."""
        return Counter(trial.state for trial in self.past.values())

    @property
    def num_ended(self) -> int:
        """The number of trials that have ended, in any state."""
        return len(self.past)

    @property
    def left_s(self) -> float | None:
        """Estimated seconds until the last trial ends; None before the first has ended."""
        if not self.num_ended_here:
            return None
        per_trial_s = (time.monotonic() - self.start_s) / self.num_ended_here
        return per_trial_s * max(0, self.num_trials - self.num_ended)

    def write(self, folder: Path) -> None:
        """Write the status to a search's folder."""
        content = asdict(self) | {"elapsed_s": time.monotonic() - self.start_s, "at": time.time()}
        write_json(folder / STATUS_FILE, content)

    @classmethod
    def read(cls, folder: Path) -> tuple[SearchStatus, float]:
        """Read the status in a search's folder, and the seconds since it was written.

        Raises:
            UserError: there is none.
        """
        file = folder.expanduser() / STATUS_FILE
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            age_s = max(0.0, time.time() - content.pop("at"))
            content["start_s"] = time.monotonic() - content.pop("elapsed_s") - age_s
            for name in ("running", "past"):
                trials = content[name].items()
                content[name] = {int(number): TrialStatus(**one) for number, one in trials}
            best = content["best"]
            content["best"] = best and (int(best[0]), best[1])
            return cls(**content), age_s
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{folder}: holds no search that can be watched (no {STATUS_FILE}); give the"
                " output_dir of a search that has begun"
            ) from error


@runtime_checkable  # for the type checks under pytest
class SearchReporter(Protocol):
    """A receiver of a search's progress."""

    def message(self, text: str) -> None:
        """Show one line of text."""

    def show(self, status: SearchStatus) -> None:
        """Show the status; called after changes and at intervals."""


def parameters_as_text(parameters: dict[str, Any]) -> str:
    """Return parameters on one line."""
    return " ".join(f"{key}={_short(value)}" for key, value in parameters.items())


def scores_as_text(metrics: dict[str, float]) -> str:
    """Return the scores that a search may maximise, on one line."""
    names = ("val_pid", "val_auroc", "val_accuracy")
    return ", ".join(f"{name} {metrics[name]:.3f}" for name in names if name in metrics)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace(" ", "")
