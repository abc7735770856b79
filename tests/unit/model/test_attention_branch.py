from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from labn.model.attention_branch import AttentionBranch

# Dozens of float64 operations on numbers of order 1.
ROUNDING = 1e-10


def make_branch(seed, channels=3, num_classes=4, width=2):
    torch.manual_seed(seed)
    branch = AttentionBranch(channels, num_classes, width).double().eval()
    for module in branch.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return branch


def normalised(x_cyx, norm):
    scale_c = norm.weight.detach().numpy() / np.sqrt(norm.running_var.numpy() + norm.eps)
    shift_c = norm.bias.detach().numpy() - norm.running_mean.numpy() * scale_c
    return x_cyx * scale_c[:, None, None] + shift_c[:, None, None]


def mixed(x_cyx, convolution):
    return np.einsum("oc,cyx->oyx", convolution.weight[:, :, 0, 0].detach().numpy(), x_cyx)


def slow_branch(branch, h_cyx):
    """Follow the definition one image at a time; the bottlenecks are torchvision's."""
    for ours in branch.layer1:
        width, in_channels = ours.conv1.weight.shape[:2]
        theirs = torchvision.models.resnet.Bottleneck(
            in_channels, width, downsample=ours.downsample
        ).double()
        theirs.load_state_dict(ours.state_dict())
        h_cyx = theirs.eval()(torch.from_numpy(h_cyx)[None])[0].detach().numpy()
    f = np.maximum(mixed(normalised(h_cyx, branch.bn1), branch.conv1), 0)
    g = np.maximum(normalised(mixed(f, branch.conv2), branch.bn2), 0)
    logit_1yx = normalised(mixed(g, branch.conv3), branch.bn3)
    return 1 / (1 + np.exp(-logit_1yx)), mixed(f, branch.conv4).mean(axis=(1, 2))


@pytest.mark.parametrize("size", [(1, 1), (5, 4)], ids=str)
@pytest.mark.parametrize(("num_classes", "width"), [(4, 2), (1, 3)])
def test_the_branch_computes_its_definition(size, num_classes, width):
    branch = make_branch(0, num_classes=num_classes, width=width)
    h_lfe = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 3, *size)))
    attention, logits = branch(h_lfe)
    assert attention.shape == (2, 1, *size) and logits.shape == (2, num_classes)
    for image, h_cyx in enumerate(h_lfe.numpy()):
        expected_attention, expected_logits = slow_branch(branch, h_cyx)
        np.testing.assert_allclose(
            attention[image].detach(), expected_attention, rtol=0, atol=ROUNDING
        )
        np.testing.assert_allclose(logits[image].detach(), expected_logits, rtol=0, atol=ROUNDING)


def test_attention_lies_between_zero_and_one():
    h_lfe = torch.from_numpy(np.random.default_rng(2).standard_normal((2, 3, 9, 9)))
    attention = make_branch(3)(h_lfe).attention
    assert attention.min() > 0 and attention.max() < 1
    assert attention.std() > 1e-3


def num_parameters(*arguments):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in AttentionBranch(*arguments).parameters())


@pytest.mark.parametrize("channels", [64, 2048])
def test_the_width_is_that_of_the_input_unless_it_is_given(channels):
    assert num_parameters(channels, 2) == num_parameters(channels, 2, channels)
    assert num_parameters(channels, 2, 8) < num_parameters(channels, 2)


def test_behind_the_last_stages_of_a_resnet50_the_default_width_costs_37_to_150_million():
    assert num_parameters(1024, 2) == pytest.approx(37e6, rel=0.02)
    assert num_parameters(2048, 2) == pytest.approx(150e6, rel=0.03)
