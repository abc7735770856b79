"""The lambda layer (Bello 2021; eq. 3-7 of Iida 2022).

Symbols: q queries, k keys, v values; lambda_c content lambda, lambda_p position lambdas, w their
kernel. Axes: b images, h heads, k key depth, v value depth, m positions, row by row, r the
kernel's rows and columns.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from labn.model import kernels


class Projections(NamedTuple):
    """The linear maps of a lambda layer's input: Q, K (softmaxed over positions), V."""

    queries_bhkm: Tensor
    keys_bkm: Tensor
    values_bvm: Tensor


def content_lambda(
    keys_bkm: Float[Tensor, "b k m"], values_bvm: Float[Tensor, "b v m"]
) -> Float[Tensor, "b k v"]:
    """Summarise the context into one linear map, lambda_c (Iida 2022, eq. 5).

    Keys must be normalised over positions already (eq. 4).
    """
    with torch.autocast(keys_bkm.device.type, enabled=False):
        return torch.einsum("bkm,bvm->bkv", keys_bkm, values_bvm)


class LambdaLayer(nn.Module):
    """Global context as linear maps of the query: content plus relative position.

    Maps (b, channels, h, w) to the same shape, or to (b, channels, ceil(h/2), ceil(w/2)) with
    ``stride=2`` (a 3x3 average pool of the result).

    Args:
        channels: number of channels of input and output; a multiple of ``num_heads``.
        num_heads: queries per position; all see the same lambdas.
        key_depth: size of queries and keys.
        receptive_field: side of the position kernel; odd.
        stride: 1 or 2.

    Source: Iida 2022, eq. 3-7. Departure: the paper writes Q = V = Conv(h); here, as in Bello 2021,
    one 1x1 convolution computes separate Q, K and V, with batch norm on Q and V.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int = 4,
        key_depth: int = 16,
        receptive_field: int = 23,
        stride: int = 1,
    ) -> None:
        super().__init__()
        if min(channels, num_heads, key_depth, receptive_field) < 1:
            raise ValueError(
                "channels, num_heads, key_depth and receptive_field must be at least 1, but got"
                f" {channels}, {num_heads}, {key_depth} and {receptive_field}"
            )
        if channels % num_heads:
            raise ValueError(f"channels ({channels}) must be a multiple of num_heads ({num_heads})")
        if receptive_field % 2 == 0:
            raise ValueError(f"receptive_field must be odd, but got {receptive_field}")
        if stride not in (1, 2):
            raise ValueError(f"stride must be 1 or 2, but got {stride}")
        self.num_heads, self.key_depth, self.value_depth = (
            num_heads,
            key_depth,
            channels // num_heads,
        )
        num_queries = num_heads * key_depth
        self.conv_qkv = nn.Conv2d(
            channels, num_queries + key_depth + self.value_depth, 1, bias=False
        )
        self.norm_q = nn.BatchNorm2d(num_queries)
        self.norm_v = nn.BatchNorm2d(self.value_depth)
        # Holds kernel and bias under public checkpoints' names; kernels.lambdas applies them.
        self.lambda_conv = nn.Conv3d(1, key_depth, (1, receptive_field, receptive_field))
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else nn.Identity()
        nn.init.normal_(self.conv_qkv.weight, std=channels**-0.5)
        nn.init.normal_(self.lambda_conv.weight, std=key_depth**-0.5 / receptive_field)
        nn.init.zeros_(self.lambda_conv.bias)  # type: ignore[arg-type]

    def project(self, x: Float[Tensor, "b c h w"]) -> Projections:
        """Compute Q, K and V (eq. 3 and 4)."""
        q, k, v = self.conv_qkv(x).split(
            [self.num_heads * self.key_depth, self.key_depth, self.value_depth], dim=1
        )
        dtype = kernels.product_dtype(q)
        q, v = kernels.norm(self.norm_q, q, dtype=dtype), kernels.norm(self.norm_v, v, dtype=dtype)
        return Projections(
            q.reshape(q.shape[0], self.num_heads, self.key_depth, -1),
            k.flatten(2).softmax(dim=-1, dtype=torch.promote_types(dtype, torch.float32)).to(dtype),
            v.flatten(2),
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Apply content and position lambdas to the queries (eq. 3-7)."""
        q_bhkm, k_bkm, v_bvm = self.project(x)  # eq. 3 and 4
        w_krr = self.lambda_conv.weight.flatten(0, 2)
        bias_k: Tensor = self.lambda_conv.bias  # type: ignore[assignment]
        with kernels.recomputed(q_bhkm, v_bvm):
            lambda_c_bkv = content_lambda(k_bkm, v_bvm)  # eq. 5
            y = kernels.lambdas(  # eq. 6 and 7
                q_bhkm, v_bvm, lambda_c_bkv, w_krr, bias_k, map_size=(x.shape[2], x.shape[3])
            )
        pooled: Tensor = self.pool(y)
        return pooled
