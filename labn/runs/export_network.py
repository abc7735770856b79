"""A trained network as one file that other programs run: ONNX, or torch's own pt2."""

from __future__ import annotations

import copy
import io
import json
import logging
import math
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple
from zipfile import ZipFile

import numpy as np
import torch
from torch import Tensor, nn

from labn.data.contrast import local_contrast
from labn.errors import UserError
from labn.runs.explain_images import network_digest
from labn.runs.trained import TrainedRun, without_data
from labn.storage.files import write_atomically
from labn.tracking import export_program

Format = Literal["onnx", "pt2"]
Outputs = dict[str, np.ndarray]

TOLERANCE = 1e-4
"""By how much exported outputs may differ from the network's, of which the largest counts as 1.

Outputs that are nowhere above 1 are compared as they are.
"""
_BATCH_SIZES = (1, 3)
_OUTPUT_NAMES = ("logits", "probabilities", "attention")
_METADATA = "labn.json"
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Export:
    """A file that was written, and how far its outputs are from the network's, by output."""

    file: Path
    largest_difference: dict[str, float]
    metadata: dict[str, Any]


def export_network(run: Path, format: Format, out: Path | None, overrides: list[str]) -> Export:
    """Write the best network of a run, with its standardisation, to one file.

    The input ``images`` is uint8 (n, size, size, channels), for any n: images that are cropped and
    resized as in training. The outputs are ``logits`` and ``probabilities`` (n, classes), and
    ``attention``, alpha~ (n, 1, h2, w2). The file carries class names, image size, mean and
    deviation. It is compared with the network before it is written. ``out`` is ``network.FORMAT``
    in the run's folder if None.

    Raises:
        UserError: there is no such run or network, packages are missing, the file is of another
            network, or its outputs differ from the network's.
    """
    if format == "onnx" and (missing := [one for one in _ONNX_PACKAGES if not find_spec(one)]):
        raise UserError(
            f"--format onnx: needs {', '.join(missing)}; run `pip install 'labn[onnx]'`, or give"
            " --format pt2"
        )
    trained = TrainedRun.open(run, [*without_data(overrides), "train.device=cpu"])
    path = (out or trained.folder.path / f"network.{format}").expanduser()
    metadata = asdict(trained.preparation) | {"network": network_digest(trained)}
    kind = _FORMATS[format]
    _check_replaceable(path, kind, metadata["network"])
    network = _FromBytes(trained).eval()
    content = kind.write(network, network.draw_images(2), metadata)
    differences = _compare(kind.load(content), network)
    if max(differences.values()) > TOLERANCE:
        shown = ", ".join(f"{name} by {value:.1e}" for name, value in differences.items())
        raise UserError(
            f"--format {format}: the exported network differs ({shown}; at most {TOLERANCE:g} is"
            " accepted), and is not written; give another --format, or other versions of"
            f" {'onnxruntime' if format == 'onnx' else 'torch'}"
        )
    write_atomically(path, content)
    return Export(path, differences, metadata)


class _FromBytes(nn.Module):
    """A trained network that standardises images of bytes by itself."""

    mean: Tensor
    std: Tensor

    def __init__(self, trained: TrainedRun) -> None:
        super().__init__()
        self.model = copy.deepcopy(trained.model)
        for name in ("mean", "std"):
            self.register_buffer(name, trained.best[name].flatten().view(-1, 1, 1).float())
        self.side = trained.config.data.image_size
        self.contrast_window = trained.config.data.local_contrast

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        values = images.permute(0, 3, 1, 2).float() / 255
        if self.contrast_window is not None:
            values = local_contrast(values, self.contrast_window)
        logits, _, attention = self.model((values - self.mean) / self.std)
        return {"logits": logits, "probabilities": logits.softmax(dim=-1), "attention": attention}

    def draw_images(self, num: int) -> Tensor:
        """Draw images of noise, without black, beside which there is no local contrast."""
        generator = torch.Generator().manual_seed(num)
        shape = (num, self.side, self.side, len(self.mean))
        return torch.randint(16, 256, shape, dtype=torch.uint8, generator=generator)


