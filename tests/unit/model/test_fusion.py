from __future__ import annotations

import pytest
import torch
from torch import nn

from labn.model.backbone import Bottleneck
from labn.model.fusion import folded
from labn.model.network import build_model


@pytest.mark.parametrize("backbone", ["lambda_resnet50", "lambda_cnn"])
def test_a_folded_network_agrees_and_the_original_is_untouched(backbone):
    torch.manual_seed(0)
    network = build_model(backbone, split=0, theta_alpha=0.4, branch_width=8).eval().double()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 32, 32, generator=generator, dtype=torch.float64)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # weights that matter, statistics that fit
            module.momentum = 1.0
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
    for module in network.modules():
        if isinstance(module, Bottleneck):  # else an untrained stack grows beyond any float
            module.bn3.weight.data.mul_(0.1)
    network.train()(images)
    network.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        expected = network(images)
        found = folded(network)(images)
    # float64 rounding through up to 16 blocks
    torch.testing.assert_close(tuple(found), tuple(expected), rtol=1e-9, atol=1e-9)
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_batch_norm_stays_only_where_no_convolution_comes_first():
    torch.manual_seed(0)
    network = folded(build_model("lambda_cnn", split=0, branch_width=8))
    left = [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert left == ["bottlenecks.0.bn2", "attention_branch.bn1"]
