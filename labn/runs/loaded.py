"""A trained run as a function from images to classes and maps: ``labn.load``."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image
from torch import Tensor

from labn.data.decode import resize
from labn.data.readers.unlabelled import UnlabelledImage, as_read, read_unlabelled
from labn.model.network import upsample_attention
from labn.report.maps import overlay
from labn.runs.trained import TrainedRun, without_data
from labn.tracking.labn_served import as_bytes

AnyImage = str | Path | Image.Image | np.ndarray | Tensor
_MAX_BATCH_SIZE = 8


@dataclass(frozen=True, eq=False, kw_only=True)
class Prediction:
    """The class of one image, and where the network looked; shown as a picture in a notebook.

    ``probabilities`` are by class name; ``attention`` is alpha~, in [0, 1], upsampled to the
    size of ``image`` and not thresholded: 0 where a reader crops.
    """

    image: UInt8[np.ndarray, "h w c"]
    probabilities: dict[str, float]
    attention: Float32[np.ndarray, "h w"]

    @property
    def predicted(self) -> str:
        """The most probable class."""
        return max(self.probabilities, key=lambda name: self.probabilities[name])

    def __repr__(self) -> str:
        height, width = self.attention.shape
        shown = ", ".join(f"{name} {value:.3f}" for name, value in self.probabilities.items())
        return f"<{self.predicted}: {shown}; attention {height} x {width}>"

    def overlay(self) -> UInt8[np.ndarray, "h w 3"]:
        """Return the image in grey under its attention in colour."""
        return overlay(self.image, self.attention)

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        Image.fromarray(self.overlay()).save(file, "png")
        return file.getvalue()


class TrainedModel:
    """A trained run that takes images as they are, and prepares them as in training.

    Attributes:
        class_names: the classes; 0, the first, is the negative one.
        image_size: the side in pixels to which the network's input is resized.
    """

    def __init__(self, trained: TrainedRun) -> None:
        self._trained = trained
        self.class_names = trained.class_names
        self.image_size = trained.config.data.image_size

    def __call__(self, image: AnyImage) -> Prediction:
        """Classify one image; see ``predict``."""
        return self._predict([image])[0]

    def predict(self, images: Sequence[AnyImage]) -> list[Prediction]:
        """Classify each of several images.

        An image is a file, a PIL image, an array of bytes (h, w) or (h, w, c), or a tensor
        (c, h, w) of bytes or of floats in [0, 1]; of any size. It has as many channels as training
        had, or is grey where training had three.

        Raises:
            ValueError: an image is none of these.
            OSError: a file cannot be read.
        """
        starts = range(0, len(images), _MAX_BATCH_SIZE)
        return [one for i in starts for one in self._predict(images[i : i + _MAX_BATCH_SIZE])]

    def _predict(self, images: Sequence[AnyImage]) -> list[Prediction]:
        read = [self._read(image) for image in images]
        output = self._trained.predict(np.stack([resize(i.kept, self.image_size) for i in read]))
        probabilities = output.logits.float().softmax(dim=1).cpu().tolist()
        return [
            Prediction(
                image=image.pixels,
                probabilities=dict(zip(self.class_names, row, strict=True)),
                attention=attention_of(attention, image.pixels.shape[:2], image.box),
            )
            for image, row, attention in zip(read, probabilities, output.attention, strict=True)
        ]

    def _read(self, image: AnyImage) -> UnlabelledImage:
        name, num_channels = self._trained.config.data.name, self._trained.best["num_channels"]
        if isinstance(image, str | Path):
            return read_unlabelled(Path(image).expanduser(), name, num_channels)
        return as_read(_as_pixels(image, num_channels), name)


def load(run: str | Path, *overrides: str) -> TrainedModel:
    """Load the best epoch of a run's folder; its data are not needed.

    ``overrides`` replace settings, such as ``"train.device=cuda"``.

    Raises:
        UserError: there is no such run, or no trained network in it.
    """
    return TrainedModel(TrainedRun.open(Path(run), without_data(overrides)))


def attention_of(
    attention: Tensor, size: tuple[int, int], box: tuple[int, int, int, int]
) -> Float32[np.ndarray, "h w"]:
    """Return alpha~ (1, h2, w2) at an image's size, 0 outside (left, top, right, bottom)."""
    left, top, right, bottom = box
    kept = upsample_attention(attention[None].float(), (bottom - top, right - left))[0]
    whole = np.zeros(size, dtype=np.float32)
    whole[top:bottom, left:right] = kept.cpu().numpy()
    return whole


def _as_pixels(image: Image.Image | np.ndarray | Tensor, num_channels: int) -> np.ndarray:
    """Return an image in memory as bytes (h, w, c) with the network's number of channels."""
    if not isinstance(image, Tensor):
        return as_bytes(image, num_channels)
    image = image.detach().cpu()
    if image.is_floating_point():
        # NaN compares false with everything, so test for valid values.
        if not bool(((image >= 0) & (image <= 1)).all()):
            raise ValueError(f"image: got a tensor of {image.dtype} outside [0, 1]")
        image = (image.float() * 255).round().to(torch.uint8)
    return as_bytes((image.permute(1, 2, 0) if image.ndim == 3 else image).numpy(), num_channels)
