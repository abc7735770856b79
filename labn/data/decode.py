"""Decoding of a whole data set into arrays on disk, on several threads."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from numpy.typing import DTypeLike, NDArray
from PIL import Image

from labn.data.readers.reader import Reader, Record
from labn.errors import UserError
from labn.storage.files import sha256_of

Progress = Callable[[int, int], None]

_MAX_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """The digests of one image in the arrays, and whether its mask is known."""

    sha256: str
    pixels_sha256: str
    has_mask: bool


def decode_all(
    reader: Reader,
    records: Sequence[Record],
    *,
    image_size: int,
    directory: Path,
    report_progress: Progress | None,
) -> list[Decoded]:
    """Write ``images.npy`` and, if any lesion mask is known, ``masks.npy`` into ``directory``.

    Raises:
        UserError: images cannot be read; every image is tried first.
        OSError: the arrays cannot be written.
    """
    arrays = _Arrays(directory, len(records), image_size, reader.num_channels)
    decoded: list[Decoded] = []
    unreadable: list[str] = []
    executor = ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1))
    try:
        outcomes = executor.map(
            lambda position: _decode(reader, records[position], arrays, position),
            range(len(records)),
        )
        for position, outcome in enumerate(outcomes):
            if isinstance(outcome, Decoded):
                decoded.append(outcome)
            else:
                unreadable.append(f"{records[position].name} ({' '.join(str(outcome).split())})")
            if report_progress is not None:
                report_progress(position + 1, len(records))
    finally:
        executor.shutdown(cancel_futures=True)
    if unreadable:
        raise UserError(
            f"{len(unreadable)} of {len(records)} images cannot be read:"
            f" {', '.join(unreadable[:3])}; `labn data check` lists all"
        )
    arrays.flush()
    return decoded


def _decode(
    reader: Reader, record: Record, arrays: _Arrays, position: int
) -> Decoded | OSError | ValueError:
    """Write one image into the arrays; return the error if it cannot be read."""
    file_sha256 = None
    try:
        pixels = reader.read(record)
        mask = reader.lesion_mask(record)
        if record.index is None and record.path.is_file():
            file_sha256 = sha256_of(record.path)
    except (OSError, ValueError) as error:
        return error
    arrays.put(position, pixels, mask)
    pixels_sha256 = hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()
    return Decoded(
        sha256=file_sha256 or pixels_sha256,
        pixels_sha256=pixels_sha256,
        has_mask=mask is not None,
    )


class _Arrays:
    """The arrays on disk; threads may write different images at once."""

    def __init__(
        self, directory: Path, num_images: int, image_size: int, num_channels: int
    ) -> None:
        self._image_size = image_size
        self._mask_shape = (num_images, image_size, image_size)
        self._mask_path = directory / "masks.npy"
        self._masks: np.memmap | None = None
        self._masks_lock = threading.Lock()
        self._images = _reserve(
            directory / "images.npy", np.uint8, (*self._mask_shape, num_channels)
        )

    def put(self, position: int, pixels: NDArray[np.uint8], mask: NDArray[np.bool_] | None) -> None:
        """Write one image, and its mask if it has one, at the cache's size."""
        assert pixels.dtype == np.uint8 and pixels.shape[2] == self._images.shape[3]
        self._images[position] = resize(pixels, self._image_size)
        if mask is None:
            return
        assert mask.shape == pixels.shape[:2]
        with self._masks_lock:
            if self._masks is None:
                self._masks = _reserve(self._mask_path, np.bool_, self._mask_shape)
        self._masks[position] = resize_mask(mask, self._image_size)

    def flush(self) -> None:
        self._images.flush()
        if self._masks is not None:
            self._masks.flush()


def _reserve(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap:
    """Return a new zeroed memory map whose disk space is allocated at once.

    A map of a file with holes would kill the process, not raise, when the disk is full.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def resize(
    pixels: UInt8[np.ndarray, "height width c"], image_size: int
) -> UInt8[np.ndarray, "h w c"]:
    """Return an image resized to a square, bicubic with antialiasing, or as it is if it fits."""
    if pixels.shape[:2] == (image_size, image_size):
        return pixels
    squeezed = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    resized = Image.fromarray(squeezed).resize((image_size,) * 2, Image.Resampling.BICUBIC)
    return np.asarray(resized).reshape(image_size, image_size, -1)


def resize_mask(mask: Bool[np.ndarray, "height width"], image_size: int) -> Bool[np.ndarray, "h w"]:
    """Return a resized mask; a new pixel that covers any marked one is marked."""
    # Float: a pixel of an image 4000 pixels wide may cover less than 1 / 255 of a new one.
    share = Image.fromarray(mask.astype(np.float32))
    return np.asarray(share.resize((image_size,) * 2, Image.Resampling.BOX)) > 0
