"""Batches of standardised images, straight from the memory-mapped cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from labn.data.augment import Augmentation, change_batch, draw_changes
from labn.data.dataset import ChannelStatistics, Split
from labn.errors import UserError

BIAS_NAME = "bias image"
BIAS_POSITION = -1

Shard = Callable[[int], slice]
"""A function from the size of a batch to the slice of it that this process loads."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Batch:
    """Standardised images; ``positions`` are indices in the subset, -1 for the bias image."""

    images: Float[Tensor, "b c h w"]
    labels: Int64[Tensor, " b"]
    names: tuple[str, ...]
    positions: Int64[Tensor, " b"]

    def __len__(self) -> int:
        return len(self.names)


def standardise(
    pixels: UInt8[np.ndarray, "b h w c"], statistics: ChannelStatistics, device: torch.device
) -> Float[Tensor, "b c h w"]:
    """Return pixels standardised by the training mean and standard deviation, channels_last."""
    images = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float()
    mean, std = (
        values.to(device, torch.float32).view(-1, 1, 1)
        for values in (statistics.mean, statistics.std)
    )
    return images.div_(255).sub_(mean).div_(std)


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
        split: Split,
        statistics: ChannelStatistics,
        *,
        batch_size: int,
        seed: int,
        bias_copies: int,
        balanced: bool,
        augment: Augmentation,
        device: torch.device,
        shard: Shard = slice,
    ) -> None:
        self._shard = shard
        self._split, self._statistics = split, statistics
        self._batch_size, self._seed = batch_size, seed
        self._bias_copies, self._balanced = bias_copies, balanced
        self._augment, self._device = augment, device
        if balanced:
            _balanced_counts(split, bias_copies)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        num_full, num_rest = divmod(len(self._split) + self._bias_copies, self._batch_size)
        return max(1, num_full + (num_rest > 1))

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from ``start_step`` if a run resumes within it."""
        order = self._order(np.random.default_rng([self._seed, epoch]))
        last_step = self.steps_per_epoch - 1
        for step in range(start_step, last_step + 1):
            start = step * self._batch_size
            end = len(order) if step == last_step else start + self._batch_size
            words = np.random.SeedSequence([self._seed, epoch, step]).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(words[0]))
            draws = draw_changes(end - start, generator)
            rows = self._shard(end - start)
            yield self._load(order[start:end][rows], draws[:, rows])

    def _order(self, rng: np.random.Generator) -> Int64[np.ndarray, " n"]:
        bias = np.full(self._bias_copies, BIAS_POSITION)
        if not self._balanced:
            return rng.permutation(np.concatenate([np.arange(len(self._split)), bias]))
        draws = [
            rng.choice(np.flatnonzero(self._split.labels == label), count)
            for label, count in _balanced_counts(self._split, self._bias_copies).items()
        ]
        return rng.permutation(np.concatenate([*draws, bias]))

    def _load(self, positions: Int64[np.ndarray, " b"], draws: Float[Tensor, "6 b"]) -> Batch:
        is_bias = positions == BIAS_POSITION
        # Rows of the bias image are read as image 0 and overwritten: one gather for all rows.
        indices = np.where(is_bias, 0, positions)
        images = standardise(self._split.pixels(indices), self._statistics, self._device)
        images = change_batch(images, self._augment, draws)
        images = images.contiguous(memory_format=torch.channels_last)
        images[torch.from_numpy(is_bias)] = self._statistics.bias_image.to(self._device)
        return Batch(
            images=images,
            labels=torch.from_numpy(np.where(is_bias, 0, self._split.labels[indices])).to(
                self._device
            ),
            names=tuple(
                BIAS_NAME if bias else self._split.names[index]
                for bias, index in zip(is_bias, indices, strict=True)
            ),
            positions=torch.from_numpy(positions).to(self._device),
        )


def _balanced_counts(split: Split, bias_copies: int) -> dict[int, int]:
    """Return the images per class in a balanced epoch; the bias image counts as a negative."""
    classes = [int(label) for label in np.unique(split.labels)]
    share, rest = divmod(len(split) + bias_copies, len(classes))
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
        split: Split,
        statistics: ChannelStatistics,
        batch_size: int,
        device: torch.device,
    ) -> None:
        self._split, self._statistics = split, statistics
        self._batch_size, self._device = batch_size, device

    def __len__(self) -> int:
        return -(-len(self._split) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self._split), self._batch_size):
            positions = np.arange(start, min(start + self._batch_size, len(self._split)))
            yield Batch(
                images=standardise(self._split.pixels(positions), self._statistics, self._device),
                labels=torch.from_numpy(self._split.labels[positions]).to(self._device),
                names=self._split.names[start : positions[-1] + 1],
                positions=torch.from_numpy(positions).to(self._device),
            )
