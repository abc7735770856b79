"""Images decoded once, stored on disk at the network's size, and memory-mapped.

A cache is a directory named by a fingerprint of the image files and of every setting that shapes
the pixels; labels and subsets are not part of it. One process builds it while others wait, in a
sibling directory that a single rename moves into place: a cache is complete or absent.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import shutil
import stat
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

from labn.data.decode import Decoded, Progress, decode_all
from labn.data.readers.reader import Reader, Record
from labn.errors import UserError, printable
from labn.storage.files import cache_folder, locked, make_folder, put_in_place

logger = logging.getLogger(__name__)

_FORMAT_VERSION = 1
_COLUMNS = ("name", "path", "index", "size", "mtime_ns", "sha256", "pixels_sha256", "has_mask")


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageCache:
    """All images of a data set at one size, in the order of its records.

    Pixels are 0 to 255, not standardised; ``masks[i]`` is valid only where ``has_mask[i]``.
    ``sha256`` is of an image's file, or of its pixels where the file holds many or none exists;
    ``pixels_sha256`` is of the decoded pixels before resizing.
    """

    path: Path
    images: UInt8[np.ndarray, "n h w c"]
    masks: Bool[np.ndarray, "n h w"] | None
    has_mask: Bool[np.ndarray, " n"]
    sha256: tuple[str, ...]
    pixels_sha256: tuple[str, ...]


@dataclass(frozen=True)
class _FileState:
    real_path: str
    size: int
    mtime_ns: int


def build_cache(
    reader: Reader,
    records: Sequence[Record],
    *,
    image_size: int,
    cache_dir: Path,
    report_progress: Progress | None = None,
) -> ImageCache:
    """Return the cache of these images at ``image_size``, after building it if it is absent.

    The reader is called from several threads. While building, ``report_progress`` receives the
    number of images done and of all images.

    Raises:
        UserError: images cannot be read, or ``cache_dir`` cannot be written or is full.
    """
    if not records:
        raise ValueError("a cache requires at least one record, but got none")
    cache_dir = cache_folder(cache_dir)
    states = _file_states(records)
    directory = cache_dir / _fingerprint(reader, records, states, image_size)[:16]
    if cache := _open(directory, len(records)):
        return cache
    try:
        make_folder(cache_dir)
        _remove_abandoned(cache_dir)
        with locked(directory.with_suffix(".lock"), f"waiting for another process: {directory}"):
            if not (cache := _open(directory, len(records))):
                _build(reader, records, states, image_size, directory, report_progress)
                cache = _open(directory, len(records))
    except OSError as error:
        num_bytes = len(records) * image_size**2 * reader.num_channels
        raise UserError(
            f"data.cache_dir = {cache_dir}: cannot store the cache of {len(records)} images,"
            f" {num_bytes / 1e9:.2f} GB ({error.strerror or error}); specify a writable folder"
            " with enough space, data.cache_dir=PATH"
        ) from error
    assert cache is not None, f"{directory} was just built but does not open"
    return cache


def _file_states(records: Sequence[Record]) -> list[_FileState]:
    """Return the state of each record's file; a file of many images is inspected once."""
    states: dict[Path, _FileState] = {}
    for path in {record.path for record in records}:
        try:
            status = path.stat()
        except OSError:
            status = None
        if status is not None and stat.S_ISREG(status.st_mode):
            states[path] = _FileState(str(path.resolve()), status.st_size, status.st_mtime_ns)
        else:
            # Synthetic images have no file; a missing file is reported when it is read.
            states[path] = _FileState("", 0, 0)
    return [states[record.path] for record in records]


def _fingerprint(
    reader: Reader, records: Sequence[Record], states: Sequence[_FileState], image_size: int
) -> str:
    settings = (_FORMAT_VERSION, image_size, reader.num_channels, reader.geometry)
    digest = hashlib.sha256(json.dumps(settings).encode())
    for record, state in zip(records, states, strict=True):
        # Include the path: uncompressed files of two data sets may agree in size, unpacked in date.
        digest.update(json.dumps((record.name, record.index, *astuple(state))).encode())
    return digest.hexdigest()


def _open(directory: Path, num_images: int) -> ImageCache | None:
    """Return a finished cache, memory-mapped; None if it is absent or incomplete."""
    try:
        with (directory / "manifest.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        images = np.load(directory / "images.npy", mmap_mode="r")
        has_mask = np.array([row["has_mask"] == "1" for row in rows], dtype=np.bool_)
        masks = np.load(directory / "masks.npy", mmap_mode="r") if has_mask.any() else None
    except (OSError, ValueError):
        return None
    if len(rows) != num_images:
        return None
    return ImageCache(
        path=directory,
        images=images,
        masks=masks,
        has_mask=has_mask,
        sha256=tuple(row["sha256"] for row in rows),
        pixels_sha256=tuple(row["pixels_sha256"] for row in rows),
    )


def _remove_abandoned(cache_dir: Path) -> None:
    """Remove the unfinished directories of killed builders: those whose lock is free."""
    for building in cache_dir.glob("*.building"):
        try:
            with locked(building.with_suffix(".lock"), timeout_s=0):
                shutil.rmtree(building, ignore_errors=True)
        except TimeoutError:
            logger.debug("%s is being built by another process", building)


def _build(
    reader: Reader,
    records: Sequence[Record],
    states: Sequence[_FileState],
    image_size: int,
    directory: Path,
    report_progress: Progress | None,
) -> None:
    building = directory.with_suffix(".building")
    for leftover in (building, directory):
        shutil.rmtree(leftover, ignore_errors=True)
    building.mkdir()
    try:
        decoded = decode_all(
            reader,
            records,
            image_size=image_size,
            directory=building,
            report_progress=report_progress,
        )
        _write_manifest(building / "manifest.csv", records, states, decoded)
        put_in_place(building, directory)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write_manifest(
    path: Path,
    records: Sequence[Record],
    states: Sequence[_FileState],
    decoded: Sequence[Decoded],
) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for record, state, image in zip(records, states, decoded, strict=True):
            source = (record.name, printable(record.path), record.index, state.size, state.mtime_ns)
            writer.writerow((*source, image.sha256, image.pixels_sha256, int(image.has_mask)))
