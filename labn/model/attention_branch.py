"""The Lambda Attention Branch, LAB (Iida 2022, section 4.1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from labn.model import kernels
from labn.model.backbone import Bottleneck, convolution_spatial
from labn.model.kernels.half import at_least_float32

_EXPANSION = 4
_NUM_FEATURES = 10


class BranchOutput(NamedTuple):
    """alpha~ (b, 1, h2, w2) in (0, 1), and the branch's own class logits (b, classes)."""

    attention: Tensor
    logits: Tensor


class AttentionBranch(nn.Module):
    """An attention map and a classification from the LFE's features.

    Two ordinary bottlenecks, batch norm and a 1x1 convolution with ReLU produce ten features f;
    one head maps them to alpha~ (eq. 1), the other to class logits by global average pooling.

    Args:
        channels: number of channels of h_LFE.
        num_classes: number of classes.
        width: inner width of the bottlenecks; None uses ``channels``, as the authors' release
            does, which costs 37 to 150 million parameters behind a ResNet-50's last stages.
    """

    def __init__(self, channels: int, num_classes: int, width: int | None = None) -> None:
        super().__init__()
        width = width or channels
        wide = width * _EXPANSION
        self.layer1 = nn.Sequential(
            Bottleneck(channels, width, wide, 1, convolution_spatial),
            Bottleneck(wide, width, wide, 1, convolution_spatial),
        )
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv1 = nn.Conv2d(wide, _NUM_FEATURES, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(_NUM_FEATURES, _NUM_FEATURES, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(_NUM_FEATURES)
        self.conv3 = nn.Conv2d(_NUM_FEATURES, 1, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(1)
        self.conv4 = nn.Conv2d(_NUM_FEATURES, num_classes, 1, bias=False)

    def forward(self, h_lfe: Float[Tensor, "b c h w"]) -> BranchOutput:
        """Return alpha~ and the branch's logits."""
        wide = self.layer1(h_lfe)
        # A threshold turns a small error of alpha~ into another map, and the heads cost next to
        # nothing: they compute in float32 even under autocast.
        with torch.autocast(wide.device.type, enabled=False):
            y = kernels.norm(self.bn1, wide, dtype=at_least_float32(wide).dtype)
            f = self.relu(kernels.apply(self.conv1, y))
            y = kernels.norm(self.bn2, self.conv2(f), relu=True)
            attention = kernels.norm(self.bn3, self.conv3(y)).sigmoid()
            return BranchOutput(attention, self.conv4(f).mean(dim=(2, 3)))


class NoBranch(nn.Module):
    """In place of the attention branch: attention of 1 everywhere, and no parameters.

    Its class logits are 0, whatever the features: nothing can be learnt from them.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, h_lfe: Float[Tensor, "b c h w"]) -> BranchOutput:
        """Return a map of ones and logits of zero."""
        one = at_least_float32(h_lfe[:, :1])
        return BranchOutput(torch.ones_like(one), one.new_zeros((one.shape[0], self.num_classes)))
