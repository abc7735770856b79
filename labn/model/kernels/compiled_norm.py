"""Batch norm in training, with shortcut and ReLU, by a compiled kernel, ``batch_norm.cpp``.

Axes: b images, c channels, h rows, w columns.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from labn.model.kernels.compiled import addresses, library

SOURCE = Path(__file__).with_name("batch_norm.cpp")
_SUFFIXES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_MIN_CHANNELS = 16  # with fewer a vector is not filled
_MIN_VALUES = 1 << 16
"""A smaller map takes less time than the call itself, and little memory."""


def is_available(norm: nn.Module, x: Tensor) -> bool:
    """Return whether ``normalise`` can replace the module on this input; compile it if need be.

    It can for an ordinary batch norm in training on the CPU, and a large map with channels last.
    """
    if type(norm) is not nn.BatchNorm2d or not norm.training or x.device.type != "cpu":
        return False
    if norm.momentum is None or norm.running_mean is None or norm.weight.dtype != torch.float32:
        return False
    if x.dtype not in _SUFFIXES or x.shape[1] < _MIN_CHANNELS or x.numel() < _MIN_VALUES:
        return False
    if torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return False
    return _row_stride(x) is not None and library(SOURCE) is not None


def normalise(
    norm: nn.BatchNorm2d,
    x: Float[Tensor, "b c h w"],
    *,
    relu: bool,
    shortcut: Float[Tensor, "b c h w"] | None,
    dtype: torch.dtype,
) -> Float[Tensor, "b c h w"]:
    """Normalise by the batch's statistics, add the shortcut, and apply the ReLU.

    Computes in float32, for all types of input and result. Updates the module's running
    statistics. Results do not depend on the number of threads. Check ``is_available`` first.
    """
    y, mean, variance = _Normalise.apply(
        x, None if shortcut is None else shortcut.to(dtype), norm.weight, norm.bias, norm.eps, relu,
        dtype,
    )  # fmt: skip
    assert norm.momentum is not None and norm.num_batches_tracked is not None
    assert norm.running_mean is not None and norm.running_var is not None
    with torch.no_grad():
        num_values = x.numel() // x.shape[1]
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (num_values / (num_values - 1)), norm.momentum)
    result: Tensor = y
    return result


def recomputation(y: Tensor) -> Any:
    """Return a function that recomputes a result of ``normalise`` from its saved tensors.

    None if y is no such result, or was computed with a shortcut.
    """
    node: Any = y.grad_fn
    if getattr(node, "_forward_cls", None) is not _Normalise or node.has_shortcut:
        return None
    return lambda: _apply(node)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        shortcut: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        relu: bool,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:
        y = torch.empty(x.shape, dtype=dtype, memory_format=torch.channels_last)
        mean, rstd, variance = (torch.empty_like(weight) for _ in range(3))
        if shortcut is not None:
            shortcut = _channels_last(shortcut)
        ctx.relu, ctx.dtype, ctx.has_shortcut = relu, dtype, shortcut is not None
        tensors = [x, shortcut, weight, bias, y, mean, rstd, variance]
        _call("forward", ctx, x, tensors, eps)
        kept = y if relu and shortcut is not None else None
        ctx.save_for_backward(x, kept, mean, rstd, weight, bias)
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, y, mean, rstd, weight, bias = ctx.saved_tensors
        gradient = _channels_last(grads[0])
        dx = torch.empty(x.shape, dtype=x.dtype, memory_format=torch.channels_last)
        dshortcut = torch.empty_like(gradient) if ctx.has_shortcut else None
        dweight, dbias = torch.empty_like(weight), torch.empty_like(bias)
        tensors = [x, y, gradient, mean, rstd, weight, bias, dx, dshortcut, dweight, dbias]
        _call("backward", ctx, x, tensors)
        return dx, dshortcut, dweight, dbias, None, None, None


def _apply(ctx: Any) -> Tensor:
    x, _, mean, rstd, weight, bias = ctx.saved_tensors
    y = torch.empty(x.shape, dtype=ctx.dtype, memory_format=torch.channels_last)
    _call("apply", ctx, x, [x, None, mean, rstd, weight, bias, y])
    return y


def _call(name: str, ctx: Any, x: Tensor, tensors: list[Tensor | None], eps: float = 0.0) -> None:
    kernel = library(SOURCE)
    assert kernel is not None, "check is_available first"
    stride = _row_stride(x)
    assert stride is not None, "check is_available first"
    sizes = (ctypes.c_int64 * 4)(x.numel() // x.shape[1], x.shape[1], stride, ctx.relu)
    function = getattr(kernel, f"labn_norm_{name}_{_SUFFIXES[x.dtype]}_{_SUFFIXES[ctx.dtype]}")
    function(sizes, torch.get_num_threads(), ctypes.c_double(eps), *addresses(tensors))


def _row_stride(x: Tensor) -> int | None:
    """Return the stride between positions, if channels are last and positions evenly spaced."""
    _, c, h, w = x.shape
    strides = dict(zip("bchw", x.stride(), strict=True))
    sizes = dict(zip("bchw", x.shape, strict=True))
    row = next((strides[axis] // n for axis, n in (("w", 1), ("h", w), ("b", h * w))
                if sizes[axis] > 1), c)  # fmt: skip
    expected = {"c": 1, "w": row, "h": w * row, "b": h * w * row}
    is_even = all(sizes[axis] == 1 or strides[axis] == expected[axis] for axis in "bchw")
    return row if is_even and row >= c else None


def _channels_last(x: Tensor) -> Tensor:
    """Return x with the channels last, and with the strides of a new tensor."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
