"""Batch norm and what follows it in a residual network, as one step where a kernel can do that."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import relu as cut_off

from labn.model.kernels import compiled_norm


def normalise(
    norm: nn.Module,
    x: Float[Tensor, "b c h w"],
    *,
    relu: bool = False,
    shortcut: Float[Tensor, "b c h w"] | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "b c h w"]:
    """Apply a batch norm, or what stands in its place; then add the shortcut, and take the ReLU.

    ``dtype`` is that of the result where it matters; None: whatever is fastest here. ``x`` may be
    overwritten where a shortcut or a ReLU is asked for.
    """
    if compiled_norm.is_available(norm, x):
        assert isinstance(norm, nn.BatchNorm2d)
        dtype = dtype or _half_of_autocast(x) or x.dtype
        return compiled_norm.normalise(norm, x, relu=relu, shortcut=shortcut, dtype=dtype)
    y: Tensor = norm(x if dtype is None else x.to(dtype))
    if shortcut is not None:
        y += shortcut
    return cut_off(y, inplace=True) if relu else _with_fitting_gradient(y)


def recomputed(*maps: Tensor) -> AbstractContextManager[object]:
    """Have what is computed of normalised maps keep none of them for the backward pass.

    They are one pass over what batch norm keeps anyway: to make them anew costs less than to hold
    them. Changes nothing where they were not made by the kernel.
    """
    again = {_name(y): make for y in maps if (make := compiled_norm.again(y)) is not None}
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
    """Know a tensor again, or a view of all of it, without holding it."""
    return x.data_ptr(), x.numel(), x.dtype


def _half_of_autocast(x: Tensor) -> torch.dtype | None:
    """Give the type to which autocast would convert this map for the convolution behind it."""
    is_on = torch.is_autocast_enabled(x.device.type)
    dtype = torch.get_autocast_dtype(x.device.type)
    return dtype if is_on and dtype == torch.bfloat16 else None


def _with_fitting_gradient(x: Tensor) -> Tensor:
    """Have the gradient of x arrive in the layout of x, with the strides of a new tensor.

    Torch's batch norm on the CPU (seen in 2.14 and 2.15) makes wrong gradients, without a word, of
    a batch of one whose gradient has channels_last strides and a batch stride that fits no such
    tensor.
    """
    if x.requires_grad and not torch.compiler.is_exporting():
        # The second is a no-op for a batch of one, whatever its strides.
        last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        copy = Tensor.clone if len(x) == 1 else Tensor.contiguous
        x.register_hook(lambda gradient: copy(gradient, memory_format=layout))  # type: ignore[no-untyped-call]
    return x
