"""The test of where the evidence lies: what it shows the network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from labn.model.network import build_model, upsample_attention
from tests.bench.evidence import probabilities


@pytest.fixture
def network():
    """A network whose bias image, images and attention all matter."""
    torch.manual_seed(0)
    model = build_model("lambda_cnn", split=0, branch_width=8, theta_alpha=0.6).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1)
    return model


@torch.inference_mode()
def test_the_attention_stays_while_pixels_are_replaced(network):
    images, bias = torch.randn(3, 3, 64, 64), torch.zeros(1, 3, 64, 64)
    found = probabilities(network, images, bias)
    output = network(images)
    np.testing.assert_allclose(found["the image"], output.logits.softmax(1)[:, 1], atol=1e-6)
    is_attended = upsample_attention(output.attention, (64, 64)) > 0.6
    np.testing.assert_allclose(found["attended area"], is_attended.float().mean((1, 2)))
    assert 0 < is_attended.float().mean() < 1
    shown = images * is_attended[:, None]
    attended = network.attend(output.attention, network.extract(shown))
    expected = network.classify(attended).softmax(1)[:, 1]
    np.testing.assert_allclose(found["attended pixels"], expected, atol=1e-6)
    assert not np.allclose(found["attended pixels"], found["other pixels"], atol=1e-4)


@torch.inference_mode()
def test_where_all_is_attended_the_rest_is_the_bias_image(network):
    network.theta_alpha = 0
    found = probabilities(network, torch.randn(2, 3, 64, 64), torch.ones(1, 3, 64, 64))
    np.testing.assert_array_equal(found["attended area"], 1)
    np.testing.assert_array_equal(found["attended pixels"], found["the image"])
    np.testing.assert_array_equal(found["other pixels"], found["the bias image"])
