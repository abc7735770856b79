"""Normalised maps made anew for the backward pass, where holding them would cost more."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from labn.model.kernels import compiled_norm


def apply(layer: nn.Module, y: Tensor) -> Tensor:
    """Apply a layer to a normalised map, which is not kept for the backward pass."""
    with recomputed(y):
        result: Tensor = layer(y)
    return result


def recomputed(*maps: Tensor) -> AbstractContextManager[object]:
    """Keep no normalised map, or view of all of it, for the backward pass of what follows.

    They are one pass over what batch norm keeps anyway: to make them anew costs less than to hold
    them. Changes nothing where they were not made by the kernel.
    """
    sources = [y if y._base is None else y._base for y in maps]
    again = {_name(y): make for y in sources if (make := compiled_norm.again(y)) is not None}
    if not again:
        return nullcontext()

    def pack(tensor: Tensor) -> Tensor | Callable[[], Tensor]:
        make = again.get(_name(tensor))
        if make is None:
            return tensor
        size, stride = tensor.size(), tensor.stride()
        return lambda: make().as_strided(size, stride)  # what is kept may be a view

    def unpack(kept: Tensor | Callable[[], Tensor]) -> Tensor:
        return kept if isinstance(kept, Tensor) else kept()

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _name(x: Tensor) -> tuple[int, int, torch.dtype]:
    """Return what identifies a tensor, or a view of all of it, without holding it."""
    return x.data_ptr(), x.numel(), x.dtype
