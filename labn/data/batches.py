"""Batches of standardised images, from the memory-mapped cache or the memory of a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from labn.data.augment import Augmentation, change_batch, draw_changes
from labn.data.contrast import local_contrast
from labn.data.dataset import ChannelStatistics, Subset
from labn.errors import UserError

BIAS_NAME = "bias image"
BIAS_POSITION = -1

Shard = Callable[[int], slice]
"""A function from the size of a batch to the slice of it that this process loads."""


OnDevice = Literal["auto", "always", "never"]
Item = TypeVar("Item")


@dataclass(frozen=True, eq=False, kw_only=True)
class Batch:
    """Standardised images; ``positions`` are indices in the subset, -1 for the bias image."""

    images: Float[Tensor, "b c h w"]
    labels: Int64[Tensor, " b"]
    names: tuple[str, ...]
    positions: Int64[Tensor, " b"]

    def __len__(self) -> int:
        return len(self.names)


class _Gathered(NamedTuple):
    """What a training batch is made of: positions in the subset, pixels and random draws."""

    positions: Int64[np.ndarray, " b"]
    pixels: Tensor
    draws: Float[Tensor, "6 b"]


def standardise(
    pixels: UInt8[np.ndarray, "b h w c"], statistics: ChannelStatistics, device: torch.device
) -> Float[Tensor, "b c h w"]:
    """Return pixels, or their local contrast, standardised as in training, channels_last."""
    return _standardise(torch.from_numpy(pixels).to(device), statistics.to(device))


def _standardise(
    pixels: UInt8[Tensor, "b h w c"], statistics: ChannelStatistics
) -> Float[Tensor, "b c h w"]:
    images = pixels.permute(0, 3, 1, 2).float().div_(255)
    if statistics.contrast_window is not None:
        images = local_contrast(images, statistics.contrast_window)
    mean, std = (values.view(-1, 1, 1) for values in (statistics.mean, statistics.std))
    return images.sub_(mean).div_(std)


class _Source:
    """The images of a subset, on the way to a device or there already.

    Nothing that it does on a GPU waits for it: what is copied lies in pinned memory.
    """

    def __init__(
        self,
        subset: Subset,
        statistics: ChannelStatistics,
        device: torch.device,
        on_device: OnDevice,
    ) -> None:
        self._subset, self._device = subset, device
        self._is_gpu = _is_gpu(device)
        self.statistics = statistics.to(device)
        self._pixels: Tensor | None = None
        if self._is_gpu and _fits(subset, device, on_device):
            self._pixels = torch.from_numpy(subset.pixels(np.arange(len(subset)))).to(device)

    def gather(self, positions: Int64[np.ndarray, " b"]) -> Tensor:
        """Return what is to be copied for the images at these positions of the subset."""
        found = positions if self._pixels is not None else self._subset.pixels(positions)
        return self._pinned(torch.from_numpy(found))

    def images(self, gathered: Tensor) -> Float[Tensor, "b c h w"]:
        """Copy to the device and standardise what ``gather`` returned."""
        moved = gathered.to(self._device, non_blocking=True)
        pixels = moved if self._pixels is None else self._pixels.index_select(0, moved)
        return _standardise(pixels, self.statistics)

    def to_device(self, values: Tensor) -> Tensor:
        """Copy a small tensor to the device."""
        return self._pinned(values).to(self._device, non_blocking=True)

    def ahead(self, items: Iterator[Item]) -> Iterator[Item]:
        """Yield the same items, each fetched by a thread while its predecessor is in use.

        Only if that takes time: on a CPU the thread would take a core from the network.
        """
        return _ahead(items) if self._is_gpu and self._pixels is None else items

    def _pinned(self, values: Tensor) -> Tensor:
        return values.pin_memory() if self._is_gpu else values


def _is_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


def _fits(subset: Subset, device: torch.device, on_device: OnDevice) -> bool:
    if on_device != "auto":
        return on_device == "always"
    num_bytes = len(subset) * math.prod(subset.images.shape[1:])
    return num_bytes <= torch.cuda.get_device_properties(device).total_memory / 4


def _ahead(items: Iterator[Item]) -> Iterator[Item]:
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as thread:
        following = thread.submit(next, items, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item


class TrainingBatches:
    """Shuffled, augmented batches; each is a function of seed, epoch and step alone.

    An epoch has every image once and the bias image ``bias_copies`` times as a negative. The bias
    image is not augmented, since masking and evaluation use it unchanged (Iida 2022, eq. 12-16).
    With ``balanced``, an epoch of the same length has all classes equally often, its images drawn
    with replacement. The last batch is smaller, or larger by one if only one image remains, since
    batch normalisation requires two.

    Each process loads its ``shard`` of every batch, which may be empty in the last one; the images
    and their augmentation do not depend on the number of processes.
    """

    def __init__(
        self,
        subset: Subset,
        statistics: ChannelStatistics,
        *,
        batch_size: int,
        seed: int,
        bias_copies: int,
        balanced: bool,
        augment: Augmentation,
        device: torch.device,
        on_device: OnDevice = "auto",
        shard: Shard = slice,
    ) -> None:
        self._shard = shard
        self._subset, self._source = subset, _Source(subset, statistics, device, on_device)
        self._batch_size, self._seed = batch_size, seed
        self._bias_copies, self._balanced = bias_copies, balanced
        self._augment = augment
        if balanced:
            _balanced_counts(subset, bias_copies)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        num_full, num_rest = divmod(len(self._subset) + self._bias_copies, self._batch_size)
        return max(1, num_full + (num_rest > 1))

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from ``start_step`` if a run resumes within it."""
        for gathered in self._source.ahead(self._gathered(epoch, start_step)):
            yield self._batch(gathered)

    def _gathered(self, epoch: int, start_step: int) -> Iterator[_Gathered]:
        order = self._order(np.random.default_rng([self._seed, epoch]))
        last_step = self.steps_per_epoch - 1
        for step in range(start_step, last_step + 1):
            start = step * self._batch_size
            end = len(order) if step == last_step else start + self._batch_size
            words = np.random.SeedSequence([self._seed, epoch, step]).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(words[0]))
            num_coloured = self._subset.images.shape[-1] if self._augment.colour else 0
            draws = draw_changes(end - start, generator, num_coloured)
            rows = self._shard(end - start)
            positions = order[start:end][rows]
            # Rows of the bias image are read as image 0 and replaced: one gather for all rows.
            pixels = self._source.gather(np.maximum(positions, 0))
            yield _Gathered(positions, pixels, draws[:, rows])

    def _order(self, rng: np.random.Generator) -> Int64[np.ndarray, " n"]:
        bias = np.full(self._bias_copies, BIAS_POSITION)
        if not self._balanced:
            return rng.permutation(np.concatenate([np.arange(len(self._subset)), bias]))
        draws = [
            rng.choice(np.flatnonzero(self._subset.labels == label), count)
            for label, count in _balanced_counts(self._subset, self._bias_copies).items()
        ]
        return rng.permutation(np.concatenate([*draws, bias]))

    def _batch(self, gathered: _Gathered) -> Batch:
        source, positions = self._source, gathered.positions
        is_bias = positions == BIAS_POSITION
        labels = np.where(is_bias, 0, self._subset.labels[np.maximum(positions, 0)])
        images = source.images(gathered.pixels)
        images = change_batch(images, self._augment, source.to_device(gathered.draws))
        is_bias_b111 = source.to_device(torch.from_numpy(is_bias)).view(-1, 1, 1, 1)
        # Not by a boolean index, which would wait for the device.
        images = torch.where(is_bias_b111, source.statistics.bias_image, images)
        return Batch(
            images=images.contiguous(memory_format=torch.channels_last),
            labels=source.to_device(torch.from_numpy(labels)),
            names=tuple(
                BIAS_NAME if position == BIAS_POSITION else self._subset.names[position]
                for position in positions
            ),
            positions=source.to_device(torch.from_numpy(positions)),
        )


