"""Plans of the backbones: the numbers and widths of their bottlenecks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Spatial = Literal["lambda", "convolution"]
"""The middle layer of a backbone's bottlenecks: a lambda layer, or a 3x3 convolution."""


@dataclass(frozen=True)
class BackbonePlan:
    """A stem and its stages of bottlenecks.

    ``stage_depths[i]`` bottlenecks of inner width ``stage_widths[i]`` make stage i, whose output
    has ``expansion`` times that many channels; every stage but the first halves the map.
    """

    stem_width: int
    stage_widths: tuple[int, ...]
    stage_depths: tuple[int, ...]
    expansion: int = 4
    spatial: Spatial = "lambda"

    @property
    def num_bottlenecks(self) -> int:
        """Number of bottlenecks, the paper's N_B."""
        return sum(self.stage_depths)

    def has_single_pixel(self, image_size: int) -> bool:
        """Return whether the deepest map of an image of this size is one pixel."""
        return image_size <= 1 << (len(self.stage_depths) + 1)


def _resnet(*stage_depths: int, spatial: Spatial = "lambda") -> BackbonePlan:
    return BackbonePlan(64, (64, 128, 256, 512), stage_depths, spatial=spatial)


PLANS: dict[str, BackbonePlan] = {
    "lambda_cnn": BackbonePlan(16, (8,), (1,)),
    "lambda_resnet26": _resnet(2, 2, 2, 2),
    "lambda_resnet38": _resnet(2, 4, 4, 2),
    "lambda_resnet50": _resnet(3, 4, 6, 3),
    "lambda_resnet101": _resnet(3, 4, 23, 3),
    "lambda_resnet152": _resnet(3, 8, 36, 3),
    "resnet26": _resnet(2, 2, 2, 2, spatial="convolution"),
    "resnet50": _resnet(3, 4, 6, 3, spatial="convolution"),
}
