"""Maps that the network computes itself: LABN's attention, and each lambda layer's.

Symbols: Q queries, lambda_c content lambda, alpha the attention at the image's size.
Axes: b images, h heads, k key depth, v value depth, m positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labn.explain.method import evaluation_mode, upsample_map
from labn.model.lambda_layer import LambdaLayer, content_lambda
from labn.model.network import LABN

_ROUNDING_STEPS = 16  # a position's value is a sum over the key depth


class LabnAttention:
    """alpha, the attention branch's map, in (0, 1) and not thresholded (Iida 2022, eq. 1)."""

    name = "LABN"

    def __init__(self, model: LABN) -> None:
        self._model = model

    def explain(
        self, images: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"], names: Sequence[str]
    ) -> Float[Tensor, "b h w"]:
        """Return alpha~ upsampled to the images' size."""
        with evaluation_mode(self._model), torch.no_grad():
            attention = self._model(images).attention
        return upsample_map(attention, images)


class LambdaAttention:
    """Lambda attention: lambda_c^T Q of one lambda layer, averaged over channels.

    Each image's map is scaled to [0, 1] by its own least and greatest value, then upsampled; a
    constant map becomes zeros. A layer with stride 2 pools the sum of lambda_c^T Q and the position
    lambdas' output; its map is taken before pooling, at the size of the layer's input.

    Source: Iida 2022, section 5.2 and eq. 5 and 7. Departure from the authors' release: it
    scales by the extremes of the whole batch, so that a map depended on its neighbours.

    Args:
        layer_index: index, from 0, of the bottleneck whose lambda layer is explained; those from
            the network's split on see the masked features.

    Raises:
        ValueError: the network has no such bottleneck.
    """

    def __init__(self, model: LABN, layer_index: int) -> None:
        layers = _lambda_layers(model)
        if not 0 <= layer_index < len(layers):
            raise ValueError(
                f"layer_index: got {layer_index}, must be 0 to {len(layers) - 1}, for the network"
                f" has {len(layers)} lambda layers"
            )
        self._model, self._layer = model, layers[layer_index]
        self.name = f"lambda attention {layer_index}"

    def explain(
        self, images: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"], names: Sequence[str]
    ) -> Float[Tensor, "b h w"]:
        """Return lambda_c^T Q averaged over channels, in [0, 1] for each image."""
        inputs: list[Tensor] = []
        hook = self._layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        with evaluation_mode(self._model), torch.no_grad(), hook:
            self._model(images)
            maps = _mean_content(self._layer, inputs[0])
        return upsample_map(_scale_each(maps), images)


def lambda_attentions(model: LABN) -> list[LambdaAttention]:
    """Return the lambda attention of every lambda layer, from the first to the last."""
    return [LambdaAttention(model, index) for index in range(len(_lambda_layers(model)))]


def _lambda_layers(model: LABN) -> list[LambdaLayer]:
    spatial = [bottleneck.get_submodule("conv2") for bottleneck in model.bottlenecks]
    return [layer for layer in spatial if isinstance(layer, LambdaLayer)]


def _mean_content(layer: LambdaLayer, x: Float[Tensor, "b c h2 w2"]) -> Float[Tensor, "b 1 h2 w2"]:
    # Sums over positions are taken in the weights' own precision even under autocast.
    with torch.autocast(x.device.type, enabled=False):
        q_bhkm, k_bkm, v_bvm = layer.project(x.to(layer.conv_qkv.weight.dtype))
        sum_bm = torch.einsum("bhkm,bkv->bm", q_bhkm, content_lambda(k_bkm, v_bvm))
    return (sum_bm / x.shape[1]).view(len(x), 1, *x.shape[2:])


def _scale_each(maps: Float[Tensor, "b 1 h2 w2"]) -> Float[Tensor, "b 1 h2 w2"]:
    low, high = maps.amin(dim=(2, 3), keepdim=True), maps.amax(dim=(2, 3), keepdim=True)
    # Equal sums differ in their last bits where a product splits the positions into blocks:
    # stretched to [0, 1], that noise would pass for an explanation.
    rounding = _ROUNDING_STEPS * torch.finfo(maps.dtype).eps * torch.maximum(low.abs(), high.abs())
    is_constant = high - low <= rounding
    return torch.where(is_constant, torch.zeros_like(maps), (maps - low) / (high - low))
