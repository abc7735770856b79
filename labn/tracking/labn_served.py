"""MLflow's loader of a saved network; copied beside it, so that it needs no other file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


class ServedNetwork:
    """A network behind MLflow's ``predict``."""

    def __init__(self, program: torch.nn.Module) -> None:
        self._program = program

    def predict(
        self, images: NDArray[np.float32], params: dict[str, Any] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Return ``probabilities`` and ``attention`` of standardised images (n, c, h, w)."""
        with torch.inference_mode():
            outputs = self._program(torch.from_numpy(np.array(images, dtype=np.float32)))
        return {name: value.numpy() for name, value in outputs.items()}


def _load_pyfunc(path: str) -> ServedNetwork:
    import mlflow.pytorch

    # MLflow passes {model}/data/program; its own loader refuses programs that contain pickles.
    return ServedNetwork(mlflow.pytorch.load_model(str(Path(path).parents[1])))
