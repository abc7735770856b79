"""Batch norm folded into the convolutions before it: the same network, faster, for evaluation."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights

from labn.model.attention_branch import AttentionBranch
from labn.model.backbone import Bottleneck, Stem
from labn.model.lambda_layer import LambdaLayer
from labn.model.network import LABN


def folded(network: LABN) -> LABN:
    """Return a copy in evaluation mode, with batch norms folded into preceding convolutions.

    The copy's outputs equal the network's up to rounding. It cannot be trained.
    """
    result = copy.deepcopy(network).eval().requires_grad_(requires_grad=False)
    for module in result.modules():
        if isinstance(module, Stem | Bottleneck):
            _fold(module, "conv1", "bn1")
        if isinstance(module, Bottleneck):
            _fold(module, "conv3", "bn3")
            if isinstance(module.conv2, nn.Conv2d):
                _fold(module, "conv2", "bn2")
            if module.downsample is not None:
                _fold(module.downsample, "0", "1")
        if isinstance(module, AttentionBranch):
            _fold(module, "conv2", "bn2")
            _fold(module, "conv3", "bn3")
        if isinstance(module, LambdaLayer):
            _fold_projections(module)
    return result


def _fold(parent: nn.Module, convolution: str, norm: str) -> None:
    conv, bn = getattr(parent, convolution), getattr(parent, norm)
    setattr(parent, convolution, fuse_conv_bn_eval(conv, bn))
    setattr(parent, norm, nn.Identity())


def _fold_projections(layer: LambdaLayer) -> None:
    """Fold the norms of Q and V into their rows of the one convolution; K has none."""
    conv = layer.conv_qkv
    num_queries = layer.num_heads * layer.key_depth
    q, k, v = torch.split(conv.weight, [num_queries, layer.key_depth, layer.value_depth])
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    for weight, bn in ((q, layer.norm_q), (k, None), (v, layer.norm_v)):
        bias = weight.new_zeros(len(weight))
        if bn is not None:
            assert bn.running_mean is not None and bn.running_var is not None
            weight, bias = fuse_conv_bn_weights(
                weight, bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
            )
        weights.append(weight)
        biases.append(bias)
    conv.weight = nn.Parameter(torch.cat(weights), requires_grad=False)
    conv.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    layer.norm_q, layer.norm_v = nn.Identity(), nn.Identity()  # type: ignore[assignment]
