"""Local contrast of fundus photographs, which shows small lesions in any light (Graham 2015)."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_GAIN = 4
_BACKGROUND = 0.06
"""What is darker in every channel lies outside the eye."""


def local_contrast(images: Float[Tensor, "b c h w"], window: float) -> Float[Tensor, "b c h w"]:
    """Return four times the difference of each pixel from its local mean, plus 1/2, clipped.

    It is 1/2 where the window reaches into the black around the eye, whose edge would otherwise be
    the strongest contrast of all.

    Args:
        images: pixels in [0, 1]; so are those returned.
        window: side of the square of the mean, as a share of the image's shorter side, in (0, 1);
            at the image's edges the mean is over what lies within the image.
    """
    reach = max(1, round(window * min(images.shape[-2:]) / 2))
    size = 2 * reach + 1
    is_black = (images.amax(dim=1, keepdim=True) <= _BACKGROUND).to(images)
    is_near_black = F.max_pool2d(is_black, size, 1, reach) > 0
    rows = F.avg_pool2d(images, (1, size), 1, (0, reach), count_include_pad=False)
    mean = F.avg_pool2d(rows, (size, 1), 1, (reach, 0), count_include_pad=False)
    return (_GAIN * (images - mean) + 0.5).clamp(0, 1).masked_fill(is_near_black, 0.5)
