"""One lambda layer against the authors' release: values and gradients."""

from __future__ import annotations

import numpy as np
import pytest
from golden.rebuild import golden, rebuilt_input, rebuilt_state

from labn import LambdaLayer

# Channels, side and stride; the first two maps are one dense product, the larger one goes by FFT.
CASES = [(128, 7, 1), (64, 14, 1), (64, 14, 2), (32, 20, 1)]

# Float32 sums of a few thousand products, of the order of 1: both sides round at 1e-6.
VALUE_TOLERANCE = 1e-5
# Gradients sum over positions and images as well; relative to the largest entry.
GRADIENT_TOLERANCE = 1e-4


@pytest.fixture(params=CASES, ids=lambda case: "lambda_{}_{}_s{}".format(*case))
def case(request):
    channels, side, stride = request.param
    layer = LambdaLayer(channels, stride=stride)
    layer.load_state_dict(
        rebuilt_state({key: tensor.shape for key, tensor in layer.state_dict().items()})
    )
    features = rebuilt_input(f"lambda-{channels}-{side}-{stride}", (2, channels, side, side))
    return layer, features, golden(f"lambda_{channels}_{side}_s{stride}"), request.param


def test_the_layer_computes_what_the_release_computes_in_evaluation(case):
    layer, features, expected, _ = case
    y = layer.eval()(features).detach().numpy()
    np.testing.assert_allclose(y, expected["y_eval"], rtol=0, atol=VALUE_TOLERANCE)


def test_the_layer_computes_what_the_release_computes_in_training(case):
    layer, features, expected, (channels, side, stride) = case
    features.requires_grad_()
    y = layer.train()(features)
    np.testing.assert_allclose(y.detach(), expected["y_train"], rtol=0, atol=VALUE_TOLERANCE)

    (y * rebuilt_input(f"grad-lambda-{channels}-{side}-{stride}", y.shape)).sum().backward()
    for gradient, name in (
        (features.grad, "gx"),
        (layer.lambda_conv.weight.grad, "g_pos"),
        (layer.conv_qkv.weight.grad, "g_qkv"),
    ):
        atol = GRADIENT_TOLERANCE * np.abs(expected[name]).max()
        np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=atol, err_msg=name)
