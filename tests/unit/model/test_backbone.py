from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import nn

from labn.model import backbone
from labn.model.architectures import PLANS
from labn.model.attention_branch import BranchOutput
from labn.model.backbone import Bottleneck, convolution_spatial, lambda_spatial
from labn.model.lambda_layer import LambdaLayer
from labn.model.network import build_model

# The same float64 operations in the same order, by other modules.
ROUNDING = 1e-12


class AllAttention(nn.Module):
    """An attention branch that lets everything through."""

    def forward(self, h_lfe):
        return BranchOutput(h_lfe.new_ones(len(h_lfe), 1, *h_lfe.shape[2:]), h_lfe.mean((2, 3)))


def randomise_norms(module):
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            nn.init.normal_(child.weight)
            nn.init.normal_(child.bias)
            nn.init.normal_(child.running_mean)
            nn.init.uniform_(child.running_var, 0.5, 1.5)


@pytest.mark.parametrize(
    ("name", "num_bottlenecks"),
    [
        ("lambda_cnn", 1),
        ("lambda_resnet26", 8),
        ("lambda_resnet38", 12),
        ("lambda_resnet50", 16),
        ("lambda_resnet101", 33),
        ("lambda_resnet152", 49 + 1),
    ],
)
def test_a_backbone_has_the_bottlenecks_of_its_name(name, num_bottlenecks):
    assert PLANS[name].num_bottlenecks == num_bottlenecks
    if name != "lambda_cnn":
        # Three layers a bottleneck, the stem and the linear layer.
        assert name == f"lambda_resnet{3 * num_bottlenecks + 2}"


@pytest.mark.parametrize(("in_channels", "stride"), [(16, 1), (8, 1), (8, 2)])
def test_an_ordinary_bottleneck_is_torchvisions(in_channels, stride):
    torch.manual_seed(0)
    ours = Bottleneck(in_channels, 4, 16, stride, convolution_spatial).double()
    randomise_norms(ours)
    shortcut = copy.deepcopy(ours.downsample)
    theirs = torchvision.models.resnet.Bottleneck(in_channels, 4, stride, shortcut).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, in_channels, 7, 6, dtype=torch.float64)
    for is_training in (True, False):
        expected = theirs.train(is_training)(x)
        torch.testing.assert_close(ours.train(is_training)(x), expected, rtol=0, atol=ROUNDING)


def test_with_convolutions_for_lambda_layers_the_backbone_is_torchvisions_resnet50(monkeypatch):
    monkeypatch.setattr(backbone, "lambda_spatial", convolution_spatial)
    torch.manual_seed(1)
    ours = build_model(num_classes=5, split=6, branch_width=1)
    ours.attention_branch = AllAttention()
    # Normal weights would make activations grow with depth: here they only have to differ.
    randomise_norms(ours)
    ours.eval()
    theirs = torchvision.models.resnet50(weights=None, num_classes=5).eval()
    values = list(ours.state_dict().values())
    names = list(theirs.state_dict())
    assert len(values) == len(names)
    theirs.load_state_dict(dict(zip(names, values, strict=True)))
    images = torch.randn(2, 3, 64, 48)
    with torch.inference_mode():
        expected, logits = theirs(images), ours(images).logits
    assert expected.std() > 0
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=0)


def test_each_bottleneck_of_a_backbone_has_a_lambda_layer_for_its_3x3_convolution():
    with torch.device("meta"):
        model = build_model("lambda_resnet50")
    widths = [64] * 3 + [128] * 4 + [256] * 6 + [512] * 3
    strides = [1] * 3 + [2, 1, 1, 1] + [2, 1, 1, 1, 1, 1] + [2, 1, 1]
    for bottleneck, width, stride in zip(model.bottlenecks, widths, strides, strict=True):
        layer = bottleneck.conv2
        assert isinstance(layer, LambdaLayer)
        assert layer.num_heads * layer.value_depth == width
        assert (layer.num_heads, layer.key_depth) == (4, 16)
        assert layer.lambda_conv.weight.shape == (16, 1, 1, 23, 23)
        assert isinstance(layer.pool, nn.AvgPool2d) == (stride == 2)


def test_an_untrained_bottleneck_without_a_shortcut_convolution_is_the_identity():
    torch.manual_seed(2)
    x = torch.rand(2, 32, 6, 5)
    bottleneck = Bottleneck(32, 8, 32, 1, lambda_spatial)
    assert torch.equal(bottleneck.train()(x), x)


def test_convolutions_start_with_he_s_variance_by_fan_in():
    torch.manual_seed(3)
    model = build_model("lambda_cnn", in_channels=1, split=0)
    for convolution in (model.stem.conv1, model.attention_branch.layer1[0].conv2):
        fan_in = convolution.weight[0].numel()
        # 784 and 2304 normal draws: the deviation of their variance is 5 % and 3 %.
        assert convolution.weight.var().item() * fan_in == pytest.approx(2, rel=0.2)
    # A lambda layer's own rule: 1 / channels, drawn 80 x 8 times.
    qkv = model.bottlenecks[0].conv2.conv_qkv.weight
    assert qkv.var().item() * 8 == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize("name", ["lambda_cnn", "lambda_resnet50"])
def test_an_untrained_network_has_finite_outputs_in_evaluation(name):
    torch.manual_seed(4)
    model = build_model(name, split=1, branch_width=4).eval()
    with torch.inference_mode():
        output = model(3 * torch.randn(2, 3, 64, 64))
    for tensor in output:
        assert tensor.isfinite().all() and tensor.abs().max() < 100
