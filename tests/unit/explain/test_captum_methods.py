from __future__ import annotations

import numpy as np
import pytest
import torch
from explained import CHANNELS, NUM_CLASSES, make_classifier, make_images, make_labn, upsampled
from torch import nn

from labn.explain.captum_methods import (
    ATTRIBUTIONS,
    Attribution,
    GuidedBackpropagation,
    ScoreCam,
)

# A file may have a name that is not text.
LABELS, NAMES = torch.tensor([2, 0]), ("a", "b\udcff")
# Sums in another order, in float64.
ROUNDING = 1e-12
BIAS = torch.linspace(-0.5, 0.5, CHANNELS, dtype=torch.float64).view(-1, 1, 1)


def make_linear(height, width):
    torch.manual_seed(0)
    linear = nn.Linear(CHANNELS * height * width, NUM_CLASSES, dtype=torch.float64)
    return nn.Sequential(nn.Flatten(), linear), linear.weight.detach().unflatten(
        1, (CHANNELS, height, width)
    )


@pytest.mark.parametrize("name", ["integrated gradients", "gradient SHAP"])
def test_on_a_linear_network_the_attribution_is_the_weight_times_the_distance_from_b(name):
    model, weights = make_linear(6, 4)
    images = make_images(2, 6, 4)

    maps = Attribution(name, model, BIAS).explain(images, LABELS, NAMES)

    expected = (weights[LABELS] * (images - BIAS)).sum(dim=1).clamp(min=0)
    # Captum's steps and coefficients are float32.
    torch.testing.assert_close(maps, expected, rtol=1e-6, atol=1e-7)


def test_on_a_linear_network_smooth_grad_is_the_greatest_weight():
    model, weights = make_linear(6, 4)

    maps = Attribution("SmoothGrad", model, BIAS).explain(make_images(2, 6, 4), LABELS, NAMES)

    torch.testing.assert_close(maps, weights[LABELS].abs().amax(dim=1))


@pytest.mark.parametrize("seed", [0, 1])
def test_integrated_gradients_add_up_to_the_change_of_the_logit(seed):
    model, image = make_classifier(seed), make_images(1, 6, 8, seed)
    b = BIAS.expand_as(image)

    found = ATTRIBUTIONS["integrated gradients"](model, image, 1, b)

    with torch.no_grad():
        change = (model(image) - model(b))[0, 1]
    # 32 steps of the integral of a smooth function, by Gauss and Legendre; in float32.
    torch.testing.assert_close(found.sum(), change, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["gradient SHAP", "SmoothGrad"])
def test_samples_are_repeated_by_the_same_seed_only_and_leave_the_generators_alone(name):
    model, images = make_classifier(), make_images(2, 6, 8)
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002

    first, again, other = (
        Attribution(name, model, BIAS, seed).explain(images, LABELS, NAMES) for seed in (0, 0, 1)
    )

    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002


def test_occlusion_is_the_mean_drop_of_the_windows_over_a_pixel():
    model, images = make_classifier(), make_images(2, 22, 14)
    maps = Attribution("occlusion", model, BIAS).explain(images, LABELS, NAMES)

    for image, label, result in zip(images, LABELS, maps, strict=True):
        drops, counts = np.zeros((22, 14)), np.zeros((22, 14))
        for row in range(0, 19, 2):
            for column in range(0, 11, 2):
                window = slice(row, row + 4), slice(column, column + 4)
                hidden = image.clone()
                hidden[:, window[0], window[1]] = BIAS
                with torch.no_grad():
                    drop = (model(image[None]) - model(hidden[None]))[0, label].item()
                drops[window] += drop
                counts[window] += 1

        np.testing.assert_allclose(result, (drops / counts).clip(min=0), atol=1e-7)


def test_guided_backpropagation_is_that_of_captum_where_each_relu_is_a_module():
    from captum.attr import GuidedBackprop

    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(CHANNELS, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, NUM_CLASSES),
    ).double()  # fmt: skip
    images = make_images(2, 8, 9)

    maps = GuidedBackpropagation(model).explain(images, LABELS, NAMES)

    with pytest.warns(UserWarning, match="backward hooks"):
        guided = GuidedBackprop(model).attribute(images.clone().requires_grad_(), LABELS)
    assert maps.max() > 0
    torch.testing.assert_close(maps, guided.abs().amax(dim=1).detach())


@pytest.mark.parametrize("split", [0, 1])
def test_score_cam_weights_each_channel_by_what_its_map_lets_through(split):
    model, images = make_labn(split=split, theta_alpha=0.4), make_images(2)
    features = []
    hook = model.bottlenecks[-1].register_forward_hook(lambda *args: features.append(args[2]))
    with torch.no_grad():
        attention = model(images).attention
    hook.remove()
    last = features[0].numpy()
    if split == 1:
        last = last * (attention * (attention > 0.4)).numpy()
    maps = ScoreCam(model, 500).explain(images, LABELS, NAMES)

    for image, channels, label, result in zip(images, last, LABELS, maps, strict=True):
        total = np.zeros(channels.shape[1:])
        for channel in channels:
            spread = np.ptp(channel)
            scaled = (channel - channel.min()) / (spread or 1)
            mask = torch.from_numpy(upsampled(scaled, 24, 32))
            with torch.no_grad():
                shown = model(image[None] * mask).logits.softmax(dim=1)[0, label].item()
            total += shown * channel
        np.testing.assert_allclose(result, upsampled(total.clip(min=0), 24, 32), atol=ROUNDING)


def test_score_cam_takes_the_channels_of_the_greatest_variance():
    model, images = make_labn(), make_images(1)
    every, fewer = (ScoreCam(model, n).explain(images, LABELS[:1], NAMES[:1]) for n in (500, 2))

    assert fewer.shape == every.shape
    assert not torch.allclose(fewer, every)


@pytest.mark.parametrize("name", ATTRIBUTIONS)
def test_a_constant_image_equal_to_b_has_no_evidence_but_in_its_surroundings(name):
    model, image = make_classifier(), BIAS.expand(1, CHANNELS, 8, 8).contiguous()

    maps = Attribution(name, model, BIAS).explain(image, LABELS[:1], NAMES[:1])

    assert maps.isfinite().all()
    assert (maps.abs() < ROUNDING).all() == (name != "SmoothGrad")
