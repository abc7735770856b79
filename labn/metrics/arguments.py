"""Arguments of any type of number: converted exactly, or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from numpy.typing import NDArray
from torch import Tensor

Numbers = Shaped[Tensor, "..."] | Shaped[np.ndarray, "..."]
"""A tensor, or an array of NumPy, of any real type."""

_EXACT = {torch.float32: 2**24, torch.float64: 2**53}
"""Below these, a type of float holds every integer."""


def as_numbers(name: str, values: Numbers) -> Float[Tensor, "*shape"]:
    """Return numbers in float32, or in float64 where float32 cannot hold them exactly.

    Raises:
        ValueError: they are not real numbers, or float64 cannot hold them.
    """
    tensor = _as_tensor(name, values)
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
    tensor = _as_tensor(name, values)
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
    tensor = _as_tensor("labels", labels)
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
    images = _as_tensor("images", given)
    if images.ndim != 4 or not images.is_floating_point() or 0 in images.shape[1:]:
        raise ValueError(
            f"images: got {_described(images)}, must be floats of shape (images, channels, height,"
            " width), standardised as for the network"
        )
    return images


def _as_tensor(name: str, values: Numbers) -> Tensor:
    if not isinstance(values, Tensor):
        # A copy, since torch takes neither a foreign byte order nor negative strides.
        native = values.dtype.newbyteorder("=")
        array: NDArray[Any] = np.array(values, dtype=native, order="C")
        if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
            raise ValueError(f"{name}: got {array.dtype} of shape {array.shape}, must be numbers")
        values = torch.from_numpy(array)
    if values.is_complex() or values.is_quantized or values.layout != torch.strided:
        raise ValueError(f"{name}: got {_described(values)}, must be real numbers, one each")
    return values.detach()


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"
