"""Position lambdas, computed tile by tile, applied to the queries of the whole map.

Operators of torch, ``torch.ops.labn``, with one kernel each on CUDA (``contraction_triton``) and
plain torch elsewhere, so that the compiler and fake tensors know them.

Axes: b images, t tiles of all images, h heads, m positions of a map or of a tile, n positions that
a tile sees, k key depth, v values.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Tiling(NamedTuple):
    """A map's size and that of its tiles; the last ones may reach beyond the map."""

    height: int
    width: int
    tile_height: int
    tile_width: int

    @property
    def rows(self) -> int:
        """Tiles from top to bottom."""
        return -(-self.height // self.tile_height)

    @property
    def columns(self) -> int:
        """Tiles from left to right."""
        return -(-self.width // self.tile_width)


def contract(q_bmhk: Tensor, lambdas_tvmk: Tensor, c_bkv: Tensor, tiling: Tiling) -> Tensor:
    """Return y[b, m, h, v] = sum_k q[b, m, h, k] (lambda_p[k, v] + c[b, k, v]) of each position."""
    result: Tensor = torch.ops.labn.contract(q_bmhk, lambdas_tvmk, c_bkv, list(tiling))
    return result


def contract_backward(
    q_bmhk: Tensor, lambdas_tvmk: Tensor, c_bkv: Tensor, gradient_bmhv: Tensor, tiling: Tiling
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the queries and of the position lambdas (zero beyond the map)."""
    dq, dlambdas = torch.ops.labn.contract_backward(
        q_bmhk, lambdas_tvmk, c_bkv, gradient_bmhv, list(tiling)
    )
    return dq, dlambdas


def sum_windows(dx_tvn: Tensor, tiling: Tiling, seen: tuple[int, int], margin: int) -> Tensor:
    """Return (b, m, v), the sum of what all tiles that see a position have there."""
    result: Tensor = torch.ops.labn.sum_windows(dx_tvn, list(tiling), list(seen), margin)
    return result


def _contract(q_bmhk: Tensor, lambdas_tvmk: Tensor, c_bkv: Tensor, tiling: list[int]) -> Tensor:
    cut = Tiling(*tiling)
    return _join(_cut(q_bmhk, cut) @ _all_lambdas(lambdas_tvmk, c_bkv), cut)


def _contract_backward(
    q_bmhk: Tensor, lambdas_tvmk: Tensor, c_bkv: Tensor, gradient_bmhv: Tensor, tiling: list[int]
) -> tuple[Tensor, Tensor]:
    cut = Tiling(*tiling)
    q_tmhk, gradient_tmhv = _cut(q_bmhk, cut), _cut(gradient_bmhv, cut)
    dq_tmhk = gradient_tmhv @ _all_lambdas(lambdas_tvmk, c_bkv).mT
    dlambdas_tmvk = gradient_tmhv.mT @ q_tmhk
    return _join(dq_tmhk, cut), dlambdas_tmvk.transpose(1, 2).contiguous()


def _sum_windows(dx_tvn: Tensor, tiling: list[int], seen: list[int], margin: int) -> Tensor:
    cut = Tiling(*tiling)
    v, num_tiles = dx_tvn.shape[1], cut.rows * cut.columns
    padded = (
        cut.rows * cut.tile_height + 2 * margin,
        cut.columns * cut.tile_width + 2 * margin,
    )
    columns = dx_tvn.view(-1, num_tiles, v * dx_tvn.shape[2]).mT
    dx_bvyx = F.fold(columns, padded, (seen[0], seen[1]), stride=(cut.tile_height, cut.tile_width))
    inner = dx_bvyx[:, :, margin : margin + cut.height, margin : margin + cut.width]
    return inner.flatten(2).mT.contiguous()


def _all_lambdas(lambdas_tvmk: Tensor, c_bkv: Tensor) -> Tensor:
    """Return the sum of position and content lambdas, (t, m, k, v)."""
    num_tiles = len(lambdas_tvmk) // len(c_bkv)
    return lambdas_tvmk.permute(0, 2, 3, 1) + c_bkv.repeat_interleave(num_tiles, 0).unsqueeze(1)


def _cut(x_bmhc: Tensor, cut: Tiling) -> Tensor:
    """Cut a map (b, m, h, c) into tiles (t, m, h, c), zero beyond the map."""
    (b, _, h, c), (height, width, tile_height, tile_width) = x_bmhc.shape, cut
    below, right = cut.rows * tile_height - height, cut.columns * tile_width - width
    x = F.pad(x_bmhc.reshape(b, height, width, h * c), (0, 0, 0, right, 0, below))
    x = x.view(b, cut.rows, tile_height, cut.columns, tile_width, h * c).transpose(2, 3)
    return x.reshape(-1, tile_height * tile_width, h, c)


def _join(x_tmhc: Tensor, cut: Tiling) -> Tensor:
    """Put tiles together again."""
    (_, _, h, c), (height, width, tile_height, tile_width) = x_tmhc.shape, cut
    x = x_tmhc.view(-1, cut.rows, cut.columns, tile_height, tile_width, h * c).transpose(2, 3)
    x = x.reshape(-1, cut.rows * tile_height, cut.columns * tile_width, h * c)
    return x[:, :height, :width].reshape(-1, height * width, h, c)


def _empty_contract(
    q_bmhk: Tensor, lambdas_tvmk: Tensor, c_bkv: Tensor, tiling: list[int]
) -> Tensor:
    return q_bmhk.new_empty(*q_bmhk.shape[:3], lambdas_tvmk.shape[1])


def _empty_contract_backward(
    q_bmhk: Tensor, lambdas_tvmk: Tensor, *others: Any
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q_bmhk), torch.empty_like(lambdas_tvmk)


def _empty_sum_windows(dx_tvn: Tensor, tiling: list[int], seen: list[int], margin: int) -> Tensor:
    cut = Tiling(*tiling)
    num_images = dx_tvn.shape[0] // (cut.rows * cut.columns)
    return dx_tvn.new_empty(num_images, cut.height * cut.width, dx_tvn.shape[1])


def _on_cuda(name: str, on_any: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls Triton's kernel, where there is one for the operands."""
    has_triton = find_spec("triton") is not None  # not on Windows

    def call(*arguments: Any) -> Any:
        if not has_triton or arguments[0].dtype == torch.float64:
            return on_any(*arguments)
        # Imported where it is used: it takes a second.
        from labn.model.kernels import contraction_triton

        return getattr(contraction_triton, name)(*arguments)

    return call


_LIBRARY = torch.library.Library("labn", "DEF")  # type: ignore[no-untyped-call]


def _define(schema: str, on_any: Callable[..., Any], on_fake: Callable[..., Any]) -> None:
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)  # type: ignore[no-untyped-call]
    _LIBRARY.impl(name, on_any, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    _LIBRARY.impl(name, _on_cuda(name, on_any), "CUDA")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"labn::{name}", on_fake, lib=_LIBRARY)


_define(
    "contract(Tensor q, Tensor lambdas, Tensor content, int[] tiling) -> Tensor",
    _contract,
    _empty_contract,
)
_define(
    "contract_backward(Tensor q, Tensor lambdas, Tensor content, Tensor gradient, int[] tiling)"
    " -> (Tensor, Tensor)",
    _contract_backward,
    _empty_contract_backward,
)
_define(
    "sum_windows(Tensor windows, int[] tiling, int[] seen, int margin) -> Tensor",
    _sum_windows,
    _empty_sum_windows,
)
