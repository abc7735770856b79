"""MLflow's loader of a saved network; copied beside it, so that it needs no other file."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

PREPARATION = "preparation.json"
"""The file beside the network with how its images are prepared; earlier releases wrote none."""


class ServedNetwork:
    """A network behind MLflow's ``predict``.

    ``preparation`` has the keys ``class_names``, ``image_size``, ``mean``, ``std`` (per channel of
    pixels in [0, 1], or of their local contrast), ``crops``, pairs of an image's size and the box
    that is kept of it, and ``contrast_window``, of the local contrast that the network sees, or
    None. None: the network takes images that are standardised already.
    """

    def __init__(self, program: torch.nn.Module, preparation: dict[str, Any] | None) -> None:
        self._program, self.preparation = program, preparation

    def predict(
        self, images: Sequence[Any] | NDArray[Any], params: dict[str, Any] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Return ``probabilities`` (n, classes) and ``attention`` (n, 1, h, w) of images.

        An image is a PIL image or an array (h, w) or (h, w, c) of bytes, of any size, or, as JSON
        carries it, the base64 text of an image file.

        Raises:
            ValueError: an image is none of these.
        """
        prepared = (
            torch.from_numpy(np.array(images, dtype=np.float32))
            if self.preparation is None
            else torch.stack([self._prepare(image) for image in images])
        )
        with torch.inference_mode():
            outputs = self._program(prepared)
        return {name: value.numpy() for name, value in outputs.items()}

    def _prepare(self, image: Any) -> torch.Tensor:
        """Return an image as in training (c, h, w): cropped, resized and standardised."""
        how = self.preparation
        assert how is not None
        if isinstance(image, str):
            image = _from_base64(image)
        pixels = as_bytes(image, len(how["mean"]))
        kept = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        for size, box in how["crops"]:
            if list(kept.size) == size:
                kept = kept.crop(box)
                break
        side = how["image_size"]
        resized = np.asarray(kept.resize((side, side), Image.Resampling.BICUBIC))
        values = torch.from_numpy(resized.reshape(side, side, -1).copy()).permute(2, 0, 1).float()
        values.div_(255)
        if (window := how.get("contrast_window")) is not None:
            values = _local_contrast(values, window)
        mean, std = (torch.tensor(how[name]).view(-1, 1, 1) for name in ("mean", "std"))
        return values.sub_(mean).div_(std)


def _local_contrast(image: torch.Tensor, window: float) -> torch.Tensor:
    """Return what ``labn.data.contrast.local_contrast`` does, of one image (c, h, w)."""
    reach = max(1, round(window * min(image.shape[-2:]) / 2))
    size = 2 * reach + 1
    is_black = (image.amax(dim=0, keepdim=True) <= 0.06).to(image)
    is_near_black = F.max_pool2d(is_black, size, 1, reach) > 0
    rows = F.avg_pool2d(image, (1, size), 1, (0, reach), count_include_pad=False)
    mean = F.avg_pool2d(rows, (size, 1), 1, (reach, 0), count_include_pad=False)
    return (4 * (image - mean) + 0.5).clamp(0, 1).masked_fill(is_near_black, 0.5)


def _from_base64(text: str) -> Image.Image:
    """Decode the base64 text of an image file.

    Raises:
        ValueError: it is no such text.
    """
    try:
        image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)))
        image.load()
    except (OSError, ValueError) as error:
        shown = " ".join(str(error).split())
        raise ValueError(
            f"image: got text of {len(text)} letters, must be an image file in base64 ({shown})"
        ) from error
    return image


def as_bytes(image: Any, num_channels: int) -> NDArray[np.uint8]:
    """Return a PIL image or an array as bytes (h, w, c); grey is repeated in each channel.

    Raises:
        ValueError: it is neither, or has other values than bytes or another number of channels.
    """
    if isinstance(image, Image.Image):
        if image.mode[0] in "IF":
            raise ValueError(f"image: got a PIL image of mode {image.mode}, must have 8 bits")
        image = image.convert("L" if num_channels == 1 else "RGB")
    given = np.asarray(image)
    pixels = given[..., None] if given.ndim == 2 else given
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels.repeat(num_channels, axis=2)
    if pixels.dtype.kind == "i" and pixels.size and pixels.min() >= 0 and pixels.max() <= 255:
        pixels = pixels.astype(np.uint8)  # as numbers from JSON
    if (
        pixels.dtype != np.uint8
        or pixels.ndim != 3
        or pixels.shape[2] != num_channels
        or not pixels.size
    ):
        raise ValueError(
            f"image: got shape {given.shape} of {given.dtype}, must be (h, w) or"
            f" (h, w, {num_channels}) of uint8"
        )
    return np.ascontiguousarray(pixels)


def _load_pyfunc(path: str) -> ServedNetwork:
    import mlflow.pytorch

    file = Path(path, PREPARATION)
    preparation = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    # MLflow passes {model}/data/program; its own loader refuses programs that contain pickles.
    return ServedNetwork(mlflow.pytorch.load_model(str(Path(path).parents[1])), preparation)
