from __future__ import annotations

import pytest
import torch

from labn.data.contrast import local_contrast
from labn.tracking import labn_served

# The same float64 sums in another order.
ROUNDING = 1e-12


@pytest.mark.parametrize(("window", "reach"), [(0.25, 2), (0.5, 3), (0.01, 1)])
def test_local_contrast_is_four_times_the_difference_from_the_local_mean(window, reach):
    images = 0.1 + 0.9 * torch.rand(2, 3, 12, 17, dtype=torch.float64)
    expected = torch.empty_like(images)
    for row in range(12):
        for column in range(17):
            rows = slice(max(0, row - reach), row + reach + 1)
            columns = slice(max(0, column - reach), column + reach + 1)
            mean = images[..., rows, columns].mean(dim=(-2, -1))
            expected[..., row, column] = 4 * (images[..., row, column] - mean) + 0.5
    assert expected.min() < 0
    assert expected.max() > 1
    found = local_contrast(images, window)
    torch.testing.assert_close(found, expected.clamp(0, 1), atol=ROUNDING, rtol=0)


def test_local_contrast_does_not_depend_on_illumination():
    images = 0.1 + torch.rand(2, 3, 32, 32, dtype=torch.float64) / 3
    brighter = images + torch.tensor([0.5, 0.1, 0.3]).view(3, 1, 1)
    torch.testing.assert_close(
        local_contrast(brighter, 0.1), local_contrast(images, 0.1), atol=1e-6, rtol=0
    )


def test_there_is_no_contrast_at_the_edge_of_the_eye():
    images = torch.full((1, 3, 16, 16), 0.5)
    images[..., :5] = 0.02  # the black beside the eye
    images[0, 1, 8, 12] = 0.7
    found = local_contrast(images, 3 / 16)
    assert found[0, 1, 8, 12] > 0.9
    found[..., 6:11, 10:15] = 0.5  # where the window holds that pixel
    torch.testing.assert_close(found, torch.full_like(found, 0.5))


def test_one_black_pixel_takes_the_contrast_of_its_window():
    images = torch.full((1, 1, 64, 64), 0.5)
    images[..., 32, 32] = 0
    assert (local_contrast(images, 0.9) == 0.5).all()


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 16, 40), (3, 33, 17)])
@pytest.mark.parametrize("window", [0.01, 0.06, 0.25])
def test_a_served_network_sees_the_same_contrast(shape, window):
    image = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    image[:, :4] = 0
    found = labn_served._local_contrast(image, window)
    torch.testing.assert_close(found, local_contrast(image[None], window)[0])
