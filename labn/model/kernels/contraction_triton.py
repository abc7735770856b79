"""The operators of ``contraction`` in Triton, one kernel each; they accumulate in float32.

Each is bound by memory: it reads the position lambdas, or the windows, once. Programs of the first
two share a tile's positions among them; those of the last one take positions of the map.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from labn.model.kernels.contraction import Tiling

_BLOCK_NUMBERS = 8192
"""Of the lambdas that one program holds."""


@triton.jit
def _load_lambdas(lambdas, content, tile, image, m, k, v, M, K, V):
    """Return the lambdas of positions m (m, v, k), with their offsets and mask."""
    offsets = tile.to(tl.int64) * V * M * K + (
        v[None, :, None] * M * K + m[:, None, None] * K + k[None, None, :]
    )
    mask = (m < M)[:, None, None] & (v < V)[None, :, None] & (k < K)[None, None, :]
    position = tl.load(lambdas + offsets, mask=mask, other=0.0).to(tl.float32)
    shared = tl.load(
        content + image * K * V + k[None, :] * V + v[:, None],
        mask=(v < V)[:, None] & (k < K)[None, :],
        other=0.0,
    ).to(tl.float32)
    return position + shared[None, :, :], offsets, mask


@triton.jit
def _positions(tile, m, height, width, tile_height, tile_width, rows, columns):
    """Return a tile's image, where its positions m lie in the batch's maps, and which do."""
    image = tile // (rows * columns)
    rest = tile % (rows * columns)
    y = (rest // columns) * tile_height + m // tile_width
    x = (rest % columns) * tile_width + m % tile_width
    inside = (m < tile_height * tile_width) & (y < height) & (x < width)
    return image, image.to(tl.int64) * height * width + y * width + x, inside


@triton.jit
def _contract(
    q, lambdas, content, result,
    height, width, tile_height, tile_width, rows, columns, K, V,
    HEADS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    k, v = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    image, at, inside = _positions(tile, m, height, width, tile_height, tile_width, rows, columns)
    both, _, _ = _load_lambdas(
        lambdas, content, tile, image, m, k, v, tile_height * tile_width, K, V
    )
    for head in tl.static_range(HEADS):
        query = tl.load(
            q + (at[:, None] * HEADS + head) * K + k[None, :],
            mask=inside[:, None] & (k < K)[None, :],
            other=0.0,
        ).to(tl.float32)
        y = tl.sum(both * query[:, None, :], axis=2)
        tl.store(
            result + (at[:, None] * HEADS + head) * V + v[None, :],
            y.to(result.dtype.element_ty),
            mask=inside[:, None] & (v < V)[None, :],
        )


@triton.jit
def _contract_backward(
    q, lambdas, content, gradient, dq, dlambdas,
    height, width, tile_height, tile_width, rows, columns, K, V,
    HEADS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    k, v = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    image, at, inside = _positions(tile, m, height, width, tile_height, tile_width, rows, columns)
    both, offsets, mask = _load_lambdas(
        lambdas, content, tile, image, m, k, v, tile_height * tile_width, K, V
    )
    total = tl.zeros([BLOCK_M, BLOCK_V, BLOCK_K], tl.float32)
    for head in tl.static_range(HEADS):
        q_at = (at[:, None] * HEADS + head) * K + k[None, :]
        q_mask = inside[:, None] & (k < K)[None, :]
        query = tl.load(q + q_at, mask=q_mask, other=0.0).to(tl.float32)
        g = tl.load(
            gradient + (at[:, None] * HEADS + head) * V + v[None, :],
            mask=inside[:, None] & (v < V)[None, :],
            other=0.0,
        ).to(tl.float32)
        total += g[:, :, None] * query[:, None, :]
        dquery = tl.sum(both * g[:, :, None], axis=1)
        tl.store(dq + q_at, dquery.to(dq.dtype.element_ty), mask=q_mask)
    tl.store(dlambdas + offsets, total.to(dlambdas.dtype.element_ty), mask=mask)


@triton.jit
def _sum_windows(
    windows, result,
    num_positions, height, width, tile_height, tile_width, rows, columns,
    seen_height, seen_width, margin, V,
    OVERLAP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    v = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    image, rest = m // (height * width), m % (height * width)
    y, x = rest // width + margin, rest % width + margin
    inside = (m < num_positions)[:, None] & (v < V)[None, :]
    total = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    for above in tl.static_range(OVERLAP):
        row = y // tile_height - above
        seen_y = y - row * tile_height
        for left in tl.static_range(OVERLAP):
            column = x // tile_width - left
            seen_x = x - column * tile_width
            sees = (row >= 0) & (row < rows) & (seen_y < seen_height)
            sees &= (column >= 0) & (column < columns) & (seen_x < seen_width)
            tile = (image * rows + row) * columns + column
            at = (tile[:, None] * V + v[None, :]) * (seen_height * seen_width)
            at += (seen_y * seen_width + seen_x)[:, None]
            mask = inside & sees[:, None]
            total += tl.load(windows + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(result + m[:, None] * V + v[None, :], total.to(result.dtype.element_ty), mask=inside)


def contract(q_bmhk: Tensor, lambdas_tvmk: Tensor, c_bkv: Tensor, tiling: list[int]) -> Tensor:
    """Apply the lambdas to the queries; see ``contraction.contract``."""
    y_bmhv = q_bmhk.new_empty(*q_bmhk.shape[:3], lambdas_tvmk.shape[1])
    tensors = [q_bmhk, lambdas_tvmk, c_bkv, y_bmhv]
    _launch(_contract, tensors, q_bmhk, lambdas_tvmk, tiling)
    return y_bmhv


def contract_backward(
    q_bmhk: Tensor, lambdas_tvmk: Tensor, c_bkv: Tensor, gradient_bmhv: Tensor, tiling: list[int]
) -> tuple[Tensor, Tensor]:
    """Return the gradients of queries and lambdas; see ``contraction.contract_backward``."""
    dq, dlambdas = torch.empty_like(q_bmhk), torch.empty_like(lambdas_tvmk)
    tensors = [q_bmhk, lambdas_tvmk, c_bkv, gradient_bmhv, dq, dlambdas]
    _launch(_contract_backward, tensors, q_bmhk, lambdas_tvmk, tiling)
    return dq, dlambdas


def sum_windows(dx_tvn: Tensor, tiling: list[int], seen: list[int], margin: int) -> Tensor:
    """Sum the windows over the tiles; see ``contraction.sum_windows``."""
    cut, v = Tiling(*tiling), dx_tvn.shape[1]
    num_images = len(dx_tvn) // (cut.rows * cut.columns)
    result = dx_tvn.new_empty(num_images, cut.height * cut.width, v)
    num_positions = num_images * cut.height * cut.width
    block_v = min(16, triton.next_power_of_2(v))
    overlap = max(-(-seen[0] // cut.tile_height), -(-seen[1] // cut.tile_width))
    _sum_windows[(triton.cdiv(num_positions, 64), triton.cdiv(v, block_v))](
        dx_tvn, result, num_positions, *cut, cut.rows, cut.columns, *seen, margin, v,
        OVERLAP=overlap, BLOCK_M=64, BLOCK_V=block_v,
    )  # fmt: skip
    return result


def _launch(kernel, tensors, q_bmhk: Tensor, lambdas_tvmk: Tensor, tiling: list[int]) -> None:
    (num_tiles, v, num_positions, k), cut = lambdas_tvmk.shape, Tiling(*tiling)
    block_k, block_v = triton.next_power_of_2(k), triton.next_power_of_2(v)
    block_m = max(
        1, min(_BLOCK_NUMBERS // (block_k * block_v), triton.next_power_of_2(num_positions))
    )
    kernel[(num_tiles, triton.cdiv(num_positions, block_m))](
        *tensors, *cut, cut.rows, cut.columns, k, v,
        HEADS=q_bmhk.shape[2], BLOCK_M=block_m, BLOCK_K=block_k, BLOCK_V=block_v,
    )  # fmt: skip
