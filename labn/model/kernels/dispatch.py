"""The choice of a layer's implementation, by device, width of vectors, shape and batch size.

The implementations of one function agree up to rounding. On one machine the choice depends on
nothing else, so that a resumed run reproduces the uninterrupted one bit by bit. It follows from
`python -m tests.bench shapes`, which compares all forms at every shape of the networks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from labn.model.kernels import (
    batch_norm,
    compiled_lambda,
    compiled_norm,
    position_lambda,
    product_lambda,
)
from labn.model.kernels.half import at_least_float32

PositionLambda = Callable[[Tensor, Tensor, Tensor, tuple[int, int]], Tensor]
"""Queries, values, kernel and the map's size to y: a function in ``position_lambda``."""
_MAX_DENSE_POSITIONS = 256
_MIN_VALUES_FOR_TILES = 16


class DenseRange(NamedTuple):
    """Where ``position_lambda.dense`` is faster than the compiled form.

    On small maps, once their batch has so many values that its products fill the machine.
    """

    max_positions: int
    min_values: int
    min_values_per_position: float

    def holds(self, num_images: int, num_positions: int, value_depth: int) -> bool:
        """Return whether it is for a batch, by the values of all its images at one position."""
        least = max(self.min_values, self.min_values_per_position * num_positions)
        return num_positions <= self.max_positions and num_images * value_depth >= least


_DENSE_RANGES = {64: DenseRange(64, 768, 0), 32: DenseRange(256, 128, 2.5)}
"""By the bytes of the compiled form's vectors; wide ones help it more than they help products.

AVX512 has 64, AVX2 32. Those of ARM (16) have not been measured, and are treated as AVX2's.
"""


def is_accelerator(x: Tensor) -> bool:
    """Return whether a tensor's device is best served by few, large products."""
    return x.device.type != "cpu"


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the type of the operands of sums over positions.

    It is the tensor's own on an accelerator, whose matrix units add the products of bfloat16 up in
    float32, and at least float32 on a CPU, whose kernels compute in float32.
    """
    return x.dtype if is_accelerator(x) else at_least_float32(x).dtype


def lambdas(
    queries: Float[Tensor, "b h k m"],
    values: Float[Tensor, "b v m"],
    content: Float[Tensor, "b k v"],
    kernel: Float[Tensor, "k r r"],
    bias: Float[Tensor, " k"],
    map_size: tuple[int, int],
) -> Float[Tensor, "b hv height width"]:
    """Apply content and position lambdas to the queries (Iida 2022, eq. 6 and 7).

    Positions m run row by row over a map of ``map_size`` (height, width); the result is that map,
    with the values of one head after another.
    """
    with torch.autocast(queries.device.type, enabled=False):
        # The bias is the same for every position's lambda, as the content lambda is.
        content = content + bias[:, None]
        if (apply_all := _choose_whole_layer(queries, values, map_size)) is not None:
            # Channels last in and out, as the surrounding convolutions prefer.
            y_bmhv = apply_all(
                queries.permute(0, 3, 1, 2),
                values.mT,
                content.to(queries.dtype),
                kernel.to(queries.dtype),
                map_size,
            )
            return y_bmhv.reshape(y_bmhv.shape[0], *map_size, -1).permute(0, 3, 1, 2)
        y_bhvm = torch.einsum("bhkm,bkv->bhvm", queries, content)
        apply = _choose_position_lambda(map_size, value_depth=values.shape[1])
        y_bhvm = y_bhvm + apply(queries, values, kernel, map_size)
        # Not len(), which would fix the batch size of an exported network.
        return y_bhvm.reshape(y_bhvm.shape[0], -1, *map_size)


def _choose_whole_layer(
    queries: Tensor, values: Tensor, map_size: tuple[int, int]
) -> Callable[..., Tensor] | None:
    """Choose what applies content and position lambdas together, if anything does."""
    if compiled_lambda.is_available(queries):
        dense = _DENSE_RANGES.get(compiled_lambda.vector_bytes(), _DENSE_RANGES[32])
        if dense.holds(len(values), map_size[0] * map_size[1], values.shape[1]):
            return position_lambda.dense_with_content
        return compiled_lambda.apply_lambdas
    if is_accelerator(queries) and not _is_exporting():
        return product_lambda.apply_lambdas
    return None


def _is_exporting() -> bool:
    """Return whether this is an export; the compiler, whose versions differ, may say so, too."""
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()


def _choose_position_lambda(map_size: tuple[int, int], value_depth: int) -> PositionLambda:
    """Choose among the implementations in torch."""
    if _is_exporting():
        # Without a loop over images, which would fix the exported batch size, and of operations
        # that ONNX has.
        return position_lambda.by_convolution
    if map_size[0] * map_size[1] <= _MAX_DENSE_POSITIONS:
        return position_lambda.dense
    if value_depth >= _MIN_VALUES_FOR_TILES:
        return position_lambda.tiled
    return position_lambda.by_fft


def norm(
    module: nn.Module,
    x: Float[Tensor, "b c h w"],
    *,
    relu: bool = False,
    shortcut: Float[Tensor, "b c h w"] | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "b c h w"]:
    """Apply a batch norm or its replacement, then add the shortcut and apply the ReLU.

    ``dtype`` is that of the result; None chooses the fastest. ``x`` may be overwritten if there is
    a shortcut or a ReLU.
    """
    if not compiled_norm.is_available(module, x):
        if is_accelerator(x) and not x.is_contiguous():
            # Channels cut out of a map would take kernels of CUDA's that are several times slower.
            x = x.contiguous(memory_format=torch.channels_last)
        return batch_norm.normalise(module, x, relu=relu, shortcut=shortcut, dtype=dtype)
    assert isinstance(module, nn.BatchNorm2d)
    dtype = dtype or _half_of_autocast(x) or x.dtype
    return compiled_norm.normalise(module, x, relu=relu, shortcut=shortcut, dtype=dtype)


def _half_of_autocast(x: Tensor) -> torch.dtype | None:
    """Return the type to which autocast would convert this map for the next convolution."""
    is_on = torch.is_autocast_enabled(x.device.type)
    dtype = torch.get_autocast_dtype(x.device.type)
    return dtype if is_on and dtype == torch.bfloat16 else None
