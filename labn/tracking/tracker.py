"""The interface of trackers, which do nothing here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch

from labn.tracking.servable import Preparation

Status = Literal["FINISHED", "FAILED", "KILLED"]


class CallRefused(Exception):
    """A call that the tracker permanently refuses, so that a retry is useless."""


class Tracker:
    """One run of an experiment, open until ``finish``. The methods of this class do nothing.

    Parameters and tags are logged as text, without credentials in URLs.
    """

    run_id: str | None = None
    """Id to resume this run later; None if runs are not kept."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log the settings of the run."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; a later value replaces an earlier one."""

    def log_metrics(
        self, metrics: Mapping[str, float], step: int, *, time_ms: int | None = None
    ) -> None:
        """Log metrics of one step, leaving out those that are not finite.

        ``time_ms`` is the time of measurement, in milliseconds since 1970; None: now. The same
        metrics logged again with the same step and time count once.
        """

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file, under its own name, to a folder of the run's artifacts."""

    def log_dataset(self, manifest: pd.DataFrame, *, name: str, source: str, digest: str) -> None:
        """Log which images the run saw: one row of ``manifest`` per image."""

    def log_model(self, model: torch.nn.Module, preparation: Preparation) -> None:
        """Log the network so that it predicts without this package (``save_servable``)."""

    def log_saved_model(self, folder: Path) -> None:
        """Log a network that ``save_servable`` has written."""

    def finish(self, status: Status | None) -> None:
        """Close the run; its status stays as it is if ``status`` is None."""


class NoTracker(Tracker):
    """A tracker that records nothing."""