def _balanced_counts(subset: Subset, bias_copies: int) -> dict[int, int]:
    """Return the images per class in a balanced epoch; the bias image counts as a negative."""
    classes = [int(label) for label in np.unique(subset.labels)]
    share, rest = divmod(len(subset) + bias_copies, len(classes))
    counts = {label: share + (index < rest) for index, label in enumerate(classes)}
    counts[0] -= bias_copies
    if counts[0] < 0:
        raise UserError(
            f"data.bias_copies = {bias_copies}: exceeds the {counts[0] + bias_copies} negatives"
            " of a balanced epoch; lower it, or set train.balanced_sampling=false"
        )
    return counts


class EvaluationBatches:
    """Every image of a subset once, in order, standardised and not augmented."""

    def __init__(
        self,
        subset: Subset,
        statistics: ChannelStatistics,
        batch_size: int,
        device: torch.device,
        on_device: OnDevice = "auto",
    ) -> None:
        self._subset, self._batch_size = subset, batch_size
        self._source = _Source(subset, statistics, device, on_device)

    def __len__(self) -> int:
        return -(-len(self._subset) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        source, subset = self._source, self._subset
        for positions, pixels in source.ahead(self._gathered()):
            yield Batch(
                images=source.images(pixels),
                labels=source.to_device(torch.from_numpy(subset.labels[positions])),
                names=subset.names[positions[0] : positions[-1] + 1],
                positions=source.to_device(torch.from_numpy(positions)),
            )

    def _gathered(self) -> Iterator[tuple[Int64[np.ndarray, " b"], Tensor]]:
        for start in range(0, len(self._subset), self._batch_size):
            positions = np.arange(start, min(start + self._batch_size, len(self._subset)))
            yield positions, self._source.gather(positions)
