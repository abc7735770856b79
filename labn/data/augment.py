"""Random augmentation of a batch of training images, drawn per image, applied on its device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The augmentations and the largest amount of each; none by default.

    Amounts are drawn uniformly between minus and plus the largest. ``zoom`` and ``contrast`` are
    relative (0.1 is a factor of 0.9 to 1.1), ``brightness`` and ``colour``, a shift of each channel
    by itself, are in units of the pixels passed, and half of the images are flipped.
    """

    horizontal_flip: bool = False
    vertical_flip: bool = False
    rotation_deg: float = 0.0
    zoom: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    colour: float = 0.0


def draw_changes(
    num_images: int, generator: torch.Generator, num_channels: int = 0
) -> Float[Tensor, "draws b"]:
    """Draw the random numbers of the augmentations, in [0, 1), one column per image.

    Six of them, which do not depend on the enabled augmentations, so that disabling one leaves the
    others unchanged; and one for each of the channels whose colour is changed.
    """
    size = (6 + num_channels, num_images)
    return torch.rand(size, generator=generator, device=generator.device)


def change_batch(
    images: Float[Tensor, "b c h w"], augmentation: Augmentation, draws: Float[Tensor, "draws b"]
) -> Float[Tensor, "b c h w"]:
    """Augment every image by its column of ``draw_changes``."""
    if not len(images):  # the shard of a small last batch may be empty
        return images
    flip_x, flip_y = draws[:2].to(images.device) < 0.5
    turn, scale, brightness, contrast, *channels = (2 * draws[2:] - 1).to(images.device)
    if augmentation.horizontal_flip:
        images = torch.where(_per_image(flip_x), images.flip(3), images)
    if augmentation.vertical_flip:
        images = torch.where(_per_image(flip_y), images.flip(2), images)
    if augmentation.rotation_deg or augmentation.zoom:
        angle_rad = turn * math.radians(augmentation.rotation_deg)
        images = rotate_and_zoom(images, angle_rad, 1 + scale * augmentation.zoom)
    if augmentation.contrast:
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        images = mean + (images - mean) * _per_image(1 + contrast * augmentation.contrast)
    if augmentation.brightness:
        images = images + _per_image(brightness * augmentation.brightness)
    if augmentation.colour:
        shift_bc = augmentation.colour * torch.stack(channels, dim=1)
        images = images + shift_bc[:, :, None, None]
    return images


def rotate_and_zoom(
    images: Float[Tensor, "b c h w"], angle_rad: Float[Tensor, " b"], factor: Float[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """Rotate each image counter-clockwise about its centre and enlarge it by ``factor``.

    Bilinear; pixels from outside the image repeat the border.
    """
    height, width = images.shape[2:]
    cos, sin = angle_rad.cos() / factor, angle_rad.sin() / factor
    zero = torch.zeros_like(cos)
    # Both axes of the grid span -1 to 1, so rotating a non-square image must undo their scales.
    rows = (cos, -sin * height / width, zero, sin * width / height, cos, zero)
    theta = torch.stack(rows, dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
