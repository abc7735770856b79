"""Arguments of any type of number: converted exactly, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Numbers = Shaped[Tensor, "..."] | ArrayLike | Sequence[Tensor]
"""A tensor, or what NumPy takes for an array, such as a list, of any real type."""

_EXACT = {torch.float32: 2**24, torch.float64: 2**53}
"""Below these, a type of float holds every integer."""


def as_numbers(name: str, values: Numbers) -> Float[Tensor, "*shape"]:
    """Return numbers in float32, or in float64 where float32 cannot hold them exactly.

    Raises:
        ValueError: they are not real numbers, or float64 cannot hold them.
    """
    tensor = as_tensor(name, values)
    if tensor.is_floating_point():
        return tensor if tensor.dtype == torch.float64 else tensor.float()
    wide = tensor.to(torch.float64)
    largest = wide.abs().max().item() if wide.numel() else 0.0
    for dtype, limit in _EXACT.items():
        if largest < limit:
            return wide.to(dtype)
    raise ValueError(f"{name}: got {_described(tensor)} with {largest:.4g}, must be below 2**53")


def as_mask(name: str, values: Numbers) -> Bool[Tensor, "*shape"]:
    """Return a mask that is boolean, or 0 and one other number, such as 1 or 255.

    Raises:
        ValueError: it has other numbers.
    """
    tensor = as_tensor(name, values)
    if tensor.dtype == torch.bool:
        return tensor
    numbers = as_numbers(name, tensor)
    found = torch.from_numpy(np.unique(numbers.cpu().numpy()))
    if len(found[found != 0]) > 1 or not (found >= 0).all() or not found.isfinite().all():
        raise ValueError(
            f"{name}: got {_described(tensor)} with {len(found)} values from {found.min():.4g} to"
            f" {found.max():.4g}, must be boolean, or 0 and one value above it"
        )
    return numbers > 0


def as_labels(labels: Numbers, num_images: int) -> Int64[Tensor, " n"]:
    """Return the class of each image, on the CPU.

    Raises:
        ValueError: they are not integers, one for each image.
    """
    tensor = as_tensor("labels", labels)
    if tensor.shape != (num_images,) or tensor.is_floating_point():
        raise ValueError(
            f"labels: got {_described(tensor)}, must be integers of shape ({num_images},)"
        )
    return tensor.long().cpu()


def as_images(given: Numbers) -> Float[Tensor, "n c h w"]:
    """Return images (n, c, h, w) of floats, in their own precision.

    Raises:
        ValueError: they are none, or of size 0.
    """
    images = as_tensor("images", given)
    if images.ndim != 4 or not images.is_floating_point() or 0 in images.shape[1:]:
        raise ValueError(
            f"images: got {_described(images)}, must be floats of shape (images, channels, height,"
            " width), standardised as for the network"
        )
    return images


def as_share(name: str, share: object) -> float:
    """Return a number from 0 to 1.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(share, int | float | np.number) or not 0 <= share <= 1:
        raise ValueError(f"{name}: got {share!r}, must be 0 to 1")
    return float(share)


def check_count(
    name: str, count: object, rule: str, least: int = 1, most: int | None = None
) -> None:
    """Check that a setting is an integer within its range, which ``rule`` describes.

    Raises:
        ValueError: it is none.
    """
    is_integer = isinstance(count, int | np.integer) and not isinstance(count, bool)
    if not is_integer or not least <= count <= (count if most is None else most):  # type: ignore[operator]
        raise ValueError(f"{name}: got {count!r}, must be {rule}")


def as_tensor(name: str, values: Numbers) -> Shaped[Tensor, "*shape"]:
    """Return real numbers of any type as they are, without gradients.

    Raises:
        ValueError: they are none.
    """
    if not isinstance(values, Tensor):
        try:
            given = np.asarray(values)
        except (ValueError, TypeError, RuntimeError):
            kind = type(values).__name__
            raise ValueError(f"{name}: got a {kind} that is no array, must be numbers") from None
        # A copy, since torch takes neither a foreign byte order nor negative strides.
        array: NDArray[Any] = np.array(given, dtype=given.dtype.newbyteorder("="), order="C")
        if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
            raise ValueError(f"{name}: got {array.dtype} of shape {array.shape}, must be numbers")
        values = torch.from_numpy(array)
    if values.is_complex() or values.is_quantized or values.layout != torch.strided:
        raise ValueError(f"{name}: got {_described(values)}, must be real numbers, one each")
    return values.detach()


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"
