"""Controls: maps that use no network, as a baseline for explanations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from labn.metrics.explained import seeds_of

_SIGMA_FRACTION = 0.25
_DERIVATIVE, _AVERAGE = (-1.0, 0.0, 1.0), (1.0, 2.0, 1.0)  # Sobel's filter is their product
_BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


class RandomMap:
    """Noise, uniform in [0, 1), that depends only on the seed and the image's name."""

    name = "random"

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def explain(
        self, images: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"], names: Sequence[str]
    ) -> Float[Tensor, "b h w"]:
        """Return a random map for each name."""
        maps = [
            np.random.default_rng(seeds_of(self._seed, name)).random(images.shape[2:])
            for name in names
        ]
        return torch.from_numpy(np.stack(maps)).to(images)


class CentredGaussian:
    """The same bump for every image: 1 at the centre, sigma a quarter of each side."""

    name = "centre"

    def explain(
        self, images: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"], names: Sequence[str]
    ) -> Float[Tensor, "b h w"]:
        """Return the bump for each image, in (0, 1]."""
        rows, columns = (_bump(length).to(images) for length in images.shape[2:])
        return (rows[:, None] * columns).repeat(len(images), 1, 1)


class EdgeEnergy:
    """The squared gradient of the channels' mean, by Sobel's filter, smoothed by sigma = 1 pixel.

    Pixels beyond the border equal those on it.
    """

    name = "edges"

    def explain(
        self, images: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"], names: Sequence[str]
    ) -> Float[Tensor, "b h w"]:
        """Return the energy of each image's edges; not negative."""
        grey = images.mean(dim=1, keepdim=True)
        down = _filter(grey, _DERIVATIVE, _AVERAGE)
        across = _filter(grey, _AVERAGE, _DERIVATIVE)
        return _filter(down.square() + across.square(), _BINOMIAL, _BINOMIAL)[:, 0]


def _bump(length: int) -> Float[Tensor, " length"]:
    distance = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
    return torch.exp(-0.5 * (distance / (_SIGMA_FRACTION * length)).square())


def _filter(
    maps: Float[Tensor, "b 1 h w"], vertical: tuple[float, ...], horizontal: tuple[float, ...]
) -> Float[Tensor, "b 1 h w"]:
    kernel = torch.outer(maps.new_tensor(vertical), maps.new_tensor(horizontal))
    margin_y, margin_x = len(vertical) // 2, len(horizontal) // 2
    padded = F.pad(maps, (margin_x, margin_x, margin_y, margin_y), mode="replicate")
    # Half precision would turn weak edges into ties.
    with torch.autocast(maps.device.type, enabled=False):
        return F.conv2d(padded, kernel[None, None])
