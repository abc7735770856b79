"""Lambdas applied to their queries by a compiled kernel, ``position_lambda.cpp``.

Axes: b images, m positions, h heads, k key depth, v values, r the kernel's rows and columns.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from labn.model.kernels.compiled import addresses, library

SOURCE = Path(__file__).with_name("position_lambda.cpp")
_SUFFIXES = {torch.float32: "float32", torch.float64: "float64"}


def is_available(like: Tensor) -> bool:
    """Return whether ``apply_lambdas`` supports such tensors here; compile it if need be."""
    if like.device.type != "cpu" or like.dtype not in _SUFFIXES or torch.compiler.is_compiling():
        return False
    return library(SOURCE) is not None


def vector_bytes() -> int:
    """Return the size of the kernel's vectors, which follows the CPU; 0 without the kernel."""
    kernel = library(SOURCE)
    return 0 if kernel is None else int(kernel.labn_vector_bytes())


def vectors() -> str:
    """Return how wide the kernel's vectors are, which decides where it is used; for people."""
    return f"{8 * vector_bytes()} bits" if vector_bytes() else "none"


def apply_lambdas(
    queries: Float[Tensor, "b m h k"],
    values: Float[Tensor, "b m v"],
    content: Float[Tensor, "b k v"],
    kernel: Float[Tensor, "k r r"],
    map_size: tuple[int, int],
) -> Float[Tensor, "b m h v"]:
    """Apply content and position lambdas to the queries (Iida 2022, eq. 6 and 7).

    ``content`` is the sum of what is the same at every position: lambda_c and the kernel's bias.
    Results do not depend on the number of threads. Check ``is_available`` first.
    """
    result: Tensor = _ApplyLambdas.apply(queries, values, content, kernel, map_size)
    return result


class _ApplyLambdas(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_bmhk: Tensor, v_bmv: Tensor, c_bkv: Tensor, w_krr: Tensor, size: tuple[int, int]
    ) -> Tensor:
        inputs = [tensor.contiguous() for tensor in (q_bmhk, v_bmv, c_bkv, w_krr)]
        ctx.save_for_backward(*inputs)
        ctx.size = size
        y_bmhv = v_bmv.new_empty(*q_bmhk.shape[:3], v_bmv.shape[2])
        _call("forward", size, inputs, [y_bmhv])
        return y_bmhv

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs = list(ctx.saved_tensors)
        results = [torch.empty_like(tensor) for tensor in inputs]
        _call("backward", ctx.size, [*inputs, grads[0].contiguous()], results)
        return (*results, None)


def _call(name: str, size: tuple[int, int], inputs: list[Tensor], results: list[Tensor]) -> None:
    kernel = library(SOURCE)
    assert kernel is not None, "check is_available first"
    b, _, h, k = inputs[0].shape
    sizes = (ctypes.c_int64 * 7)(b, *size, h, k, inputs[1].shape[2], inputs[3].shape[1])
    function = getattr(kernel, f"labn_{name}_{_SUFFIXES[inputs[0].dtype]}")
    function(sizes, torch.get_num_threads(), *addresses([*inputs, *results]))
