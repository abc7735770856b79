from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from explained import make_images

from labn.explain.controls import CentredGaussian, EdgeEnergy, RandomMap


def labels_of(images):
    return torch.zeros(len(images), dtype=torch.int64)


def explain(method, images, names=None):
    names = names or [f"image {number}" for number in range(len(images))]
    return method.explain(images, labels_of(images), names)


def test_an_images_noise_depends_on_its_name_and_the_seed_alone():
    images = make_images(3)
    first, second, third = explain(RandomMap(7), images, ["a", "no text \udcff", "c"])
    assert torch.equal(explain(RandomMap(7), -images[:2], ["c", "a"])[0], third)
    assert torch.equal(explain(RandomMap(7), images[:1], ["a"])[0], first)
    assert not torch.allclose(first, second)
    assert not torch.allclose(explain(RandomMap(8), images[:1], ["a"])[0], first)


def test_noise_is_uniform():
    pixels = explain(RandomMap(0), make_images(1, 200, 200)).flatten().sort().values
    expected = (torch.arange(40_000, dtype=torch.float64) + 0.5) / 40_000
    # Kolmogorov's statistic at one in ten thousand: 2.23 / sqrt(n).
    assert (pixels - expected).abs().max() < 2.23 / math.sqrt(40_000)


@pytest.mark.parametrize(("height", "width"), [(5, 8), (16, 16)])
def test_the_bump_falls_off_by_a_quarter_of_the_side(height, width):
    (result,) = explain(CentredGaussian(), make_images(1, height, width))
    for i in range(height):
        for j in range(width):
            y, x = (i + 0.5 - height / 2) / (height / 4), (j + 0.5 - width / 2) / (width / 4)
            assert result[i, j].item() == pytest.approx(math.exp(-(y**2 + x**2) / 2), abs=1e-12)


def test_the_edges_of_a_step():
    # Sobel's filter answers 4 in the two columns that see the step, and its square is smeared
    # by (1, 4, 6, 4, 1) / 16.
    images = torch.zeros(1, 3, 8, 12)
    images[..., 6:] = 1
    row = torch.tensor([0.0, 0, 0, 1, 5, 10, 10, 5, 1, 0, 0, 0])
    torch.testing.assert_close(explain(EdgeEnergy(), images), row.expand(1, 8, 12))
    torch.testing.assert_close(explain(EdgeEnergy(), images.mT), row[:, None].expand(1, 12, 8))


def test_edges_agree_with_a_replica_pixel_by_pixel():
    image = make_images(1, 7, 9)
    grey = image[0].numpy().mean(axis=0)

    def at(values, i, j):
        return values[min(max(i, 0), 6), min(max(j, 0), 8)]

    energy = np.zeros((7, 9))
    for i, j in np.ndindex(7, 9):
        across = sum(
            weight * (at(grey, i + k, j + 1) - at(grey, i + k, j - 1))
            for k, weight in ((-1, 1), (0, 2), (1, 1))
        )
        down = sum(
            weight * (at(grey, i + 1, j + k) - at(grey, i - 1, j + k))
            for k, weight in ((-1, 1), (0, 2), (1, 1))
        )
        energy[i, j] = across**2 + down**2
    smooth = np.zeros((7, 9))
    for i, j in np.ndindex(7, 9):
        for y in range(-2, 3):
            for x in range(-2, 3):
                share = math.comb(4, y + 2) * math.comb(4, x + 2) / 256
                smooth[i, j] += share * at(energy, i + y, j + x)
    np.testing.assert_allclose(explain(EdgeEnergy(), image)[0], smooth, atol=1e-12)


def test_a_flat_image_has_no_edges():
    assert torch.equal(explain(EdgeEnergy(), torch.full((1, 2, 9, 9), 3.0)), torch.zeros(1, 9, 9))
