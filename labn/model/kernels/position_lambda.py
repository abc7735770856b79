"""Position lambdas applied to their queries in torch: four exact implementations.

Written out, eq. 6 and 7 convolve the values with a kernel and contract the result with the query:

    y[h, v, m] = sum_k q[h, k, m] sum_n W[k, n - m] v[v, n]

Contracting q with W first leaves two matrix products per position m, and nothing of size
positions x values x key depth:

    S[h, m, n] = sum_k q[h, k, m] W[k, n - m],    y[h, v, m] = sum_n S[h, m, n] v[v, n]

For a small map this is one such product (``dense``); a larger map is cut into tiles with a margin
(``tiled``). With few values contracting first does not pay, and the convolution is computed by FFT
(``by_fft``). Written out (``by_convolution``), it consists of what other programs can run, too.
``dispatch`` chooses. All take queries (b h k m), values (b v m), a kernel
(k r r) of odd r and the map's (height, width), pad with zeros, and return y (b h v m).

Axes: b images (or tiles), h heads, m output positions, n input positions, k key depth, v values.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_TILE = 7
_CHUNK_BYTES = 4 << 20  # a strip of S that stays in a core's cache


def dense(q_bhkm: Tensor, v_bvm: Tensor, w_krr: Tensor, map_size: tuple[int, int]) -> Tensor:
    """Treat the whole map as one tile, without the taps that cannot reach it."""
    taps_mkn = taps(w_krr, map_size, map_size, margin=w_krr.shape[-1] // 2)
    y_bhmv = _contract(q_bhkm.transpose(2, 3), v_bvm.transpose(1, 2), taps_mkn)
    return y_bhmv.transpose(2, 3)


def dense_with_content(
    q_bmhk: Tensor, v_bmv: Tensor, c_bkv: Tensor, w_krr: Tensor, map_size: tuple[int, int]
) -> Tensor:
    """Apply content lambdas, too; all have positions first, as ``compiled_lambda`` has them."""
    q_bhkm = q_bmhk.permute(0, 2, 3, 1)
    y_bhvm = dense(q_bhkm, v_bmv.mT, w_krr, map_size)
    return (y_bhvm + torch.einsum("bhkm,bkv->bhvm", q_bhkm, c_bkv)).permute(0, 3, 1, 2)


def tiled(q_bhkm: Tensor, v_bvm: Tensor, w_krr: Tensor, map_size: tuple[int, int]) -> Tensor:
    """Cut the map into tiles; each sees its own positions and a margin of the kernel's reach."""
    (b, h, k, _), (height, width) = q_bhkm.shape, map_size
    v, margin = v_bvm.shape[1], w_krr.shape[-1] // 2
    rows, columns = -(-height // _TILE), -(-width // _TILE)
    below, right = rows * _TILE - height, columns * _TILE - width
    seen = _TILE + 2 * margin

    q = F.pad(q_bhkm.reshape(b, h * k, height, width), (0, right, 0, below))
    q = q.reshape(b, h, k, rows, _TILE, columns, _TILE).permute(0, 3, 5, 1, 4, 6, 2)
    values = F.pad(
        v_bvm.reshape(b, v, height, width), (margin, right + margin, margin, below + margin)
    )
    values = values.unfold(2, seen, _TILE).unfold(3, seen, _TILE).permute(0, 2, 3, 4, 5, 1)
    y = _contract(
        q.reshape(-1, h, _TILE * _TILE, k),
        values.reshape(-1, seen * seen, v),
        taps(w_krr, (_TILE, _TILE), (seen, seen), 0),
    )
    y = y.view(b, rows, columns, h, _TILE, _TILE, v).permute(0, 3, 6, 1, 4, 2, 5)
    y = y.reshape(b, h, v, rows * _TILE, columns * _TILE)
    return y[..., :height, :width].flatten(3)


def by_fft(q_bhkm: Tensor, v_bvm: Tensor, w_krr: Tensor, map_size: tuple[int, int]) -> Tensor:
    """Convolve by FFT, and contract the lambdas with the queries."""
    (b, v, _), (height, width) = v_bvm.shape, map_size
    margin = w_krr.shape[-1] // 2
    padded = (height + 2 * margin, width + 2 * margin)
    values_f = torch.fft.rfft2(v_bvm.reshape(b, 1, v, height, width), padded)
    kernel_f = torch.fft.rfft2(w_krr.flip(1, 2), padded).unsqueeze(1)
    lambda_bkvm = torch.fft.irfft2(values_f * kernel_f, padded)[
        ..., margin : margin + height, margin : margin + width
    ].flatten(3)
    return torch.einsum("bhkm,bkvm->bhvm", q_bhkm, lambda_bkvm)


def by_convolution(
    q_bhkm: Tensor, v_bvm: Tensor, w_krr: Tensor, map_size: tuple[int, int]
) -> Tensor:
    """Convolve each value's map with the kernel, and contract the lambdas with the queries."""
    b, v, _ = v_bvm.shape
    lambda_bvkm = F.conv2d(
        v_bvm.reshape(b * v, 1, *map_size), w_krr.unsqueeze(1), padding=w_krr.shape[-1] // 2
    ).reshape(b, v, w_krr.shape[0], -1)
    return torch.einsum("bhkm,bvkm->bhvm", q_bhkm, lambda_bvkm)


def taps(w_krr: Tensor, out_size: tuple[int, int], in_size: tuple[int, int], margin: int) -> Tensor:
    """Return W[k, n - m + margin] for every output m and input n (m k n); zero beyond the kernel.

    Each (m, k) row is a window of the padded kernel, so one strided view holds them all; only the
    order of m has to be reversed, since strides cannot be negative.
    """
    reach = w_krr.shape[-1] - 1
    before = [max(0, out - 1 - margin) for out in out_size]
    after = [max(0, size - 1 + margin - reach) for size in in_size]
    padded = F.pad(w_krr, (before[1], after[1], before[0], after[0])).contiguous()
    stride_k, stride_y, stride_x = padded.stride()
    start_y, start_x = (margin + pad - (out - 1) for pad, out in zip(before, out_size, strict=True))
    windows = padded.as_strided(
        (*out_size, w_krr.shape[0], *in_size),
        (stride_y, stride_x, stride_k, stride_y, stride_x),
        start_y * stride_y + start_x * stride_x,
    )
    return windows.flip(0, 1).flatten(3, 4).flatten(0, 1)


def taps_gradient(
    dtaps: Tensor, reach: int, out_size: tuple[int, int], in_size: tuple[int, int], margin: int
) -> Tensor:
    """Return the gradient of the kernel (k, reach, reach) from that of ``taps``, (m k n).

    The sum over m of what lies at n = m + tap - margin, first down the columns, then along the
    rows. Unlike autograd's, it adds in the same order every time.
    """
    d = dtaps.reshape(*out_size, -1, *in_size).permute(0, 1, 2, 4, 3)
    (rows, columns, k), width = d.shape[:3], in_size[1]
    d = _sum_diagonals(d.reshape(rows, -1, in_size[0]), margin, reach)
    d = d.view(columns, k, width, reach).transpose(2, 3).reshape(columns, k * reach, width)
    return _sum_diagonals(d, margin, reach).view(k, reach, reach)


def _sum_diagonals(x_man: Tensor, margin: int, reach: int) -> Tensor:
    """Return sum_m x[m, a, m + d - margin] for d from 0 to reach - 1, zero beyond x."""
    m, a, n = x_man.shape
    before, after = max(0, margin), max(0, m + reach - 1 - margin - n)
    padded = F.pad(x_man, (before, after))
    row = padded.shape[2]
    # One row further, one position further: the strides run along the diagonals.
    return padded.as_strided((m, a, reach), (a * row + 1, row, 1), before - margin).sum(0)


def _contract(q_bhmk: Tensor, v_bnv: Tensor, taps_mkn: Tensor) -> Tensor:
    b, h, m, _ = q_bhmk.shape
    bytes_per_image = h * m * v_bnv.shape[1] * q_bhmk.element_size()
    # A dense map's S is small and used whole: chunks would only shrink its products.
    chunk = b if m == v_bnv.shape[1] else max(1, _CHUNK_BYTES // bytes_per_image)
    result: Tensor = _Contract.apply(q_bhmk.contiguous(), v_bnv.contiguous(), taps_mkn, chunk)
    return result


class _Contract(torch.autograd.Function):
    """y[b,h,m,v] = sum_n (sum_k q[b,h,m,k] taps[m,k,n]) v[b,n,v]; recomputes S in backward."""

    @staticmethod
    def forward(ctx: Any, q_bhmk: Tensor, v_bnv: Tensor, taps_mkn: Tensor, chunk: int) -> Tensor:
        ctx.save_for_backward(q_bhmk, v_bnv, taps_mkn)
        ctx.chunk = chunk
        b, h, m, _ = q_bhmk.shape
        y_bhmv = q_bhmk.new_empty(b, h, m, v_bnv.shape[2])
        for start in range(0, b, chunk):
            part = slice(start, start + chunk)
            s_amn = torch.bmm(_by_position(q_bhmk[part]), taps_mkn).transpose(0, 1)
            y_bhmv[part] = torch.bmm(s_amn, _repeat_per_head(v_bnv[part], h)).view_as(y_bhmv[part])
        return y_bhmv

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_bhmk, v_bnv, taps_mkn = ctx.saved_tensors
        g_bhmv = grads[0].contiguous()
        h = q_bhmk.shape[1]
        dq, dv, dtaps = (
            torch.empty_like(q_bhmk),
            torch.empty_like(v_bnv),
            torch.zeros_like(taps_mkn),
        )
        for start in range(0, len(q_bhmk), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            q_mak, g_amv = _by_position(q_bhmk[part]), g_bhmv[part].flatten(0, 1)
            s_amn = torch.bmm(q_mak, taps_mkn).transpose(0, 1)
            dv_anv = torch.bmm(s_amn.transpose(1, 2), g_amv)
            dv[part] = dv_anv.view(-1, h, *v_bnv.shape[1:]).sum(1)
            ds_amn = torch.bmm(g_amv, _repeat_per_head(v_bnv[part], h).transpose(1, 2))
            ds_man = ds_amn.transpose(0, 1)
            dq_mak = torch.bmm(ds_man, taps_mkn.transpose(1, 2))
            dq[part] = dq_mak.transpose(0, 1).view_as(dq[part])
            dtaps.baddbmm_(q_mak.transpose(1, 2), ds_man)
        return dq, dv, dtaps, None


def _by_position(q_bhmk: Tensor) -> Tensor:
    return q_bhmk.flatten(0, 1).transpose(0, 1)


def _repeat_per_head(v_bnv: Tensor, num_heads: int) -> Tensor:
    return v_bnv.repeat_interleave(num_heads, dim=0)
