"""The lambda layer (Bello 2021; eq. 3-7 of Iida 2022).

Symbols: Q queries, K keys, V values; lambda_c content lambda, lambda_p position lambdas.
Axes: b images, h heads, k key depth, v value depth, m positions, row by row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from labn.model.kernels import compiled_lambda
from labn.model.kernels.half import at_least_float32
from labn.model.kernels.position_lambda import position_lambda
from labn.model.norm import normalise, recomputed


class Projections(NamedTuple):
    """What a lambda layer computes from its input: Q, K (softmaxed over positions), V."""

    queries_bhkm: Tensor
    keys_bkm: Tensor
    values_bvm: Tensor


def content_lambda(
    keys_bkm: Float[Tensor, "b k m"], values_bvm: Float[Tensor, "b v m"]
) -> Float[Tensor, "b k v"]:
    """Summarise the context into one linear map, lambda_c (Iida 2022, eq. 5).

    Keys are normalised already, over positions (eq. 4).
    """
    return torch.einsum("bkm,bvm->bkv", keys_bkm, values_bvm)


class LambdaLayer(nn.Module):
    """Global context as linear maps of the query: content plus relative position.

    Maps (b, channels, h, w) to the same shape, or to (b, channels, ceil(h/2), ceil(w/2)) with
    ``stride=2`` (a 3x3 average pool of the result).

    Args:
        channels: of input and output; a multiple of ``num_heads``.
        num_heads: queries a position; each sees the same lambdas.
        key_depth: of queries and keys.
        receptive_field: side of the position kernel; odd.
        stride: 1 or 2.

    Source: Iida 2022, eq. 3-7. Departure: the paper writes Q = V = Conv(h); here, as in Bello 2021,
    one 1x1 convolution gives separate Q, K and V, with batch norm on Q and V.
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
        # Only holds kernel and bias, under public checkpoints' names; position_lambda applies them.
        self.lambda_conv = nn.Conv3d(1, key_depth, (1, receptive_field, receptive_field))
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else nn.Identity()
        nn.init.normal_(self.conv_qkv.weight, std=channels**-0.5)
        nn.init.normal_(self.lambda_conv.weight, std=key_depth**-0.5 / receptive_field)
        nn.init.zeros_(self.lambda_conv.bias)  # type: ignore[arg-type]

    def project(self, x: Float[Tensor, "b c h w"]) -> Projections:
        """Compute Q, K and V (eq. 3 and 4)."""
        return self._arrange(*self._normalised_maps(x))

    def _normalised_maps(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.conv_qkv(x).split(
            [self.num_heads * self.key_depth, self.key_depth, self.value_depth], dim=1
        )
        # Sums over hundreds of positions follow: under autocast they are still taken in float32.
        dtype = at_least_float32(x).dtype
        return normalise(self.norm_q, q, dtype=dtype), k, normalise(self.norm_v, v, dtype=dtype)

    def _arrange(self, q: Tensor, k: Tensor, v: Tensor) -> Projections:
        return Projections(
            q.reshape(q.shape[0], self.num_heads, self.key_depth, -1),
            at_least_float32(k.flatten(2).softmax(dim=-1)),
            v.flatten(2),
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Apply content and position lambdas to the queries (eq. 7)."""
        q_map, k_map, v_map = self._normalised_maps(x)
        q, k, v = self._arrange(q_map, k_map, v_map)
        bias: Tensor = self.lambda_conv.bias  # type: ignore[assignment]
        with torch.autocast(x.device.type, enabled=False), recomputed(q_map, v_map):
            # The kernel's bias adds the same to every position's lambda: fold it into the content.
            content_bkv = content_lambda(k, v) + bias[:, None]
            y_bchw = self._apply_lambdas(q, v, content_bkv, (x.shape[2], x.shape[3]))
        y: Tensor = self.pool(y_bchw)
        return y

    def _apply_lambdas(
        self, q_bhkm: Tensor, v_bvm: Tensor, content_bkv: Tensor, map_size: tuple[int, int]
    ) -> Tensor:
        kernel_krr = self.lambda_conv.weight[:, 0, 0]
        if compiled_lambda.is_available(q_bhkm):
            # In and out with the channels last, as the convolutions around prefer it.
            y_bmhv = compiled_lambda.apply_lambdas(
                q_bhkm.permute(0, 3, 1, 2), v_bvm.mT, content_bkv, kernel_krr, map_size
            )
            return y_bmhv.reshape(y_bmhv.shape[0], *map_size, -1).permute(0, 3, 1, 2)
        y_bhvm = torch.einsum("bhkm,bkv->bhvm", q_bhkm, content_bkv)
        y_bhvm = y_bhvm + position_lambda(q_bhkm, v_bvm, kernel_krr, map_size)
        # Not len(), which would fix the batch size of an exported network.
        return y_bhvm.reshape(y_bhvm.shape[0], -1, *map_size)
