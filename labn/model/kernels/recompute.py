"""Normalised maps recomputed in the backward pass, where keeping them would cost more."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from labn.model.kernels import compiled_norm


def apply(layer: nn.Module, y: Tensor) -> Tensor:
    """Apply a layer to a normalised map without saving the map for the backward pass."""
    with recomputed(y):
        result: Tensor = layer(y)
    return result


def recomputed(*maps: Tensor) -> AbstractContextManager[object]:
    """Recompute normalised maps, or views of all of them, in the backward pass of what follows.

    Recomputing them is one pass over what batch norm saves anyway, and costs less than keeping
    them. Changes nothing for maps that the compiled kernel did not compute.
    """
    if torch.compiler.is_compiling():
        return nullcontext()
    sources = [y if y._base is None else y._base for y in maps]
    functions = {_key(y): f for y in sources if (f := compiled_norm.recomputation(y)) is not None}
    if not functions:
        return nullcontext()

    def pack(tensor: Tensor) -> Tensor | Callable[[], Tensor]:
        recompute = functions.get(_key(tensor))
        if recompute is None:
            return tensor
        size, stride = tensor.size(), tensor.stride()
        return lambda: recompute().as_strided(size, stride)  # the tensor may be a view

    def unpack(saved: Tensor | Callable[[], Tensor]) -> Tensor:
        return saved if isinstance(saved, Tensor) else saved()

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _key(x: Tensor) -> tuple[int, int, torch.dtype]:
    """Return what identifies a tensor, or a view of all of it, without keeping it alive."""
    return x.data_ptr(), x.numel(), x.dtype
