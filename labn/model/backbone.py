"""The backbones: a stem, then bottlenecks around a lambda layer or a 3x3 convolution."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from labn.model import kernels
from labn.model.architectures import BackbonePlan
from labn.model.lambda_layer import LambdaLayer

Spatial = Callable[[int, int], nn.Module]
"""Builds the middle layer of a bottleneck from its width and stride."""


def lambda_spatial(width: int, stride: int) -> nn.Module:
    """Return the lambda layer of a backbone's bottleneck."""
    return LambdaLayer(width, stride=stride)


def convolution_spatial(width: int, stride: int) -> nn.Module:
    """Return the 3x3 convolution of an ordinary bottleneck."""
    return nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)


class Stem(nn.Module):
    """7x7/2 convolution, batch norm, ReLU, 3x3/2 max pool: a quarter of the image's size."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Return the first feature map."""
        y = kernels.norm(self.bn1, self.conv1(images), relu=True)
        return kernels.apply(self.maxpool, y)


class Bottleneck(nn.Module):
    """ResNet v1.5's bottleneck: 1x1, spatial, 1x1, and a shortcut."""

    def __init__(
        self, in_channels: int, width: int, out_channels: int, stride: int, spatial: Spatial
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = spatial(width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        # Start as the identity: lambda layers multiply their inputs, so that the activations of
        # an untrained stack would otherwise overflow in evaluation mode.
        nn.init.zeros_(self.bn3.weight)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )
        self.recompute = False
        """Whether training keeps only the input, and the backward pass computes the rest again."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Return the transformed input plus the input, projected where their shapes differ."""
        if self.recompute and self.training and torch.is_grad_enabled():
            return kernels.block(self._transform, self, x)
        return self._transform(x)

    def _transform(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        shortcut = x
        if self.downsample is not None:
            projection, bn = self.downsample
            shortcut = kernels.norm(bn, projection(x))
        y = kernels.norm(self.bn1, self.conv1(x), relu=True)
        y = kernels.apply(self.conv2, y)
        y = kernels.norm(self.bn2, y, relu=True)
        y = kernels.apply(self.conv3, y)
        return kernels.norm(self.bn3, y, relu=True, shortcut=shortcut)


def build_bottlenecks(plan: BackbonePlan) -> tuple[list[Bottleneck], list[int]]:
    """Return a plan's bottlenecks, and the channels before each one and after the last."""
    channels = [plan.stem_width]
    bottlenecks = []
    stages = zip(plan.stage_widths, plan.stage_depths, strict=True)
    for stage, (width, depth) in enumerate(stages):
        for position in range(depth):
            stride = 2 if stage > 0 and position == 0 else 1
            out_channels = width * plan.expansion
            spatial = lambda_spatial if plan.spatial == "lambda" else convolution_spatial
            bottlenecks.append(Bottleneck(channels[-1], width, out_channels, stride, spatial))
            channels.append(out_channels)
    return bottlenecks, channels


def init_convolutions(module: nn.Module) -> None:
    """Initialise every 2-d convolution outside lambda layers as He et al. do, by fan-in.

    By fan-out, as in ResNets, the attention branch's narrow convolutions, which no batch norm
    follows, would start with logits of the order of 10.
    """
    for child in module.children():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight, mode="fan_in", nonlinearity="relu")
        elif not isinstance(child, LambdaLayer):
            init_convolutions(child)
