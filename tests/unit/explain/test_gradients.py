from __future__ import annotations

import numpy as np
import pytest
import torch
from explained import NUM_CLASSES, make_classifier, make_images, make_labn, upsampled
from torch import nn

from labn.explain.gradients import GradCam, InputGradient

LABELS, NAMES = torch.tensor([2, 0]), ("a", "b")
# Sums in another order, in the same float64.
ROUNDING = 1e-12
# Central differences of float64 at this step err by the step squared and by 1e-16 / step.
STEP, STEP_ERROR = 1e-5, 1e-8


def test_grad_cam_of_a_network_by_hand():
    # Channels A = x and B = 2 - x; logits 4 mean(A) - 2 mean(B) and its opposite. The gradients
    # are 4 / 4 and -2 / 4 everywhere, so that the map is relu(x - (2 - x) / 2) = relu(1.5 x - 1).
    convolution, linear = nn.Conv2d(1, 2, 1), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        convolution.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
        convolution.bias.copy_(torch.tensor([0.0, 2.0]))
        linear.weight.copy_(torch.tensor([[4.0, -2.0], [-4.0, 2.0]]))
    model = nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    images = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).expand(2, 1, 2, 2)
    maps = GradCam(model, convolution).explain(images, torch.tensor([0, 1]), NAMES)
    expected = torch.tensor([[[0.0, 0.5], [2.0, 3.5]], [[1.0, 0.0], [0.0, 0.0]]])
    torch.testing.assert_close(maps, expected)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_grad_cam_agrees_with_differences_of_the_features(seed):
    model, images = make_classifier(seed), make_images(2, 6, 8, seed)
    head = model[1:]
    maps = GradCam(model, model[0]).explain(images, LABELS, NAMES)
    with torch.no_grad():
        for image, label, result in zip(images, LABELS, maps, strict=True):
            features = model[0](image[None])
            weighted = np.zeros((6, 8))
            for channel in range(features.shape[1]):
                # Moving a whole channel adds up its gradients; their mean is the weight.
                moved = torch.zeros_like(features)
                moved[:, channel] = STEP
                rise = (head(features + moved) - head(features - moved))[0, label]
                weight = rise.item() / (2 * STEP) / (6 * 8)
                weighted += weight * features[0, channel].numpy()
            np.testing.assert_allclose(result, weighted.clip(min=0), atol=STEP_ERROR)


def last_map(model, images):
    """What the LPB pools: the last bottleneck's output, or alpha' * h_LFE."""
    with torch.no_grad():
        h = model.stem(images)
        for index, bottleneck in enumerate([*model.bottlenecks, None]):
            if index == model.split:
                attention = model.attention_branch(h).attention
                h = h * attention * (attention > model.theta_alpha)
            if bottleneck is not None:
                h = bottleneck(h)
    return h.numpy()


@pytest.mark.parametrize(
    ("backbone", "split"), [("lambda_cnn", 0), ("lambda_cnn", 1), ("lambda_resnet26", 5)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_grad_cam_of_a_labn_is_its_class_activation_map(backbone, split, seed):
    model = make_labn(backbone, split=split, seed=seed, theta_alpha=0.4)
    images = make_images(2, seed=seed)
    weights = model.fc.weight.detach().numpy()
    maps = GradCam(model).explain(images, LABELS, NAMES)
    assert maps.max() > 0
    for features, label, result in zip(last_map(model, images), LABELS, maps, strict=True):
        _, height, width = features.shape
        cam = sum(w * f for w, f in zip(weights[label], features, strict=True)) / (height * width)
        expected = upsampled(cam.clip(min=0), 24, 32)
        np.testing.assert_allclose(result, expected, atol=ROUNDING * max(1, expected.max()))


def test_grad_cam_of_another_network_needs_a_layer():
    with pytest.raises(ValueError, match="layer: got None for a Sequential, must be the module"):
        GradCam(make_classifier())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_input_gradient_agrees_with_differences_of_the_pixels(seed):
    model, images = make_classifier(seed), make_images(2, 5, 4, seed)
    maps = InputGradient(model).explain(images, LABELS, NAMES)
    with torch.no_grad():
        for image, label, result in zip(images, LABELS, maps, strict=True):
            slopes = np.zeros(image.shape)
            for place in np.ndindex(image.shape):
                moved = torch.zeros_like(image)
                moved[place] = STEP
                above, below = model(torch.stack([image + moved, image - moved]))[:, label]
                slopes[place] = (above - below).item() / (2 * STEP)
            np.testing.assert_allclose(result, np.abs(slopes).max(axis=0), atol=STEP_ERROR)


@pytest.mark.parametrize("split", [0, 1])
def test_the_input_gradient_of_a_labn_is_that_of_the_perception_branch(split):
    model, images = make_labn(split=split, theta_alpha=0.3), make_images(1, 8, 8)
    result = InputGradient(model).explain(images, LABELS[:1], NAMES[:1])[0]
    row, column = divmod(int(result.argmax()), 8)
    slopes = []
    with torch.no_grad():
        for channel in range(images.shape[1]):
            moved = torch.zeros_like(images)
            moved[0, channel, row, column] = STEP
            rise = model(images + moved).logits - model(images - moved).logits
            slopes.append(abs(rise[0, LABELS[0]].item()) / (2 * STEP))
    np.testing.assert_allclose(result[row, column], max(slopes), rtol=1e-5)


@pytest.mark.parametrize("labels", [[0], [1], [2]])
def test_labels_of_any_integer_type_are_taken(labels):
    assert labels[0] < NUM_CLASSES
    model, images = make_labn(), make_images(1)
    for method in (GradCam(model), InputGradient(model)):
        short, long = (
            method.explain(images, torch.tensor(labels, dtype=dtype), NAMES[:1])
            for dtype in (torch.int32, torch.int64)
        )
        assert torch.equal(short, long)
