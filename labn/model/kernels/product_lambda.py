"""Lambdas applied to their queries on an accelerator: few, large matrix products.

The map is cut into tiles. The position lambdas of a tile are one linear map of the values that the
tile sees, the same for every tile, image and value depth,

    lambda_p[k, v, m] = sum_n T[(m, k), n] x[v, n],    T[(m, k), n] = W[k, n - m],

so one product with T computes them for the whole batch, and ``contraction`` applies them to the
queries. They are not kept for the backward pass, which computes them again. A batch whose
intermediate results exceed ``STRIP_BYTES`` is cut into strips.

Axes: b images, t tiles of all images, h heads, m output positions, n input positions, k key depth,
v values, r the kernel's rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from labn.model.kernels.contraction import Tiling, contract, contract_backward, sum_windows
from labn.model.kernels.position_lambda import taps, taps_gradient

STRIP_BYTES = 1 << 30
"""Memory for intermediate results; it decides how many images pass at once."""
_TILE = 14
"""With a kernel of 23, a tile sees 36 x 36 positions: a multiple of 8, as matrix units need."""
_MAX_WHOLE_POSITIONS = 1024


class Geometry(NamedTuple):
    """How a map is cut: into ``tiling``, each tile of which sees (height, width) ``seen``.

    ``margin`` positions of it lie beyond the tile on every side.
    """

    tiling: Tiling
    seen: tuple[int, int]
    margin: int
    reach: int
    """Rows and columns of the kernel."""

    @classmethod
    def of(cls, map_size: tuple[int, int], reach: int) -> Geometry:
        """Leave a small map whole: what its kernel reaches beyond the map is zero."""
        if map_size[0] * map_size[1] <= _MAX_WHOLE_POSITIONS:
            return cls(Tiling(*map_size, *map_size), map_size, 0, reach)
        seen = _TILE + reach - 1
        return cls(Tiling(*map_size, _TILE, _TILE), (seen, seen), reach // 2, reach)

    def taps(self, w_krr: Tensor) -> Tensor:
        """Return T, of shape (m k, n)."""
        return taps(w_krr, *self._taps_sizes()).flatten(0, 1)

    def taps_gradient(self, dtaps: Tensor) -> Tensor:
        """Return the gradient of the kernel (k, r, r) from that of T."""
        return taps_gradient(dtaps, self.reach, *self._taps_sizes())

    def _taps_sizes(self) -> tuple[tuple[int, int], tuple[int, int], int]:
        tile = (self.tiling.tile_height, self.tiling.tile_width)
        return tile, self.seen, self.reach // 2 - self.margin

    def windows(self, v_bmv: Tensor) -> Tensor:
        """Return the values that each tile sees, (t, v, n)."""
        if not self.margin:
            return v_bmv.mT.contiguous()
        (b, _, v), (height, width, *tile), margin = v_bmv.shape, self.tiling, self.margin
        rows, columns = self.tiling.rows, self.tiling.columns
        padded = v_bmv.new_zeros(b, v, rows * tile[0] + 2 * margin, columns * tile[1] + 2 * margin)
        padded[:, :, margin : margin + height, margin : margin + width] = v_bmv.mT.view(
            b, v, height, width
        )
        windows = padded.unfold(2, self.seen[0], tile[0]).unfold(3, self.seen[1], tile[1])
        return windows.permute(0, 2, 3, 1, 4, 5).reshape(b * rows * columns, v, -1)

    def windows_gradient(self, dx_tvn: Tensor) -> Tensor:
        """Return the gradient of the values (b, m, v) from that of the windows."""
        return (
            sum_windows(dx_tvn, self.tiling, self.seen, self.margin) if self.margin else dx_tvn.mT
        )

    def lambdas(self, x_tvn: Tensor, taps_an: Tensor) -> Tensor:
        """Return the position lambdas of windows, (t, v, m, k)."""
        num_positions = self.tiling.tile_height * self.tiling.tile_width
        return (x_tvn.flatten(0, 1) @ taps_an.mT).view(*x_tvn.shape[:2], num_positions, -1)

    def extra_bytes(self, key_depth: int, value_depth: int, element_size: int) -> int:
        """Return the memory that one image's intermediate results take in the backward pass.

        The windows and their gradient, the position lambdas, their gradient, and its transposed
        copy: ``tiles * v * (2 n + 3 m k)`` numbers.
        """
        num_windows = self.tiling.rows * self.tiling.columns * value_depth
        num_positions = self.tiling.tile_height * self.tiling.tile_width
        numbers = 2 * self.seen[0] * self.seen[1] + 3 * num_positions * key_depth
        return num_windows * numbers * element_size


def apply_lambdas(
    queries: Float[Tensor, "b m h k"],
    values: Float[Tensor, "b m v"],
    content: Float[Tensor, "b k v"],
    kernel: Float[Tensor, "k r r"],
    map_size: tuple[int, int],
) -> Float[Tensor, "b m h v"]:
    """Apply content and position lambdas to the queries (Iida 2022, eq. 6 and 7).

    ``content`` is the sum of what is the same at every position: lambda_c and the kernel's bias.
    All are of one type; products of bfloat16 accumulate in float32.
    """
    result: Tensor = _ApplyLambdas.apply(
        queries.contiguous(), values.contiguous(), content.contiguous(), kernel, map_size
    )
    return result


class _ApplyLambdas(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_bmhk: Tensor, v_bmv: Tensor, c_bkv: Tensor, w_krr: Tensor, size: tuple[int, int]
    ) -> Tensor:
        ctx.geometry = geometry = Geometry.of(size, w_krr.shape[-1])
        taps_an = geometry.taps(w_krr)
        ctx.save_for_backward(q_bmhk, v_bmv, c_bkv, taps_an)
        results = [
            contract(q, geometry.lambdas(geometry.windows(v), taps_an), c, geometry.tiling)
            for q, v, c in _strips(geometry, q_bmhk, v_bmv, c_bkv)
        ]
        return _joined(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_bmhk, v_bmv, c_bkv, taps_an = ctx.saved_tensors
        geometry: Geometry = ctx.geometry
        strips = _strips(geometry, q_bmhk, v_bmv, c_bkv, grads[0].contiguous())
        results = [_strip_gradients(geometry, taps_an, *strip) for strip in strips]
        dq, dv, dc, (dtaps_an, *more) = zip(*results, strict=True)
        for dtaps in more:
            dtaps_an = dtaps_an + dtaps
        return *(_joined(part) for part in (dq, dv, dc)), geometry.taps_gradient(dtaps_an), None


def _strip_gradients(
    geometry: Geometry,
    taps_an: Tensor,
    q_bmhk: Tensor,
    v_bmv: Tensor,
    c_bkv: Tensor,
    g_bmhv: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of queries, values, content and T."""
    x_tvn = geometry.windows(v_bmv)
    dq, dlambdas_tvmk = contract_backward(
        q_bmhk, geometry.lambdas(x_tvn, taps_an), c_bkv, g_bmhv, geometry.tiling
    )
    dlambdas_ra = dlambdas_tvmk.flatten(0, 1).flatten(1)
    dtaps_an = dlambdas_ra.mT @ x_tvn.flatten(0, 1)
    dv = geometry.windows_gradient((dlambdas_ra @ taps_an).view_as(x_tvn))
    return dq, dv, q_bmhk.flatten(1, 2).mT @ g_bmhv.flatten(1, 2), dtaps_an


def _strips(geometry: Geometry, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the tensors, the first two of them queries and values, in strips of images."""
    q_bmhk, v_bmv = tensors[:2]
    bytes_per_image = geometry.extra_bytes(q_bmhk.shape[3], v_bmv.shape[2], q_bmhk.element_size())
    size = max(1, STRIP_BYTES // bytes_per_image)
    if size >= len(q_bmhk):
        yield tensors
        return
    for start in range(0, len(q_bmhk), size):
        yield tuple(tensor[start : start + size] for tensor in tensors)


def _joined(strips: Sequence[Tensor]) -> Tensor:
    return strips[0] if len(strips) == 1 else torch.cat(list(strips))
