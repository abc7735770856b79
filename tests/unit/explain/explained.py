"""Networks to explain, and slow replicas of what explanations share."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from labn.model.network import build_model

NUM_CLASSES, CHANNELS = 3, 2


def make_labn(backbone="lambda_cnn", *, split=0, theta_alpha=0.5, seed=0, dtype=torch.float64):
    """A LABN whose every part has an effect: untrained bottlenecks would be the identity."""
    torch.manual_seed(seed)
    model = build_model(backbone, NUM_CLASSES, CHANNELS, split, theta_alpha, branch_width=4)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model.to(dtype).eval()


def make_classifier(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(CHANNELS, 4, 3, padding=1),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, NUM_CLASSES),
    ).to(dtype)


def predictor(model):
    def predict(images):
        output = model(images)
        logits = output if isinstance(output, torch.Tensor) else output.logits
        return logits.softmax(dim=1)

    return predict


def make_images(num_images=3, height=24, width=32, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shape = (num_images, CHANNELS, height, width)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def bilinear_weights(size, length):
    """What each of ``size`` cells weighs in each of ``length`` pixels (pixel centres aligned)."""
    weights = np.zeros((length, size))
    for pixel in range(length):
        place = min(max((pixel + 0.5) * size / length - 0.5, 0), size - 1)
        below = int(place)
        weights[pixel, below] += 1 - (place - below)
        weights[pixel, min(below + 1, size - 1)] += place - below
    return weights


def upsampled(map_hw, height, width):
    rows, columns = (
        bilinear_weights(*sizes) for sizes in zip(map_hw.shape, (height, width), strict=True)
    )
    result = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            result[i, j] = rows[i] @ map_hw @ columns[j]
    return result
