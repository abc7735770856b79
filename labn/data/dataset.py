"""A prepared data set: cached images, subsets, statistics and a manifest."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from labn.data.cache import ImageCache, build_cache
from labn.data.contrast import local_contrast
from labn.data.decode import Progress
from labn.data.groups import find_groups
from labn.data.manifest import PlacedImages, SubsetTable, listing
from labn.data.readers.reader import SUBSETS, Reader, Record, Scan, SubsetName
from labn.data.splits import (
    SubsetAssignment,
    assign_new_images,
    assign_subsets,
    check_training_subset,
)
from labn.errors import UserError, printable
from labn.storage.files import replacing

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 2**24
_LEAST_CONTRAST = 1e-3
"""Deviation of bytes below which there is nothing but the rounding of a constant."""

_Assign = Callable[..., SubsetAssignment]


@dataclass(frozen=True, eq=False, kw_only=True)
class Subset:
    """One subset of a data set.

    ``images`` and ``masks`` are memory maps of the whole data set's cache, and ``indices`` the
    subset's positions in them; ``labels``, ``names`` and ``has_mask`` are of this subset alone.
    """

    images: UInt8[np.ndarray, "n h w c"]
    masks: Bool[np.ndarray, "n h w"] | None
    indices: Int64[np.ndarray, " s"]
    labels: Int64[np.ndarray, " s"]
    names: tuple[str, ...]
    has_mask: Bool[np.ndarray, " s"]

    def __len__(self) -> int:
        return len(self.indices)

    def pixels(self, positions: Int64[np.ndarray, " b"]) -> UInt8[np.ndarray, "b h w c"]:
        """Return the images at these positions of the subset."""
        return np.asarray(self.images[self.indices[positions]])

    def select(self, positions: Int64[np.ndarray, " b"]) -> Subset:
        """Return a subset of these positions alone, in this order."""
        return replace(
            self,
            indices=self.indices[positions],
            labels=self.labels[positions],
            names=tuple(self.names[position] for position in positions),
            has_mask=self.has_mask[positions],
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class ChannelStatistics:
    """Mean and standard deviation of the training pixels (0 to 1), and the bias image.

    The bias image b is the mean of the standardised training images (Iida 2022, eq. 13). With a
    ``contrast_window`` all three are of the images' local contrast.
    """

    mean: Float[Tensor, " c"]
    std: Float[Tensor, " c"]
    bias_image: Float[Tensor, "c h w"]
    contrast_window: float | None = None

    def to(self, device: torch.device) -> ChannelStatistics:
        """Return the statistics on a device, in float32."""
        mean, std, bias = (t.to(device, torch.float32) for t in self.tensors().values())
        return replace(self, mean=mean, std=std, bias_image=bias)

    def tensors(self) -> dict[str, Tensor]:
        """Return mean, deviation and bias image by name."""
        return {"mean": self.mean, "std": self.std, "bias_image": self.bias_image}


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """The data that training and evaluation use.

    ``manifest`` has one row per image in use (name, path, partition, label, grade, sha256);
    ``digest`` is its SHA-256 without the paths, so that it does not depend on where the files lie.
    """

    class_names: tuple[str, ...]
    num_channels: int
    subsets: dict[SubsetName, Subset]
    statistics: ChannelStatistics
    manifest: pd.DataFrame
    digest: str
    notes: tuple[str, ...]


def prepare_dataset(
    reader: Reader,
    *,
    image_size: int,
    contrast_window: float | None = None,
    cache_dir: Path,
    validation_fraction: float,
    test_fraction: float,
    split_seed: int,
    cross_partition_duplicates: Literal["drop_train", "keep", "error"],
    conflicting_labels: Literal["drop", "keep", "error"],
    group_by: str | None = None,
    group_gap_s: float = 0,
    folds: int | None = None,
    fold: int = 0,
    known: SubsetTable | None = None,
    assigns_new: bool = False,
    allow_changed: bool = False,
    statistics: ChannelStatistics | None = None,
    report_progress: Progress | None = None,
) -> Dataset:
    """Scan and cache a data set, assign its subsets and measure its statistics.

    Subsets are those of the table ``known``, if there is one. Images that it does not name are
    unused, unless ``assigns_new``. ``contrast_window`` is that of ``local_contrast``, if the
    network is to see that. ``statistics`` are those of a trained network, for a data set that is
    not to train one.

    Raises:
        UserError: defects, subsets that cannot be drawn, images that changed or are missing
            (unless ``allow_changed``), an unwritable cache or constant pixels.
    """
    records = _usable_records(reader.scan())
    cache = build_cache(
        reader, records, image_size=image_size, cache_dir=cache_dir, report_progress=report_progress
    )
    rules: dict[str, Any] = {
        "validation_fraction": validation_fraction,
        "test_fraction": test_fraction,
        "seed": split_seed,
        "cross_partition_duplicates": cross_partition_duplicates,
        "conflicting_labels": conflicting_labels,
        "folds": folds,
        "fold": fold,
    }

    def draw(assign: _Assign, *known: Sequence[Any]) -> SubsetAssignment:
        groups = find_groups(reader, records, group_by, group_gap_s)
        return assign(records, cache.pixels_sha256, *known, groups=groups, **rules)

    if known is None:
        assignment = draw(assign_subsets)
    else:
        placed = known.apply(reader.root, records, cache.sha256, allow_changed=allow_changed)
        assignment = _with_new_images(placed, known, records, cache, draw if assigns_new else None)
        if statistics is None:
            check_training_subset(records, assignment.subsets)
    subsets = {name: _subset(records, cache, assignment.subsets, name) for name in SUBSETS}
    manifest = _manifest(records, cache, assignment.subsets)
    return Dataset(
        class_names=reader.class_names,
        num_channels=reader.num_channels,
        subsets=subsets,
        statistics=statistics or _statistics(subsets["train"], cache.path, contrast_window),
        manifest=manifest,
        digest=_digest(manifest),
        notes=assignment.notes,
    )


def _with_new_images(
    placed: PlacedImages,
    known: SubsetTable,
    records: Sequence[Record],
    cache: ImageCache,
    draw: Callable[..., SubsetAssignment] | None,
) -> SubsetAssignment:
    """Return the subsets by a table, with images that it does not name drawn or left out."""
    subsets, new, notes = placed
    if new and draw is not None:
        assigned = draw(assign_new_images, subsets, new)
        return SubsetAssignment(subsets=assigned.subsets, notes=(*notes, *assigned.notes))
    # Copies of known images are not news: they were left out before, as duplicates.
    unknown = set(new)
    seen = {cache.pixels_sha256[i] for i in range(len(records)) if i not in unknown}
    if fresh := [records[i].name for i in new if cache.pixels_sha256[i] not in seen]:
        notes.append(
            f"{len(fresh)} images are not in {known.source} and stay unused: {listing(fresh)}"
            " (data.new_images=assign uses them)"
        )
    return SubsetAssignment(subsets=tuple(subsets), notes=tuple(notes))


def _usable_records(scan: Scan) -> list[Record]:
    fatal = [problem for problem in scan.problems if problem.is_fatal]
    if fatal:
        first = "; ".join(f"{p.name}: {p.detail} ({p.kind})" for p in fatal[:3])
        raise UserError(
            f"defects in the data set: {len(fatal)}, first {first}; `labn data check` lists all"
        )
    if not scan.records:
        raise UserError(
            "the data set has no images; check data.name and data.root with `labn data check`"
        )
    if minor := [problem for problem in scan.problems if not problem.is_fatal]:
        logger.warning(
            "data.root: %d warnings, first %s: %s; `labn data check` lists all",
            len(minor),
            printable(minor[0].name),
            printable(minor[0].detail),
        )
    return scan.records


def _subset(
    records: Sequence[Record],
    cache: ImageCache,
    subsets: Sequence[SubsetName | None],
    name: SubsetName,
) -> Subset:
    positions = [position for position, subset in enumerate(subsets) if subset == name]
    indices = np.array(positions, dtype=np.int64)
    return Subset(
        images=cache.images,
        masks=cache.masks,
        indices=indices,
        labels=np.array([records[position].label for position in positions], dtype=np.int64),
        names=tuple(records[position].name for position in positions),
        has_mask=cache.has_mask[indices],
    )


def _manifest(
    records: Sequence[Record], cache: ImageCache, subsets: Sequence[SubsetName | None]
) -> pd.DataFrame:
    return pd.DataFrame(
        [
            (record.name, printable(record.path), subset, record.label, record.grade, sha256)
            for record, subset, sha256 in zip(records, subsets, cache.sha256, strict=True)
            if subset is not None
        ],
        columns=["name", "path", "partition", "label", "grade", "sha256"],
    )


def _digest(manifest: pd.DataFrame) -> str:
    rows = manifest.drop(columns="path").to_numpy().tolist()
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _statistics(train: Subset, directory: Path, contrast_window: float | None) -> ChannelStatistics:
    """Return the training statistics from the cache, or measure and store them there."""
    key = hashlib.sha256(train.indices.tobytes()).hexdigest()[:16]
    contrast = "" if contrast_window is None else f"-contrast-{contrast_window!r}"
    path = directory / f"statistics-{key}{contrast}.npz"
    if path.exists():
        with np.load(path) as stored:
            tensors = {name: torch.from_numpy(stored[name]) for name in stored}
            return ChannelStatistics(**tensors, contrast_window=contrast_window)
    statistics = measure_statistics(train, contrast_window)
    arrays: dict[str, Any] = {n: value.numpy() for n, value in statistics.tensors().items()}
    try:
        with replacing(path) as file:
            np.savez(file, **arrays)
    except OSError as error:
        # A finished cache may be mounted read-only; measuring costs one pass over it.
        logger.warning("%s cannot be written, so each run measures again (%s)", path, error)
    return statistics


def measure_statistics(train: Subset, contrast_window: float | None = None) -> ChannelStatistics:
    """Return the statistics and the bias image, measured in one pass.

    The sums are of integers and exact, but for local contrast.

    Raises:
        UserError: a channel is constant, so that it cannot be standardised.
    """
    height, width, num_channels = train.images.shape[1:]
    total_type, square_type = (
        (np.int64, np.uint16) if contrast_window is None else (np.float64, np.float64)
    )
    sum_hwc = np.zeros((height, width, num_channels), dtype=total_type)
    squares_c = np.zeros(num_channels, dtype=total_type)
    # Local contrast takes several copies in 64 bits.
    chunk_bytes = _CHUNK_BYTES // (1 if contrast_window is None else 32)
    chunk = max(1, chunk_bytes // sum_hwc.size)
    for start in range(0, len(train), chunk):
        pixels = train.pixels(np.arange(start, min(start + chunk, len(train))))
        if contrast_window is not None:
            images = torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 255
            contrast = local_contrast(images, contrast_window).permute(0, 2, 3, 1).numpy()
            pixels = 255 * contrast
        sum_hwc += pixels.sum(axis=0, dtype=total_type)
        squares_c += np.square(pixels, dtype=square_type).sum(axis=(0, 1, 2), dtype=total_type)
    sum_c, count = sum_hwc.sum(axis=(0, 1)), len(train) * height * width
    # Python integers: these products exceed 64 bits, and in floats the difference loses digits,
    # which matters where the deviation is far below the mean. Local contrast has a mean near 1/2.
    std_c = np.array(
        [
            math.sqrt(max(0, count * squares - total**2)) / count
            for squares, total in zip(squares_c.tolist(), sum_c.tolist(), strict=True)
        ]
    )
    if contrast_window is not None and std_c.min() < _LEAST_CONTRAST:
        raise UserError(
            f"data.local_contrast = {contrast_window:g}: channel {std_c.argmin()} of the"
            f" {len(train)} training images has none; check the images, or set it to null"
        )
    if (constant := np.flatnonzero(std_c == 0)).size:
        raise UserError(
            f"channel {constant[0]} has the value {sum_c[constant[0]] / count:g} in every pixel"
            f" of the {len(train)} training images, so it cannot be standardised; check the images"
        )
    mean_c = sum_c / count
    bias_hwc = (sum_hwc / len(train) - mean_c) / std_c
    return ChannelStatistics(
        mean=torch.from_numpy(mean_c / 255),
        std=torch.from_numpy(std_c / 255),
        bias_image=torch.from_numpy(bias_hwc).permute(2, 0, 1).contiguous().float(),
        contrast_window=contrast_window,
    )