def _compare(exported: Callable[[Tensor], Outputs], network: _FromBytes) -> dict[str, float]:
    """Return the largest difference of each output over batches of noise of several sizes."""
    differences = dict.fromkeys(_OUTPUT_NAMES, 0.0)
    for size in _BATCH_SIZES:
        images = network.draw_images(size)
        with torch.inference_mode():
            expected = network(images)
        for name, value in exported(images).items():
            scale = max(1.0, float(expected[name].abs().max()))
            gap = float(np.abs(value - expected[name].numpy()).max()) / scale
            differences[name] = max(differences[name], math.inf if math.isnan(gap) else gap)
    return differences


def _check_replaceable(path: Path, kind: _Kind, network: str) -> None:
    """Refuse a file that is no earlier export of the same network.

    Raises:
        UserError: it is not.
    """
    if not path.exists():
        return
    try:
        is_same = kind.read_metadata(path.read_bytes()).get("network") == network
    except Exception:  # noqa: BLE001 - any content, read by other libraries
        is_same = False
    if not is_same:
        raise UserError(
            f"--out = {path}: is of another network or of other settings; give another file, or"
            " delete that one"
        )


def _write_onnx(network: nn.Module, images: Tensor, metadata: dict[str, Any]) -> bytes:
    from onnxscript import ir

    # Its notes on progress, and on the operators of versions that are not used.
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with redirect_stdout(io.StringIO()):
        program = torch.onnx.export(
            export_program(network, images), dynamo=True, verbose=False,
            input_names=["images"], output_names=list(_OUTPUT_NAMES),
        )  # fmt: skip
    assert program is not None
    program.model.metadata_props.update(
        {name: json.dumps(value) for name, value in metadata.items()}
    )
    content: bytes = ir.to_proto(program.model).SerializeToString()
    return content


def _load_onnx(content: bytes) -> Callable[[Tensor], Outputs]:
    session = _onnx_session(content)

    def run(images: Tensor) -> Outputs:
        values = session.run(list(_OUTPUT_NAMES), {"images": images.numpy()})
        return dict(zip(_OUTPUT_NAMES, values, strict=True))

    return run


def _onnx_session(content: bytes) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


def _read_onnx(content: bytes) -> dict[str, Any]:
    found = _onnx_session(content).get_modelmeta().custom_metadata_map
    return {name: json.loads(text) for name, text in found.items()}


def _write_pt2(network: nn.Module, images: Tensor, metadata: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    extra_files = {_METADATA: json.dumps(metadata)}
    torch.export.save(export_program(network, images), file, extra_files=extra_files)
    return file.getvalue()


def _load_pt2(content: bytes) -> Callable[[Tensor], Outputs]:
    program = torch.export.load(io.BytesIO(content)).module()

    def run(images: Tensor) -> Outputs:
        with torch.inference_mode():
            return {name: value.numpy() for name, value in program(images).items()}

    return run


def _read_pt2(content: bytes) -> dict[str, Any]:
    # Not by torch, which logs a traceback of any other file.
    with ZipFile(io.BytesIO(content)) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(f"/{_METADATA}"))
        metadata: dict[str, Any] = json.loads(archive.read(name))
    return metadata


class _Kind(NamedTuple):
    """How a format is written, loaded, and its metadata read."""

    write: Callable[[nn.Module, Tensor, dict[str, Any]], bytes]
    load: Callable[[bytes], Callable[[Tensor], Outputs]]
    read_metadata: Callable[[bytes], dict[str, Any]]


_FORMATS: dict[str, _Kind] = {
    "onnx": _Kind(_write_onnx, _load_onnx, _read_onnx),
    "pt2": _Kind(_write_pt2, _load_pt2, _read_pt2),
}
