"""How MLflow loads a network that was kept; copied beside it, so that it needs no other file."""

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
        """Map standardised images (n, c, h, w) to ``probabilities`` and ``attention``."""
        with torch.inference_mode():
            outputs = self._program(torch.from_numpy(np.array(images, dtype=np.float32)))
        return {name: value.numpy() for name, value in outputs.items()}


def _load_pyfunc(path: str) -> ServedNetwork:
    import mlflow.pytorch

    # MLflow hands over {model}/data/program; its own loader refuses programs that hide pickles.
    return ServedNetwork(mlflow.pytorch.load_model(str(Path(path).parents[1])))
