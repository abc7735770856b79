from __future__ import annotations

import io
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labn.data import duplicates
from labn.data.duplicates import fingerprint, near_groups

ONE_SUBSET = np.zeros(40, np.int_)


def photograph(seed: int, size: int = 64) -> np.ndarray:
    """A smooth random picture, so that a codec changes it as little as it does a photograph."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def saved_as_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def resized(image: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def slow_distances(thumbnails: np.ndarray) -> np.ndarray:
    """The definition, pair by pair, with the mean of the others computed again each time."""
    units = [t.astype(np.float64).ravel() - t.astype(np.float64).mean() for t in thumbnails]
    units = [unit / np.sqrt((unit**2).sum()) for unit in units]
    distances = np.full((len(units), len(units)), np.inf)
    for i, j in itertools.combinations(range(len(units)), 2):
        others = [unit for position, unit in enumerate(units) if position not in (i, j)]
        mean = np.mean(others, axis=0) if others else 0
        a, b = units[i] - mean, units[j] - mean
        distances[i, j] = 1 - (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())
    return distances


def slow_groups(distances: np.ndarray, threshold: float) -> list[list[int]]:
    groups = [{position} for position in range(len(distances))]
    for i, j in zip(*np.nonzero(distances < threshold), strict=True):
        joined = [group for group in groups if i in group or j in group]
        groups = [group for group in groups if group not in joined] + [set().union(*joined)]
    return sorted(sorted(map(int, group)) for group in groups if len(group) > 1)


@pytest.mark.parametrize("num_images", [2, 3, 4, 11, 40])
@pytest.mark.parametrize("block", [7, 1024])
def test_near_groups_follow_the_definition(num_images, block, monkeypatch):
    monkeypatch.setattr(duplicates, "_BLOCK", block)
    rng = np.random.default_rng(num_images)
    thumbnails = (100 + 20 * rng.normal(size=(num_images, 6, 6))).astype(np.float32)
    subsets = rng.integers(0, 3, num_images)
    distances = slow_distances(thumbnails)
    within = np.where(subsets[:, None] == subsets, distances, np.inf)
    across = np.where(subsets[:, None] == subsets, np.inf, distances)
    ordered = np.sort(distances[np.isfinite(distances)])
    for rank in (0, len(ordered) // 20, len(ordered) // 8):
        # Halfway between two distances, which float32 cannot then confuse.
        upper = ordered[rank + 1] if rank + 1 < len(ordered) else ordered[rank] + 0.1
        threshold = (ordered[rank] + upper) / 2
        expected = [*slow_groups(within, threshold), *slow_groups(across, threshold)]
        assert near_groups(thumbnails, subsets, threshold) == expected


def test_groups_found_in_different_blocks_are_joined(monkeypatch):
    monkeypatch.setattr(duplicates, "_BLOCK", 2)
    rng = np.random.default_rng(0)
    originals = rng.normal(size=(6, 8, 8)).astype(np.float32)
    order = [0, 1, 2, 3, 0, 4, 1, 5, 0]
    noise = 1e-3 * rng.normal(size=(len(order), 8, 8)).astype(np.float32)
    assert near_groups(originals[order] + noise, ONE_SUBSET[:9]) == [[0, 4, 8], [1, 6]]


def test_a_series_cut_in_two_yields_a_group_at_the_cut():
    first, last = np.random.default_rng(1).normal(size=(2, 32, 32))
    angles = np.deg2rad(np.arange(0, 360, 5))[:, None, None]
    frames = first * np.cos(angles) + last * np.sin(angles)
    # Neighbours are 1 - cos(5 degrees) = 0.004 apart, the next but one 0.015. The turn is whole,
    # which makes the first and the last of them neighbours too.
    groups = near_groups(frames.astype(np.float32), np.repeat([0, 1], 36), threshold=0.008)
    assert groups == [list(range(36)), list(range(36, 72)), [0, 71], [35, 36]]


@pytest.mark.parametrize("num_images", [0, 1])
def test_fewer_than_two_images_are_never_near(num_images):
    assert near_groups(np.ones((num_images, 32, 32), np.float32), ONE_SUBSET[:num_images]) == []


@pytest.mark.parametrize("num_others", [0, 1, 5, 30])
@pytest.mark.parametrize(
    "change",
    [
        lambda image: saved_as_jpeg(image, quality=60),
        lambda image: resized(image, 128),
        lambda image: resized(image, 48),
        lambda image: (image * 0.8).astype(np.uint8),
    ],
    ids=["recompressed", "enlarged", "shrunk", "darkened"],
)
def test_a_changed_copy_is_near_its_original_and_nothing_else(change, num_others):
    images = [photograph(seed) for seed in range(num_others + 1)]
    images.append(change(images[0]))
    thumbnails = np.stack([fingerprint(image).thumbnail for image in images])
    assert near_groups(thumbnails, ONE_SUBSET[: len(images)]) == [[0, num_others + 1]]


def test_features_common_to_the_whole_set_bring_no_pair_near():
    rng = np.random.default_rng(3)
    disc = 100 * rng.normal(size=(32, 32))
    thumbnails = (disc + rng.normal(size=(20, 32, 32))).astype(np.float32)
    raw = np.corrcoef(thumbnails.reshape(20, -1))
    assert raw.min() > 0.999
    assert near_groups(thumbnails, ONE_SUBSET[:20]) == []


def test_the_digest_depends_on_pixels_and_shape():
    image = photograph(0)
    changed = image.copy()
    changed[3, 4, 1] ^= 1
    turned = np.zeros((4, 9, 1), np.uint8), np.zeros((9, 4, 1), np.uint8)
    assert fingerprint(image).digest == fingerprint(np.asfortranarray(image)).digest
    assert fingerprint(image).digest != fingerprint(changed).digest
    assert fingerprint(turned[0]).digest != fingerprint(turned[1]).digest


def test_the_thumbnail_is_the_mean_of_each_cell():
    grey = np.random.default_rng(1).integers(0, 256, (96, 64, 1), dtype=np.uint8)
    cells = grey.astype(np.float64).reshape(32, 3, 32, 2).mean(axis=(1, 3))
    trace = fingerprint(grey)
    assert trace.size == (96, 64)
    # Float32 means of grey levels up to 255.
    np.testing.assert_allclose(trace.thumbnail, cells, atol=1e-4)


def test_an_image_is_blank_when_no_channel_varies_beyond_noise():
    level = np.full((40, 40, 3), (200, 30, 90), np.uint8)
    noisy, marked = level.copy(), level.copy()
    noisy[::2] += 3
    marked[0, 0, 2] += 4
    assert fingerprint(level).is_blank
    assert fingerprint(noisy).is_blank
    assert not fingerprint(marked).is_blank
    assert fingerprint(level[:, :, :1]).is_blank


@pytest.mark.real_data
def test_the_threshold_separates_changed_copies_of_fundus_photographs_from_other_photographs():
    root = os.environ.get("LABN_TEST_DATA")
    if not root:
        pytest.skip("LABN_TEST_DATA names no folder of public data")
    paths = sorted((Path(root) / "idrid256_dev").rglob("IDRiD_*.jpg"))
    images = {fingerprint(i).digest: i for i in (np.asarray(Image.open(p)) for p in paths)}
    photographs = list(images.values())
    changes = [
        lambda image: saved_as_jpeg(image, quality=40),
        lambda image: saved_as_jpeg(resized(image, 128), quality=90),
        lambda image: saved_as_jpeg(resized(image, 512), quality=90),
        lambda image: np.minimum(image * 1.1, 255).astype(np.uint8),
    ]
    originals = range(0, len(photographs), 7)
    copies = [changes[number % 4](photographs[i]) for number, i in enumerate(originals)]
    thumbnails = np.stack([fingerprint(image).thumbnail for image in photographs + copies])
    pairs = [[i, len(photographs) + number] for number, i in enumerate(originals)]
    assert near_groups(thumbnails, np.zeros(len(thumbnails), np.int_)) == pairs
