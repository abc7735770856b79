"""Networks to explain, and slow replicas of computations that explanations share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from labn.metrics.faithfulness import Predict
from labn.model.network import LABN, build_model

NUM_CLASSES, CHANNELS = 3, 2


def make_labn(
    backbone: str = "lambda_cnn",
    *,
    split: int = 0,
    theta_alpha: float = 0.5,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> LABN:
    """Return a LABN in which every module has an effect: untrained bottlenecks are the identity."""
    torch.manual_seed(seed)
    model = build_model(backbone, NUM_CLASSES, CHANNELS, split, theta_alpha, branch_width=4)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model.to(dtype).eval()


def make_classifier(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(CHANNELS, 4, 3, padding=1),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, NUM_CLASSES),
    ).to(dtype)


def predictor(model: nn.Module) -> Predict:
    def predict(images: Tensor) -> Tensor:
        output = model(images)
        logits: Tensor = output if isinstance(output, Tensor) else output.logits
        return logits.softmax(dim=1)

    return predict


def make_images(
    num_images: int = 3,
    height: int = 24,
    width: int = 32,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (num_images, CHANNELS, height, width)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def bilinear_weights(size: int, length: int) -> np.ndarray:
    """Return the weight of each of ``size`` cells in each of ``length`` pixels, centres aligned."""
    weights = np.zeros((length, size))
    for pixel in range(length):
        place = min(max((pixel + 0.5) * size / length - 0.5, 0), size - 1)
        below = int(place)
        weights[pixel, below] += 1 - (place - below)
        weights[pixel, min(below + 1, size - 1)] += place - below
    return weights


def upsampled(map_hw: np.ndarray, height: int, width: int) -> np.ndarray:
    rows, columns = (
        bilinear_weights(*sizes) for sizes in zip(map_hw.shape, (height, width), strict=True)
    )
    result = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            result[i, j] = rows[i] @ map_hw @ columns[j]
    return result
