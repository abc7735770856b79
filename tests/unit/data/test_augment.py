from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from labn.data.augment import Augmentation, change_batch, draw_changes, rotate_and_zoom

ALL_ON = {
    "horizontal_flip": True,
    "vertical_flip": True,
    "rotation_deg": 30.0,
    "zoom": 0.2,
    "brightness": 0.3,
    "contrast": 0.4,
    "colour": 0.2,
}


def make_images(batch: int = 8, channels: int = 3, height: int = 12, width: int = 12):
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(0))


def augment(images, seed: int = 0, **changes):
    num_coloured = images.shape[1] if "colour" in changes else 0
    draws = draw_changes(len(images), torch.Generator().manual_seed(seed), num_coloured)
    return change_batch(images, Augmentation(**changes), draws)


def warp_replica(image: np.ndarray, angle_rad: float, factor: float) -> np.ndarray:
    """Look up each new pixel's place in the old image, in pixels, one by one, in float64."""
    _, height, width = image.shape
    out = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            x, y = column + 0.5 - width / 2, row + 0.5 - height / 2
            old_x = (math.cos(angle_rad) * x - math.sin(angle_rad) * y) / factor + width / 2 - 0.5
            old_y = (math.sin(angle_rad) * x + math.cos(angle_rad) * y) / factor + height / 2 - 0.5
            old_x, old_y = np.clip(old_x, 0, width - 1), np.clip(old_y, 0, height - 1)
            left, top = int(old_x), int(old_y)
            right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
            dx, dy = old_x - left, old_y - top
            out[:, row, column] = (
                image[:, top, left] * (1 - dx) * (1 - dy)
                + image[:, top, right] * dx * (1 - dy)
                + image[:, bottom, left] * (1 - dx) * dy
                + image[:, bottom, right] * dx * dy
            )
    return out


def test_nothing_switched_on_changes_nothing():
    images = make_images()
    assert torch.equal(augment(images), images)


def test_the_images_passed_are_not_changed():
    images = make_images()
    before = images.clone()
    augment(images, **ALL_ON)
    assert torch.equal(images, before)


@pytest.mark.parametrize(("change", "axis"), [("horizontal_flip", 2), ("vertical_flip", 1)])
def test_a_flip_mirrors_some_images_exactly_and_leaves_the_others(change, axis):
    images = make_images(batch=64)
    flipped = augment(images, **{change: True})
    kinds = [
        "mirrored" if torch.equal(new, old.flip(axis)) else "same" if torch.equal(new, old) else "?"
        for new, old in zip(flipped, images, strict=True)
    ]
    # A fair coin gives fewer than 16 or more than 48 of 64 with probability 1e-4.
    assert set(kinds) == {"mirrored", "same"} and 16 <= kinds.count("mirrored") <= 48


def test_the_same_generator_gives_the_same_bits():
    images = make_images()
    first, again, other = (augment(images, seed, **ALL_ON) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_each_image_has_its_own_change():
    images = make_images(batch=1).repeat(8, 1, 1, 1)
    changed = augment(images, **ALL_ON)
    assert all(not torch.equal(changed[i], changed[j]) for i in range(8) for j in range(i))


def test_switching_one_change_off_leaves_the_others_as_they_were():
    images = make_images()
    both = augment(images, horizontal_flip=True, brightness=0.5)
    flip, shift = augment(images, horizontal_flip=True), augment(images, brightness=0.5)
    # A sum and a difference in float32 of values below 8.
    assert torch.allclose(both - flip, shift - images, atol=2e-6)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_quarter_turn_only_moves_pixels(quarters):
    images = make_images()
    angle = torch.full((8,), quarters * math.pi / 2)
    turned = rotate_and_zoom(images, angle, torch.ones(8))
    # float32 grid places are off by about 1e-6 pixels, times differences of a few units.
    assert torch.allclose(turned, images.rot90(quarters, (2, 3)), atol=2e-5)


@pytest.mark.parametrize(("height", "width"), [(12, 12), (9, 14)])
def test_turning_and_zooming_agree_with_a_pixel_by_pixel_replica(height, width):
    images = make_images(4, 2, height, width).double()
    angles = torch.tensor([0.3, -1.1, 0.0, 2.5], dtype=torch.float64)
    factors = torch.tensor([1.0, 0.8, 1.3, 1.15], dtype=torch.float64)
    expected = [
        warp_replica(image.numpy(), angle, factor)
        for image, angle, factor in zip(images, angles.tolist(), factors.tolist(), strict=True)
    ]
    turned = rotate_and_zoom(images, angles, factors)
    np.testing.assert_allclose(turned.numpy(), np.stack(expected), atol=1e-10)


def test_a_zoom_above_one_enlarges():
    images = torch.zeros(1, 1, 16, 16)
    images[..., 6:10, 6:10] = 1
    larger = rotate_and_zoom(images, torch.zeros(1), torch.tensor([1.5]))
    assert larger.sum() > images.sum()


def test_what_comes_in_from_outside_repeats_the_border():
    images = torch.full((2, 1, 8, 8), 3.0)
    turned = rotate_and_zoom(images, torch.tensor([0.7, 0.1]), torch.tensor([0.5, 0.9]))
    assert torch.allclose(turned, images, atol=1e-5)


def test_rotation_and_zoom_stay_within_their_largest(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "labn.data.augment.rotate_and_zoom",
        lambda images, angle, factor: seen.append((angle, factor)) or images,
    )
    augment(make_images(batch=500, height=2, width=2), rotation_deg=30.0, zoom=0.1)
    angle, factor = seen[0]
    # The extremes of 500 uniform draws miss the ends by more than 5 % with probability 1e-5.
    assert 0.95 * 30 < math.degrees(angle.abs().max()) <= 30
    assert 0.9 <= factor.min() < 0.905 and 1.095 < factor.max() <= 1.1


def test_brightness_shifts_all_pixels_of_an_image_alike():
    images = make_images(batch=200, height=4, width=4)
    shifts = augment(images, brightness=0.3) - images
    per_image = shifts.mean(dim=(1, 2, 3))
    # Float32 differences of values below 8.
    assert torch.allclose(shifts, per_image.view(-1, 1, 1, 1).expand_as(shifts), atol=2e-6)
    assert 0.27 < per_image.abs().max() <= 0.3 + 1e-6 and per_image.min() < 0 < per_image.max()


def test_colour_shifts_each_channel_by_itself():
    images = make_images(batch=200, height=4, width=4)
    shifts = augment(images, colour=0.3) - images
    per_channel = shifts.mean(dim=(2, 3))
    assert torch.allclose(shifts, per_channel[..., None, None].expand_as(shifts), atol=2e-6)
    assert (per_channel.abs().amax(dim=0) > 0.27).all()
    assert per_channel.abs().max() <= 0.3 + 1e-6
    between = torch.corrcoef(per_channel.T)[~torch.eye(3, dtype=torch.bool)]
    assert between.abs().max() < 0.3


def test_contrast_scales_the_distance_from_the_images_mean():
    images = make_images(batch=200, height=4, width=4) + 1
    changed = augment(images, contrast=0.4).double().numpy()
    factors = []
    for old, new in zip(images.double().numpy(), changed, strict=True):
        assert new.mean() == pytest.approx(old.mean(), abs=1e-6)
        factors.append(new.std() / old.std())
        np.testing.assert_allclose(new - old.mean(), (old - old.mean()) * factors[-1], atol=1e-5)
    assert 0.6 - 1e-5 <= min(factors) < 0.64 and 1.36 < max(factors) <= 1.4 + 1e-5
