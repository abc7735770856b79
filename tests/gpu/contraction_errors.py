"""Errors of Triton's kernels against torch in float64, printed as JSON.

Run with TRITON_INTERPRET=1 for the CPU; without it, on the GPU.
"""

from __future__ import annotations

import json
import os

import torch
from torch import Tensor

from labn.model.kernels import contraction, contraction_triton
from labn.model.kernels.contraction import Tiling

CASES = {
    "whole": (Tiling(5, 6, 5, 6), 2, 1, 8, 24),
    "cut": (Tiling(7, 10, 4, 4), 2, 4, 16, 3),
    "beyond the map": (Tiling(9, 9, 4, 4), 1, 2, 4, 16),
}
"""A tiling, images, heads, key depth and values."""
SEEN, MARGIN = (8, 8), 2


def operands(cut: Tiling, images: int, heads: int, depth: int, values: int) -> list[Tensor]:
    """Return queries, position lambdas, content lambdas, a gradient, and windows."""
    num_positions, num_tiles = cut.height * cut.width, images * cut.rows * cut.columns
    shapes = (
        (images, num_positions, heads, depth),
        (num_tiles, values, cut.tile_height * cut.tile_width, depth),
        (images, depth, values),
        (images, num_positions, heads, values),
        (num_tiles, values, SEEN[0] * SEEN[1]),
    )
    generator = torch.Generator().manual_seed(values)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def largest_errors(device: str) -> dict[str, float]:
    """Return, by case and type, the largest of the results' relative errors."""
    return {
        f"{name}, {str(dtype).removeprefix('torch.')}": _largest_error(case, dtype, device)
        for name, case in CASES.items()
        for dtype in (torch.float32, torch.bfloat16)
    }


def _largest_error(
    case: tuple[Tiling, int, int, int, int], dtype: torch.dtype, device: str
) -> float:
    cut, *sizes = case
    *given, windows = (tensor.to(device, dtype) for tensor in operands(cut, *sizes))
    q, lambdas, content, gradient = given
    exact = [tensor.cpu().double() for tensor in given]
    pairs = [
        (
            contraction_triton.contract(q, lambdas, content, list(cut)),
            contraction.contract(exact[0], exact[1], exact[2], cut),
        ),
        *zip(
            contraction_triton.contract_backward(q, lambdas, content, gradient, list(cut)),
            contraction.contract_backward(exact[0], exact[1], exact[2], exact[3], cut),
            strict=True,
        ),
    ]
    if cut.tile_height + 2 * MARGIN == SEEN[0]:
        summed = contraction_triton.sum_windows(windows, list(cut), list(SEEN), MARGIN)
        pairs.append((summed, contraction.sum_windows(windows.cpu().double(), cut, SEEN, MARGIN)))
    assert {found.dtype for found, _ in pairs} == {dtype}
    return max(
        float((found.cpu().double() - expected).norm() / expected.norm())
        for found, expected in pairs
    )


if __name__ == "__main__":
    on_cpu = os.environ.get("TRITON_INTERPRET") == "1"
    print(json.dumps(largest_errors("cpu" if on_cpu else "cuda")))
