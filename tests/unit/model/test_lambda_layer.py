from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from labn.model.lambda_layer import LambdaLayer, content_lambda

# The replica adds up the same float64 terms in another order.
ROUNDING = 1e-10


def make_layer(seed, channels=8, **settings):
    """A small layer in float64 in which every parameter and statistic matters."""
    torch.manual_seed(seed)
    settings = {"num_heads": 2, "key_depth": 3, "receptive_field": 5} | settings
    layer = LambdaLayer(channels, **settings).double()
    with torch.no_grad():
        for norm in (layer.norm_q, layer.norm_v):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_()
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 1.5)
        layer.lambda_conv.bias.normal_()
    return layer


def features(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def normalised(x_bcm, norm, is_training):
    if is_training:
        mean_c, var_c = x_bcm.mean(axis=(0, 2)), x_bcm.var(axis=(0, 2))
    else:
        mean_c, var_c = norm.running_mean.numpy(), norm.running_var.numpy()
    scale_c = norm.weight.detach().numpy() / np.sqrt(var_c + norm.eps)
    return (x_bcm - mean_c[:, None]) * scale_c[:, None] + norm.bias.detach().numpy()[:, None]


def average_pooled(y_bcyx):
    """3x3 windows, stride 2, one pixel of zeros around, which count as pixels."""
    height, width = y_bcyx.shape[2:]
    padded = np.pad(y_bcyx, ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows = [
        [padded[:, :, y : y + 3, x : x + 3].mean(axis=(2, 3)) for x in range(0, width, 2)]
        for y in range(0, height, 2)
    ]
    return np.array(rows).transpose(2, 3, 0, 1)


def slow_lambda_layer(layer, x, is_training):
    """Eq. 3 to 7, image by image, head by head, position by position."""
    num_images, _, height, width = x.shape
    x_bcm = x.numpy().reshape(num_images, -1, height * width)
    projected = np.stack(
        [layer.conv_qkv.weight[:, :, 0, 0].detach().numpy() @ x_cm for x_cm in x_bcm]
    )
    heads, depth = layer.num_heads, layer.key_depth
    q_bcm = normalised(projected[:, : heads * depth], layer.norm_q, is_training)
    k_bkm = np.exp(projected[:, heads * depth : heads * depth + depth])
    k_bkm /= k_bkm.sum(axis=2, keepdims=True)
    v_bvm = normalised(projected[:, heads * depth + depth :], layer.norm_v, is_training)
    w_kyx = layer.lambda_conv.weight[:, 0, 0].detach().numpy()
    bias_k = layer.lambda_conv.bias.detach().numpy()
    reach = w_kyx.shape[-1] // 2

    y = np.zeros((num_images, heads, v_bvm.shape[1], height, width))
    for image in range(num_images):
        content_kv = np.zeros((depth, v_bvm.shape[1]))
        for m in range(height * width):
            content_kv += np.outer(k_bkm[image, :, m], v_bvm[image, :, m])
        for m in range(height * width):
            lambda_kv = content_kv + bias_k[:, None]
            for n in range(height * width):
                down, right = n // width - m // width + reach, n % width - m % width + reach
                if 0 <= down <= 2 * reach and 0 <= right <= 2 * reach:
                    lambda_kv = lambda_kv + np.outer(w_kyx[:, down, right], v_bvm[image, :, n])
            for head in range(heads):
                q_k = q_bcm[image, head * depth : (head + 1) * depth, m]
                y[image, head, :, m // width, m % width] = lambda_kv.T @ q_k
    y = y.reshape(x.shape)
    return average_pooled(y) if isinstance(layer.pool, torch.nn.AvgPool2d) else y


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("is_training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("size", [(4, 6), (7, 5), (1, 1)], ids=str)
def test_the_layer_computes_equations_3_to_7(size, is_training, stride):
    layer = make_layer(0, stride=stride).train(is_training)
    x = features(1, 2, 8, *size)
    expected = slow_lambda_layer(layer, x, is_training)
    y = layer(x).detach()
    np.testing.assert_allclose(y, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("side", [1, 2, 7, 8])
def test_a_stride_of_two_halves_the_map_and_rounds_up(side):
    y = make_layer(2, stride=2)(features(3, 2, 8, side, side + 1))
    assert y.shape == (2, 8, -(-side // 2), -(-(side + 1) // 2))


def test_the_content_lambda_is_the_sum_of_outer_products_over_positions():
    keys, values = features(4, 2, 3, 10), features(5, 2, 4, 10)
    expected = np.zeros((2, 3, 4))
    for image in range(2):
        for m in range(10):
            expected[image] += np.outer(keys[image, :, m], values[image, :, m])
    np.testing.assert_allclose(content_lambda(keys, values), expected, rtol=0, atol=1e-14)


def test_keys_sum_to_one_over_positions():
    projections = make_layer(6).project(features(7, 2, 8, 4, 6))
    torch.testing.assert_close(
        projections.keys_bkm.sum(dim=-1), torch.ones(2, 3, dtype=torch.float64)
    )


def test_gradients_agree_with_finite_differences():
    layer = make_layer(8, channels=4, key_depth=2, receptive_field=3).train()
    x = features(9, 2, 4, 2, 3).requires_grad_()
    parameters = dict(layer.named_parameters())

    def outputs(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(outputs, (x, *parameters.values()))


@pytest.mark.parametrize(
    ("map_size", "value_depth"), [((6, 5), 4), ((17, 16), 16), ((17, 16), 4)], ids=str
)
def test_under_bf16_only_the_projections_are_rounded(map_size, value_depth):
    torch.manual_seed(10)
    layer = LambdaLayer(value_depth * 4, receptive_field=7).train()
    x = features(11, 2, value_depth * 4, *map_size).float()
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        rounded_qkv = layer.conv_qkv(x)
    assert rounded_qkv.dtype == torch.bfloat16 and y.dtype == torch.float32

    # What follows the projection, in float32, of the rounded projection.
    layer.conv_qkv = torch.nn.Identity()
    with torch.autocast("cpu", torch.bfloat16):
        projections = layer.project(rounded_qkv)
    q, k, v = (tensor.float() for tensor in projections)
    kernel, bias = layer.lambda_conv.weight, layer.lambda_conv.bias
    v_b1vyx = v.unflatten(2, map_size).unsqueeze(1)
    position_bkvm = F.conv3d(v_b1vyx, kernel, bias, padding=(0, 3, 3)).flatten(3)
    lambda_bkvm = content_lambda(k, v).unsqueeze(-1) + position_bkvm
    expected = torch.einsum("bhkm,bkvm->bhvm", q, lambda_bkvm).reshape(y.shape)
    # bf16 would be off by 4e-3 of the largest; float32 sums of a thousand terms by 1e-6.
    assert (y - expected).abs().max() <= 1e-5 * expected.abs().max()
    # bf16 keeps 8 bits: each projection is off by 2^-9 of its size, a product of three by more.
    assert 0 < (y - exact).abs().max() <= 0.05 * exact.abs().max()


@pytest.mark.parametrize(("map_size", "channels"), [((6, 5), 16), ((17, 16), 64), ((17, 16), 16)])
def test_gradients_under_bf16_are_finite_and_close_to_those_of_float32(map_size, channels):
    torch.manual_seed(12)
    layer = LambdaLayer(channels, receptive_field=7).train()
    x, weights = (features(seed, 2, channels, *map_size).float() for seed in (13, 14))

    def gradients(enabled):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = layer(x)
        (y * weights).sum().backward()
        return [parameter.grad.clone() for parameter in layer.parameters()]

    for rounded, exact in zip(gradients(True), gradients(False), strict=True):
        assert rounded.isfinite().all()
        assert (rounded - exact).norm() <= 0.05 * exact.norm()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"channels": 10}, r"channels \(10\)"),
        ({"channels": 8, "receptive_field": 4}, "receptive_field.*4"),
        ({"channels": 8, "stride": 3}, "stride.*3"),
        ({"channels": 0}, "channels.* must be at least 1, but got 0, 4"),
        ({"channels": 8, "num_heads": 0}, "num_heads.* must be at least 1, but got 8, 0"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(arguments, named):
    with pytest.raises(ValueError, match=named):
        LambdaLayer(**arguments)


def test_an_untrained_layer_keeps_the_scale_of_its_input():
    torch.manual_seed(15)
    y = LambdaLayer(64).train()(features(16, 4, 64, 14, 14).float())
    assert 0.1 < y.std().item() < 10


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_an_image_has_the_same_gradient_alone_as_beside_another(memory_format):
    # Torch 2.15's batch norm went wrong on a batch of one; see _with_plain_gradient.
    torch.manual_seed(0)
    layer = LambdaLayer(8, receptive_field=5).double().eval()
    images = torch.randn(2, 8, 6, 8, dtype=torch.float64)
    weights = torch.linspace(0, 1, 8 * 6 * 8, dtype=torch.float64).view(8, 6, 8)

    def gradient(x):
        x = x.clone(memory_format=memory_format).requires_grad_()
        (layer(x) * weights).sum().backward()
        return x.grad

    # The rounding of float64 over sums of some hundred terms.
    torch.testing.assert_close(gradient(images[:1]), gradient(images)[:1], rtol=1e-10, atol=1e-10)
