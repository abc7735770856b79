from __future__ import annotations

import numpy as np
import pytest
import torch
from explained import make_images, make_labn, upsampled

from labn.explain.attention import LabnAttention, LambdaAttention, lambda_attentions

# The replica sums in another order, in the same float64; scaling divides by the map's range.
ROUNDING = 1e-9
LABELS, NAMES = torch.tensor([0, 1]), ("a", "b")


def layer_input(model, index, images):
    seen = []
    layer = model.bottlenecks[index].conv2
    with layer.register_forward_pre_hook(lambda _, args: seen.append(args[0])), torch.no_grad():
        model(images)
    return seen[0].numpy()


def normalised(values, norm):
    """Apply a batch norm in evaluation mode to one position's channels."""
    mean, var, weight, bias = (
        t.detach().numpy() for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (values - mean) / np.sqrt(var + norm.eps) * weight + bias


def mean_content(layer, x_chw):
    """lambda_c^T q at one position after another, head by head."""
    weight = layer.conv_qkv.weight.detach().numpy()[:, :, 0, 0]
    num_queries = layer.num_heads * layer.key_depth
    channels, height, width = x_chw.shape
    positions = [weight @ x_chw[:, i, j] for i in range(height) for j in range(width)]
    queries = [normalised(z[:num_queries], layer.norm_q) for z in positions]
    keys = np.array([z[num_queries : num_queries + layer.key_depth] for z in positions])
    exponentials = np.exp(keys - keys.max(axis=0))
    values = [normalised(z[num_queries + layer.key_depth :], layer.norm_v) for z in positions]
    content = np.zeros((layer.key_depth, layer.value_depth))
    for exponential, value in zip(exponentials, values, strict=True):
        content += np.outer(exponential / sum(exponentials), value)
    outputs = [
        [
            content.T @ query[h * layer.key_depth :][: layer.key_depth]
            for h in range(layer.num_heads)
        ]
        for query in queries
    ]
    assert np.size(outputs[0]) == channels
    return np.array([np.mean(output) for output in outputs]).reshape(height, width)


@pytest.mark.parametrize(
    ("backbone", "split", "index"),
    [("lambda_cnn", 0, 0), ("lambda_cnn", 1, 0), ("lambda_resnet26", 1, 2)],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_lambda_attention_agrees_with_a_replica_scaled_image_by_image(backbone, split, index, seed):
    model = make_labn(backbone, split=split, seed=seed, theta_alpha=0.3)
    images = make_images(2, seed=seed)
    maps = LambdaAttention(model, index).explain(images, LABELS, NAMES)
    features = layer_input(model, index, images)
    # Bottleneck 2 of lambda_resnet26 has stride 2: its map is that before pooling.
    assert features.shape[2:] == (6, 8)
    for x_chw, result in zip(features, maps, strict=True):
        content = mean_content(model.bottlenecks[index].conv2, x_chw)
        scaled = (content - content.min()) / (content.max() - content.min())
        np.testing.assert_allclose(result, upsampled(scaled, 24, 32), atol=ROUNDING)


def test_a_constant_map_becomes_zeros():
    # With nothing above theta_alpha the LPB sees zeros everywhere.
    model = make_labn(theta_alpha=1.0, dtype=torch.float32)
    maps = LambdaAttention(model, 0).explain(make_images(2, dtype=torch.float32), LABELS, NAMES)
    assert torch.equal(maps, torch.zeros(2, 24, 32))


def test_a_map_that_is_constant_but_for_rounding_becomes_zeros():
    model = make_labn(theta_alpha=1.0, dtype=torch.float32)
    layer = model.bottlenecks[0].conv2
    noise = torch.Generator().manual_seed(0)

    def shake(_module, _args, queries):
        step = torch.randint(0, 2, queries.shape, generator=noise) * torch.finfo().eps
        return queries * (1 + step)

    with layer.norm_q.register_forward_hook(shake):
        maps = LambdaAttention(model, 0).explain(make_images(2, dtype=torch.float32), LABELS, NAMES)
    assert torch.equal(maps, torch.zeros(2, 24, 32))


def test_a_network_that_overflows_does_not_pass_for_a_constant_map():
    model = make_labn()
    with torch.no_grad():
        model.bottlenecks[0].conv2.norm_q.bias.fill_(torch.nan)
    assert LambdaAttention(model, 0).explain(make_images(2), LABELS, NAMES).isnan().all()


def test_every_lambda_layer_has_its_own_map():
    model = make_labn("lambda_resnet26", split=3, theta_alpha=0.3)
    methods = lambda_attentions(model)
    assert [method.name for method in methods] == [f"lambda attention {i}" for i in range(8)]
    maps = [method.explain(make_images(2, 64, 64), LABELS, NAMES) for method in methods]
    for index, first in enumerate(maps):
        assert first.shape == (2, 64, 64)
        assert not any(torch.allclose(first, second) for second in maps[index + 1 :])


@pytest.mark.parametrize("index", [-1, 8])
def test_a_layer_that_is_not_there_is_refused(index):
    with pytest.raises(ValueError, match=rf"layer_index: got {index}, must be 0 to 7"):
        LambdaAttention(make_labn("lambda_resnet26"), index)


@pytest.mark.parametrize("split", [0, 1])
def test_labns_map_is_its_attention_at_the_images_size_without_the_threshold(split):
    model, images = make_labn(split=split, theta_alpha=0.9), make_images(2)
    with torch.no_grad():
        attention = model(images).attention
    assert (attention < 0.9).any()
    maps = LabnAttention(model).explain(images, LABELS, NAMES)
    for attention_hw, result in zip(attention[:, 0].numpy(), maps, strict=True):
        np.testing.assert_allclose(result, upsampled(attention_hw, 24, 32), atol=1e-12)
