"""Export of a network as an MLflow model that predicts with MLflow and torch, without labn."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from labn.storage.files import write_json
from labn.tracking import labn_served
from labn.tracking.quiet import quiet

_IMPORTED = ("mlflow", "numpy", "pillow", "torch")


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How a network's images are prepared, and the names of its classes.

    ``mean`` and ``std`` are per channel of pixels in [0, 1]; ``crops`` are pairs of the size
    (width, height) of an image and the box (left, top, right, bottom) that is kept of it. With a
    ``contrast_window`` the network sees the images' local contrast.
    """

    class_names: Sequence[str]
    image_size: int
    mean: Sequence[float]
    std: Sequence[float]
    crops: Sequence[tuple[tuple[int, int], tuple[int, int, int, int]]] = ()
    contrast_window: float | None = None


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


def export_program(network: torch.nn.Module, images: torch.Tensor) -> torch.export.ExportedProgram:
    """Export a network that takes images, two or more for example, with a free batch size.

    Its weights are made contiguous.
    """
    for parameter in network.parameters():
        # The archive writer treats channels_last weights as views of a larger tensor.
        parameter.data = parameter.data.contiguous()
    # torch.export treats a batch size of one as a constant.
    assert images.shape[0] > 1
    shapes = ({0: torch.export.Dim("batch")},)
    with torch.no_grad():
        return torch.export.export(network, (images,), dynamic_shapes=shapes, strict=False)


def save_servable(model: torch.nn.Module, preparation: Preparation, folder: Path) -> None:
    """Export a network with its softmax to a new folder, on the CPU and in evaluation mode.

    ``mlflow.pyfunc.load_model(folder).predict`` takes images of bytes (``labn_served``) and returns
    ``probabilities`` (n, classes) and ``attention`` (n, 1, h2, w2), for any n;
    ``mlflow.pytorch.load_model`` returns the program itself, which takes standardised images
    (n, c, h, w). ``mlflow.pytorch.save_model`` is not used because its models cannot
    predict more than one tensor, and have a fixed batch size where a network does not export with
    a free one: here that raises.
    """
    with quiet():
        import mlflow.pyfunc
        from mlflow.models import Model, ModelSignature, infer_signature

    served = _Outputs(copy.deepcopy(model).cpu().eval())
    side, num_channels = preparation.image_size, len(preparation.mean)
    images = torch.zeros(2, num_channels, side, side)
    program = export_program(served, images)
    with torch.no_grad():
        outputs = {name: value.numpy() for name, value in served(images).items()}
    description = Model()
    description.add_flavor(
        "pytorch", model_data="data/program", pytorch_version=str(torch.__version__), code=None
    )
    carried = asdict(preparation)
    mean_colour = np.array([preparation.mean]) * np.full((1, side, side, num_channels), 255)
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch, "program")
        data.mkdir()
        torch.export.save(program, data / "model.pt2")
        write_json(data / labn_served.PREPARATION, carried)
        mlflow.pyfunc.save_model(
            str(folder),
            mlflow_model=description,
            loader_module=labn_served.__name__.rsplit(".", 1)[-1],
            data_path=str(data),
            code_paths=[labn_served.__file__],
            # Of the outputs only: one of the inputs would refuse PIL images and mixed sizes.
            signature=ModelSignature(outputs=infer_signature(images.numpy(), outputs).outputs),
            input_example=mean_colour.round().astype(np.uint8),
            metadata=json.loads(json.dumps(carried)),
            pip_requirements=_requirements(),
        )


def _requirements() -> list[str]:
    # A local version ("2.9.0+cu130") is not on the index that a server would install from.
    names: dict[str, Any] = {name: metadata.version(name) for name in _IMPORTED}
    return [f"{name}=={version.split('+')[0]}" for name, version in names.items()]
