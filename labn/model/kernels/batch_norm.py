"""Batch norm, shortcut and ReLU of a residual network, in torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def normalise(
    norm: nn.Module, x: Tensor, *, relu: bool, shortcut: Tensor | None, dtype: torch.dtype | None
) -> Tensor:
    """Apply a batch norm or its replacement, then add the shortcut and apply the ReLU."""
    y: Tensor = norm(x if dtype is None else x.to(dtype))
    if shortcut is not None:
        y += shortcut
    return F.relu(y, inplace=True) if relu else _with_matching_gradient(y)


def _with_matching_gradient(x: Tensor) -> Tensor:
    """Convert the gradient of x to the layout of x, with the strides of a new tensor.

    Torch's batch norm on the CPU (seen in 2.14 and 2.15) silently computes wrong gradients for a
    batch of one whose gradient has channels_last strides and a batch stride that fits no such
    tensor.
    """
    if x.device.type == "cpu" and x.requires_grad and not torch.compiler.is_compiling():
        # The second is a no-op for a batch of one, whatever its strides.
        last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        copy = Tensor.clone if len(x) == 1 else Tensor.contiguous
        x.register_hook(lambda gradient: copy(gradient, memory_format=layout))  # type: ignore[no-untyped-call]
    return x


@contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """Leave the running statistics of batch norm as they are; normalise as always."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
