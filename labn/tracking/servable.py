"""Export of a network as an MLflow model that predicts with MLflow and torch, without labn."""

from __future__ import annotations

import copy
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from labn.tracking import labn_served
from labn.tracking.quiet import quiet


class _Outputs(torch.nn.Module):
    """A network with named outputs, as MLflow's signatures require."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        output = self.model(images)
        return {
            "probabilities": output.logits.softmax(dim=-1),
            "attention": output.attention,
        }


def save_servable(
    model: torch.nn.Module, example: Float[np.ndarray, "1 c h w"], folder: Path
) -> None:
    """Export a network with its softmax to a new folder, on the CPU and in evaluation mode.

    ``mlflow.pyfunc.load_model(folder).predict`` maps (n, c, h, w) float32 to ``probabilities``
    (n, classes) and ``attention`` (n, 1, h2, w2), for any n; ``mlflow.pytorch.load_model``
    returns the program itself. ``mlflow.pytorch.save_model`` is not used because its models cannot
    predict more than one tensor, and have a fixed batch size where a network does not export with
    a free one: here that raises.
    """
    with quiet():
        import mlflow.pyfunc
        from mlflow.models import Model, infer_signature

    served = _Outputs(copy.deepcopy(model).cpu().eval())
    for parameter in served.parameters():
        # The archive writer treats channels_last weights as views of a larger tensor.
        parameter.data = parameter.data.contiguous()
    # torch.export treats a batch size of one as a constant.
    images = torch.from_numpy(np.repeat(example, 2, axis=0).astype(np.float32))
    with torch.no_grad():
        outputs = {name: value.numpy() for name, value in served(images).items()}
        program = torch.export.export(
            served, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
        )
    description = Model()
    description.add_flavor(
        "pytorch", model_data="data/program", pytorch_version=str(torch.__version__), code=None
    )
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch, "program")
        data.mkdir()
        torch.export.save(program, data / "model.pt2")
        mlflow.pyfunc.save_model(
            str(folder),
            mlflow_model=description,
            loader_module=labn_served.__name__.rsplit(".", 1)[-1],
            data_path=str(data),
            code_paths=[labn_served.__file__],
            signature=infer_signature(images.numpy(), outputs),
            # Saved as JSON text, of which sixteenths need a third.
            input_example=np.round(images[:1].numpy() * 16) / 16,
            pip_requirements=_requirements(),
        )


def _requirements() -> list[str]:
    # A local version ("2.9.0+cu130") is not on the index that a server would install from.
    names: dict[str, Any] = {name: metadata.version(name) for name in ("mlflow", "numpy", "torch")}
    return [f"{name}=={version.split('+')[0]}" for name, version in names.items()]
