"""One image with its maps, as metrics of explanations take it, and what a metric is.

Symbols: x an image, b the bias image, y the probability of the explained class, k the maps.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Shaped
from torch import Tensor

from labn.metrics.faithfulness import Predict

Values = Float64[np.ndarray, " k"]
Explain = Callable[[Tensor], Tensor]
"""A method: maps an image (c, h, w) to its map (h, w)."""

_NUM_SUBSETS = 64


@dataclass(frozen=True, eq=False)
class Explained:
    """One image with the maps of several methods, and what its metrics share.

    ``explain`` are the methods, in the order of ``maps``; ``mask`` is that of the lesions,
    ``field`` the strength of a magnetogram's field in gauss.
    """

    predict: Predict
    image: Float[Tensor, "c h w"]
    label: int
    name: str
    maps: Float64[np.ndarray, "k h w"]
    explain: Sequence[Explain]
    baseline: Float[Tensor, "c h w"]
    patch_size: int
    mask: Bool[np.ndarray, "h w"] | None = None
    field: Float64[np.ndarray, "h w"] | None = None
    seed: int = 0
    batch_size: int = 64

    @property
    def generator(self) -> np.random.Generator:
        """The same random numbers for each metric of this image."""
        return np.random.default_rng(seeds_of(self.seed, self.name))

    def score(self, images: Iterable[Tensor]) -> Float64[np.ndarray, " n"]:
        """Return y of each image."""
        found, remaining = [], iter(images)
        with torch.inference_mode():
            while batch := list(itertools.islice(remaining, self.batch_size)):
                scores = self.predict(torch.stack(batch))[:, self.label]
                found.append(scores.double().cpu().numpy())
        return np.concatenate(found)

    @cached_property
    def p_image(self) -> float:
        """The value y of the image itself."""
        return float(self.score([self.image])[0])

    @cached_property
    def patches(self) -> Int[np.ndarray, "h w"]:
        """The number of the patch of each pixel, row by row."""
        rows, columns = (np.arange(n) // self.patch_size for n in self.image.shape[1:])
        numbers: Int[np.ndarray, "h w"] = rows[:, None] * (columns[-1] + 1) + columns
        return numbers

    def without(self, hidden: Bool[np.ndarray, "h w"]) -> Tensor:
        """Return the image with b where it is hidden."""
        return torch.where(
            torch.from_numpy(hidden).to(self.image.device), self.baseline, self.image
        )

    @cached_property
    def single_drops(self) -> Float64[np.ndarray, " n"]:
        """By how much y falls without each patch."""
        numbers = range(self.patches.max() + 1)
        return self.p_image - self.score(self.without(self.patches == n) for n in numbers)

    @cached_property
    def random_subsets(self) -> tuple[Bool[np.ndarray, "n patches"], Float64[np.ndarray, " n"]]:
        """Random sets of patches, of random sizes, and by how much y falls without each."""
        number, rng = self.patches.max() + 1, self.generator
        shares = rng.random((_NUM_SUBSETS, 1))
        chosen = rng.random((_NUM_SUBSETS, number)) < shares
        scores = self.score(self.without(one[self.patches]) for one in chosen)
        return chosen, self.p_image - scores

    @cached_property
    def patch_sums(self) -> Float64[np.ndarray, "k patches"]:
        """Each map's sum over each patch."""
        index = self.patches.ravel()
        return np.stack([np.bincount(index, one.ravel()) for one in self.maps])

    @cached_property
    def p_masked(self) -> Values:
        """The value y of the image where each map, scaled to a maximum of 1, fades it into b."""
        greatest = self.maps.max(axis=(1, 2), keepdims=True)
        weights = torch.from_numpy(self.maps / np.where(greatest > 0, greatest, 1)).to(self.image)
        return self.score(w * self.image + (1 - w) * self.baseline for w in weights)


@dataclass(frozen=True)
class Metric:
    """A metric: which values are better, its range, and its cost in forward passes.

    ``cost`` is per map where it depends on the map, else per image (``shared``), or the number of
    times that the method explains again (``repeats``). ``compute`` returns a value for each map,
    NaN where it is undefined.
    """

    compute: Callable[[Explained], Values]
    better: Literal["higher", "lower"]
    range: tuple[float, float]
    cost: str
    source: str
    kind: Literal["faithfulness", "complexity", "robustness", "localisation"] = field(kw_only=True)


def seeds_of(seed: int, name: str) -> list[int]:
    """Return seeds of an image by its name, which may be that of a file and no text."""
    return [seed, zlib.crc32(name.encode(errors="surrogateescape"))]


def small_shift(length: int) -> int:
    """Return a 28th of a side, in pixels."""
    return max(1, round(length / 28))


def over_views(explain: Explain, images: Shaped[Tensor, "*b h w"]) -> Float[Tensor, "8 *b2 h w"]:
    """Return maps of images as they are, mirrored and slightly shifted, each moved back.

    Three flips, and a shift by a 28th of the side in each of four directions; what leaves on one
    side enters on the other.
    """
    height, width = images.shape[-2:]
    down, right = small_shift(height), small_shift(width)
    maps = [explain(images)]
    for axes in ((-1,), (-2,), (-2, -1)):
        maps.append(explain(images.flip(axes)).flip(axes))
    for rows, columns in ((down, 0), (-down, 0), (0, right), (0, -right)):
        moved = explain(images.roll((rows, columns), (-2, -1)))
        maps.append(moved.roll((-rows, -columns), (-2, -1)))
    return torch.stack(maps)


def as_map(values: Tensor) -> Float64[np.ndarray, "h w"]:
    """Return a map as an array."""
    return values.double().cpu().numpy()
