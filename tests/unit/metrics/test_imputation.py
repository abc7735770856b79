from __future__ import annotations

import numpy as np
import pytest
import torch

from labn.metrics import imputation
from labn.metrics.imputation import impute


def solved(image, removed):
    """Return the imputation without noise, by a dense system over all pixels."""
    channels, height, width = image.shape
    a, b = np.eye(height * width), np.zeros((height * width, channels))
    for place in range(height * width):
        row, column = divmod(place, width)
        if place not in removed:
            b[place] = image[:, row, column]
            continue
        weights = {
            (row + i, column + j): 0.5 if i and j else 1.0
            for i in (-1, 0, 1)
            for j in (-1, 0, 1)
            if (i or j) and 0 <= row + i < height and 0 <= column + j < width
        }
        for (y, x), weight in weights.items():
            a[place, y * width + x] -= weight / sum(weights.values())
    return np.linalg.solve(a, b).T.reshape(image.shape)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_removed_pixels_become_the_weighted_means_of_their_neighbours(share, monkeypatch):
    monkeypatch.setattr(imputation, "_NOISE", 0.0)
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.normal(size=(2, 7, 9)))
    removed = rng.permutation(63)[: round(63 * share)]

    found = impute(image, removed, rng)

    np.testing.assert_allclose(found, solved(image.numpy(), set(removed.tolist())), atol=2e-3)


def test_noise_is_of_the_removed_pixels_only_and_repeated_by_its_generator():
    image, removed = torch.zeros(1, 5, 5), np.array([0, 7, 24])

    found, again = (impute(image, removed, np.random.default_rng(1)) for _ in range(2))

    assert torch.equal(found, again)
    assert np.flatnonzero(found).tolist() == removed.tolist()
    assert found.abs().max() < 0.05
