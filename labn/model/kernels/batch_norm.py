"""Batch norm and what follows it in a residual network, by torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import relu as cut_off


def normalise(
    norm: nn.Module, x: Tensor, *, relu: bool, shortcut: Tensor | None, dtype: torch.dtype | None
) -> Tensor:
    """Apply a batch norm, or what stands in its place; then add the shortcut, and take the ReLU."""
    y: Tensor = norm(x if dtype is None else x.to(dtype))
    if shortcut is not None:
        y += shortcut
    return cut_off(y, inplace=True) if relu else _with_fitting_gradient(y)


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
