from __future__ import annotations

import numpy as np
import pytest
import torch
from explained import make_images, make_labn, upsampled

from labn.explain.rollout import LambdaRollout, attend
from labn.model import kernels
from labn.model.lambda_layer import LambdaLayer, content_lambda
from labn.model.network import build_model

LABELS, NAMES = torch.tensor([2, 0]), ("a", "b")


def make_layer(stride=1):
    torch.manual_seed(0)
    layer = LambdaLayer(8, num_heads=2, key_depth=3, receptive_field=5, stride=stride)
    return layer.double().eval()


def shares(layer, x):
    """Return A by the derivative of the layer's output in its values."""
    height, width = x.shape[2:]
    q, k, v = (one.detach() for one in layer.project(x))
    w, bias = layer.lambda_conv.weight.flatten(0, 2).detach(), layer.lambda_conv.bias.detach()

    def output(values):
        y = kernels.lambdas(q, values, content_lambda(k, values), w, bias, (height, width))
        return y.reshape(layer.num_heads, layer.value_depth, -1)[:, 0]

    (jacobian,) = (torch.autograd.functional.jacobian(output, v)[..., 0, 0, :],)
    a = jacobian.abs().mean(dim=0)
    return (a / a.sum(dim=1, keepdim=True)).numpy()


@pytest.mark.parametrize("size", [(4, 6), (7, 3), (1, 1)])
def test_relevance_goes_by_the_derivatives_of_the_outputs_in_the_values(size):
    layer = make_layer()
    x = torch.randn(1, 8, *size, dtype=torch.float64)
    relevance = torch.rand(size, dtype=torch.float64)

    with torch.no_grad():
        found = attend(layer, x, relevance)

    expected = relevance.flatten().numpy() @ shares(layer, x)
    np.testing.assert_allclose(found.flatten(), expected, atol=1e-10)
    # No relevance is lost.
    np.testing.assert_allclose(found.sum(), relevance.sum())


@pytest.mark.parametrize("split", [0, 1])
def test_the_rollout_of_one_layer_is_half_its_shares_and_half_the_shortcut(split):
    model, images = make_labn(split=split, theta_alpha=0.4), make_images(2)
    inputs = []
    layer = model.bottlenecks[0].conv2
    hook = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    with torch.no_grad():
        attention = model(images).attention
    hook.remove()
    mask = (attention * (attention > 0.4))[:, 0].numpy()

    maps = LambdaRollout(model).explain(images, LABELS, NAMES)

    for x, alpha, found in zip(inputs[0], mask, maps, strict=True):
        last = alpha if split == 1 else np.ones_like(alpha)
        expected = (last.ravel() @ shares(layer, x[None])).reshape(alpha.shape) / 2 + last / 2
        expected = expected * (alpha if split == 0 else 1)
        np.testing.assert_allclose(found, upsampled(expected, 24, 32), atol=1e-9)


def test_relevance_is_kept_through_layers_that_halve_the_map():
    torch.manual_seed(0)
    model = build_model("lambda_resnet26", in_channels=2, split=3, branch="none").eval()
    image = make_images(1, 64, 96, dtype=torch.float32)

    (found,) = LambdaRollout(model).explain(image, LABELS[:1], NAMES[:1])

    assert found.shape == (64, 96)
    # Of the last map's six positions; averages at the borders count pixels beyond them.
    assert 3 < found.mean() * 16 * 24 <= 6 + 1e-5
    assert 0 <= found.min() < found.max()
