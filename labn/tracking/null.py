"""Tracking nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from labn.tracking.protocol import Status


class NullTracker:
    """A tracker that forgets everything."""

    run_id: str | None = None

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Forget the settings."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Forget the tags."""

    def log_metrics(
        self, metrics: Mapping[str, float], step: int, *, time_ms: int | None = None
    ) -> None:
        """Forget the metrics."""

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Forget the file."""

    def log_dataset(self, manifest: pd.DataFrame, *, name: str, source: str, digest: str) -> None:
        """Forget the data set."""

    def log_model(self, model: torch.nn.Module, example: Float[np.ndarray, "1 c h w"]) -> None:
        """Forget the network."""

    def log_saved_model(self, folder: Path) -> None:
        """Forget the network."""

    def finish(self, status: Status) -> None:
        """Do nothing."""
