"""Lambda rollout: attention rollout (Abnar and Zuidema 2020) for lambda layers.

Symbols: A the share of position n's output that comes from position m, r the relevance of the
positions of one map. Axes: h heads, k key depth, n positions of the output, m of the input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from labn.explain.gradients import differentiable
from labn.explain.method import upsample_map
from labn.model.lambda_layer import LambdaLayer
from labn.model.network import LABN

_ROWS = 256  # of A, which exist at a time


class LambdaRollout:
    """The positions from which the last map's come, followed down through all lambda layers.

    A layer's output is linear in its values: y_n = sum_m S_nm v_m with S_nm = q_n (k_m + w_(m-n)).
    A is the magnitude of S, averaged over heads, with rows that sum to 1. As in attention rollout,
    half of a bottleneck's output is taken to come by its lambda layer, half by its shortcut; a
    stride's pooling is followed too, and so is the network's mask alpha'. The other layers mix
    positions only locally, and are left out. It is the same for every class.
    """

    name = "lambda rollout"

    def __init__(self, model: LABN) -> None:
        self._model = model

    def explain(
        self, images: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"], names: Sequence[str]
    ) -> Float[Tensor, "b h w"]:
        """Return the relevance of each position of the first map, at the images' size."""
        layers = [one.get_submodule("conv2") for one in self._model.bottlenecks]
        inputs: list[Tensor] = []
        hooks = [
            layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
            for layer in layers
        ]
        with differentiable(self._model, images, labels) as (copies, _), torch.no_grad():
            try:
                attention = self._model(copies).attention
            finally:
                for hook in hooks:
                    hook.remove()
            mask = self._model.attend(attention, torch.ones_like(attention))
            maps = [
                self._follow(layers, [x[i : i + 1] for x in inputs], mask[i, 0])
                for i in range(len(images))
            ]
        return upsample_map(torch.stack(maps)[:, None], images)

    def _follow(
        self, layers: list[nn.Module], inputs: list[Tensor], mask: Tensor
    ) -> Float[Tensor, "h w"]:
        split = self._model.split
        last = layers[-1].get_submodule("pool")(inputs[-1][:, :1])[0, 0]
        relevance = mask if split == len(layers) else torch.ones_like(last)
        for index in reversed(range(len(layers))):
            layer, x = layers[index], inputs[index]
            assert isinstance(layer, LambdaLayer)
            pooled, pull, *_ = torch.func.vjp(layer.pool, x[:, :1])
            by_layer = attend(layer, x, pull(relevance.expand_as(pooled))[0][0, 0])
            stride = 1 if isinstance(layer.pool, nn.Identity) else 2
            by_shortcut = torch.zeros_like(by_layer)
            by_shortcut[::stride, ::stride] = relevance
            relevance = (by_layer + by_shortcut) / 2
            if index == split:
                relevance = relevance * mask
        return relevance


def attend(
    layer: LambdaLayer, x: Float[Tensor, "1 c h w"], relevance: Float[Tensor, "h w"]
) -> Float[Tensor, "h w"]:
    """Return r A: the relevance of a layer's input positions, by that of its output's."""
    (q_hkn,), (k_km,), _ = layer.project(x)
    w_krr = layer.lambda_conv.weight[:, 0, 0].to(q_hkn)
    side, (height, width) = w_krr.shape[-1], x.shape[2:]
    margin, wide = side // 2, width + side - 1
    n = torch.arange(height * width, device=x.device)
    offsets = torch.arange(side, device=x.device)
    # The places of the kernel's cells around each n, on a map with a margin.
    corner_n = n // width * wide + n % width
    cells_r = (offsets[:, None] * wide + offsets).flatten()
    total_m = torch.zeros_like(k_km[0])
    for rows in torch.split(n, _ROWS):
        q = q_hkn[:, :, rows]
        near_hnr = torch.einsum("hkn,kr->hnr", q, w_krr.flatten(1))
        places = (corner_n[rows, None] + cells_r).expand_as(near_hnr)
        padded = q.new_zeros(*places.shape[:2], (height + side - 1) * wide)
        padded = padded.scatter_(2, places, near_hnr).unflatten(2, (-1, wide))
        position = padded[..., margin : margin + height, margin : margin + width].flatten(2)
        a_nm = (torch.einsum("hkn,km->hnm", q, k_km) + position).abs().mean(dim=0)
        a_nm = a_nm / a_nm.sum(dim=1, keepdim=True).clamp(min=torch.finfo(a_nm.dtype).tiny)
        total_m += relevance.flatten()[rows] @ a_nm
    return total_m.view(height, width)
