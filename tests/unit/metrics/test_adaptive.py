from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labn.metrics.adaptive import adaptive_insertion_deletion
from labn.metrics.faithfulness import patch_insertion_deletion

# Sums in another order, in the same float64.
ROUNDING = 1e-12

AREAS = ("insertion_auc", "deletion_auc")
ERRORS = ("insertion_error", "deletion_error")


class Table:
    """A classifier whose y depends only on how many pixels of an image of ones are shown.

    So the insertion curve is the table itself, and the deletion curve the table read backwards.
    A constant map takes the first pixel first, so that the frames of the two curves differ.
    """

    def __init__(self, y):
        self.y = torch.as_tensor(np.asarray(y, dtype=np.float64))
        self.counts, self.is_insertion = [], []
        self.batch_sizes = []

    def __call__(self, images):
        counts = images.flatten(1).sum(dim=1).long()
        self.counts += counts.tolist()
        self.is_insertion += images[:, 0, 0, 0].bool().tolist()
        self.batch_sizes.append(len(images))
        return torch.stack([1 - self.y[counts], self.y[counts]], dim=1)

    @property
    def area(self):
        return sum((self.y[:-1] + self.y[1:]).tolist()) / 2 / (len(self.y) - 1)


def sample(table, tolerance, num_images=1, **settings):
    """Score images of as many pixels as the table has steps."""
    width = next(w for w in (64, 32, 16, 10, 1) if (len(table.y) - 1) % w == 0)
    images = torch.ones(num_images, 1, (len(table.y) - 1) // width, width)
    return adaptive_insertion_deletion(
        table,
        images,
        images[:, 0],
        torch.ones(num_images, dtype=torch.int64),
        patch_size=1,
        baseline=0.0,
        tolerance=tolerance,
        **settings,
    )


SHARES = np.arange(1025) / 1024
CURVES = {
    "flat": np.full(1025, 0.3),
    "straight": SHARES,
    "sigmoid": 1 / (1 + np.exp(-20 * (SHARES - 0.3))),
    "saturating": 1 - np.exp(-8 * SHARES),
    "overshooting": 0.5 + 0.4 * np.sin(5 * SHARES) * np.exp(-SHARES),
    "wave": 0.5 + 0.5 * np.cos(12 * SHARES),
    "early step": (SHARES > 0.01).astype(float),
    "late step": (SHARES > 0.777).astype(float),
    "last step": (SHARES == 1).astype(float),
    "two steps": ((SHARES > 0.2) & (SHARES < 0.61)).astype(float),
    "staircase": np.floor(SHARES * 5) / 5,
    "step and slope": 0.3 * SHARES + 0.7 * (SHARES > 0.45),
}


@pytest.mark.parametrize("tolerance", [0.02, 0.005, 0.001])
@pytest.mark.parametrize("name", CURVES)
def test_areas_are_within_the_tolerance_of_those_over_every_n(name, tolerance):
    table = Table(CURVES[name])
    scores = sample(table, tolerance)
    for area, error in zip(AREAS, ERRORS, strict=True):
        assert getattr(scores, area).item() == pytest.approx(table.area, abs=tolerance)
        assert getattr(scores, error).item() <= tolerance
    # A fifth of both curves' every point.
    assert scores.num_forwards.item() == len(table.counts) < 2 * 1025 / 5


def replica(table, y, is_insertion):
    """The trapezoidal area through the points of one curve which were shown."""
    last = len(y) - 1
    frames = zip(table.counts, table.is_insertion, strict=True)
    shown = {n if is_insertion else last - n for n, inserted in frames if inserted == is_insertion}
    points = sorted(shown | {0, last})
    return sum((y[a] + y[b]) / 2 * (b - a) for a, b in itertools.pairwise(points)) / last


@pytest.mark.parametrize("name", CURVES)
def test_the_area_is_that_through_the_points_which_were_shown(name):
    table = Table(CURVES[name])
    scores = sample(table, 0.002)
    insertion = replica(table, table.y.tolist(), True)
    deletion = replica(table, table.y.flip(0).tolist(), False)
    assert scores.insertion_auc.item() == pytest.approx(insertion, abs=ROUNDING)
    assert scores.deletion_auc.item() == pytest.approx(deletion, abs=ROUNDING)
    assert scores.pid.item() == pytest.approx(insertion - deletion, abs=ROUNDING)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=100, max_size=100),
    st.sampled_from([0.05, 0.01, 0.001]),
    st.booleans(),
)
def test_the_estimate_bounds_the_error_of_any_convex_or_concave_curve(slopes, tolerance, is_convex):
    y = np.concatenate([[0], np.cumsum(sorted(slopes, reverse=not is_convex))])
    table = Table((y - y.min()) / max(np.ptp(y), 1))
    assert_bounded(table, tolerance)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 320), st.floats(0, 1), st.floats(0, 1), st.sampled_from([0.05, 0.01, 0.001]))
def test_the_estimate_bounds_the_error_of_any_single_jump(place, before, after, tolerance):
    assert_bounded(Table(np.where(np.arange(321) < place, before, after)), tolerance)


def assert_bounded(table, tolerance):
    scores = sample(table, tolerance)
    for area, error in zip(AREAS, ERRORS, strict=True):
        distance = abs(getattr(scores, area).item() - table.area)
        assert distance <= getattr(scores, error).item() + ROUNDING
        assert getattr(scores, error).item() <= tolerance


def test_a_flat_curve_needs_the_first_points_alone():
    # 17 points a curve, whose ends are shared.
    assert sample(Table(CURVES["flat"]), 0.001).num_forwards.tolist() == [2 * 17 - 2]


def test_a_step_costs_a_hundredth_of_every_n():
    assert sample(Table(np.arange(4097) > 1234), 1e-3).num_forwards.item() < 2 * 4097 / 100


def test_a_smooth_curve_is_refined_only_where_it_bends():
    # Halving every panel alike would take 2 x 65 points for this tolerance.
    assert sample(Table(CURVES["sigmoid"]), 1e-3).num_forwards.item() < 2 * 1025 / 20


def test_jagged_curves_keep_their_tolerance_mostly():
    # Random walks: no panel is smooth, so the estimate is a guess, see the module.
    steps = np.random.default_rng(0).standard_normal((40, 257))
    tables = [Table(1 / (1 + np.exp(-walk))) for walk in np.cumsum(steps, axis=1) / 3]
    tolerance = 0.005
    distances = [abs(sample(t, tolerance).insertion_auc.item() - t.area) for t in tables]
    assert np.mean(np.array(distances) <= tolerance) >= 0.95
    assert max(distances) <= 2 * tolerance


@pytest.mark.parametrize("num_pixels", [1, 2, 9, 10, 100])
def test_a_jagged_curve_is_sampled_at_every_n(num_pixels):
    table = Table(np.random.default_rng(0).random(num_pixels + 1))
    scores = sample(table, 1e-12)
    assert scores.insertion_auc.item() == pytest.approx(table.area, abs=ROUNDING)
    assert scores.deletion_auc.item() == pytest.approx(table.area, abs=ROUNDING)
    assert scores.insertion_error.tolist() == scores.deletion_error.tolist() == [0]
    assert sorted(table.counts) == sorted([0, *[*range(1, num_pixels)] * 2, num_pixels])


@pytest.mark.parametrize(
    ("max_points", "num_points"),
    # Panels are halved by two points at a time.
    [(3, 3), (4, 3), (5, 5), (16, 15), (17, 17), (18, 17), (19, 19), (101, 101), (1000, 101)],
)
def test_no_curve_has_more_points_than_allowed_and_the_estimate_shows_it(max_points, num_points):
    table = Table(np.random.default_rng(1).random(101))
    scores = sample(table, 1e-12, max_points=max_points)
    # One of a curve's ends is the other's first or last frame.
    assert table.is_insertion.count(True) + 1 == num_points
    assert table.is_insertion.count(False) + 1 == num_points
    for error in ERRORS:
        assert (getattr(scores, error).item() > 1e-12) == (num_points < 101)


def test_a_spike_between_the_first_points_goes_unseen():
    # The first points lie 64 pixels apart, so the estimate is blind here, see the module.
    y = np.zeros(1025)
    y[65:128] = 1
    scores = sample(Table(y), 1e-3)
    assert scores.insertion_auc.item() == scores.insertion_error.item() == 0
    y[128] = 1
    assert sample(Table(y), 1e-3).insertion_auc.item() == pytest.approx(64 / 1024, abs=1e-3)


class Network:
    """A small nonlinear classifier in float64, whose every pixel matters, if not alike."""

    def __init__(self, seed, num_pixels):
        rng = np.random.default_rng(seed)
        self.hidden = torch.from_numpy(rng.random((num_pixels, 6)) / 50)
        self.readout = torch.from_numpy(4 * rng.standard_normal((6, 3)))
        self.batch_sizes = []

    def __call__(self, images):
        assert torch.is_inference_mode_enabled()
        self.batch_sizes.append(len(images))
        features = torch.tanh(images.double().flatten(1) @ self.hidden)
        return (features @ self.readout).softmax(dim=1)


def make_case(seed, num_images=3):
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.random((num_images, 2, 15, 17)))
    saliency = torch.from_numpy(rng.random((num_images, 1, 15, 17)))
    labels = torch.from_numpy(rng.integers(0, 3, num_images))
    baseline = torch.from_numpy(-rng.random((2, 15, 17)))
    return Network(seed, 2 * 15 * 17), images, saliency, labels, baseline


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("patch_size", "tolerance"), [(1, 0.02), (2, 0.01), (4, 0.005)])
def test_several_images_score_as_they_do_over_every_n(seed, patch_size, tolerance):
    network, images, saliency, labels, baseline = make_case(seed)
    settings = {"patch_size": patch_size, "baseline": baseline}
    scores = adaptive_insertion_deletion(
        network, images, saliency, labels, **settings, tolerance=tolerance
    )
    assert scores.num_forwards.sum().item() == sum(network.batch_sizes)
    full = patch_insertion_deletion(network, images, saliency, labels, **settings)
    for area in AREAS:
        torch.testing.assert_close(
            getattr(scores, area), getattr(full, area), rtol=0, atol=tolerance
        )
    torch.testing.assert_close(scores.pid, scores.insertion_auc - scores.deletion_auc)
    assert (scores.num_forwards < 2 * full.insertion_curve.shape[1]).all()


def test_with_every_n_the_scores_are_those_of_the_exhaustive_curves():
    network, images, saliency, labels, baseline = make_case(3)
    settings = {"patch_size": 3, "baseline": baseline}
    scores = adaptive_insertion_deletion(
        network, images, saliency, labels, **settings, tolerance=1e-15
    )
    full = patch_insertion_deletion(network, images, saliency, labels, **settings)
    for name in ("pid", *AREAS):
        torch.testing.assert_close(getattr(scores, name), getattr(full, name), rtol=0, atol=1e-12)


def test_each_image_is_sampled_as_if_it_were_alone():
    network, images, saliency, labels, baseline = make_case(4)
    settings = {"patch_size": 2, "baseline": baseline, "tolerance": 0.003}
    together = adaptive_insertion_deletion(network, images, saliency, labels, **settings)
    for i in range(3):
        image = slice(i, i + 1)
        alone = adaptive_insertion_deletion(
            network, images[image], saliency[image], labels[image], **settings, batch_size=7
        )
        for name, value in vars(alone).items():
            # Matrix products may round differently at another place of the batch.
            torch.testing.assert_close(getattr(together, name)[image], value, rtol=0, atol=1e-12)


def test_batches_run_on_across_images_and_curves():
    table = Table(CURVES["flat"])
    sample(table, 0.01, num_images=3, batch_size=10)
    # Three images' ends, then the 1, 2, 4 and 8 midpoints of their two curves' panels.
    assert table.batch_sizes == [6, 6, 10, 2, *[10] * 2, 4, *[10] * 4, 8]


def test_no_images_give_empty_scores():
    table = Table(CURVES["flat"])
    scores = sample(table, 0.01, num_images=0)
    assert all(values.shape == (0,) for values in vars(scores).values())
    assert scores.num_forwards.dtype == torch.int64
    assert scores.pid.dtype == torch.float64
    assert table.counts == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tolerance": 0.0}, "tolerance: got 0.0, must be above 0"),
        ({"tolerance": math.nan}, "tolerance: got nan"),
        ({"max_points": 2}, "max_points: got 2, must be at least 3, or None for no limit"),
        ({"batch_size": 0}, "batch_size: got 0, must be at least 1"),
        ({"patch_size": 16}, "patch_size: got 16, must be 1 to 15"),
        (
            {"saliency": torch.zeros(3, 15, 16)},
            r"saliency: got torch.float32 of shape \(3, 15, 16\)",
        ),
        ({"predict": lambda x: x.flatten(1)}, "predict: .* in row 0, must be probabilities"),
    ],
)
def test_what_breaks_a_rule_is_refused_in_one_line_that_names_it(changes, message):
    network, images, saliency, labels, baseline = make_case(5)
    arguments = {
        "predict": network,
        "images": images,
        "saliency": saliency,
        "labels": labels,
        "patch_size": 2,
        "baseline": baseline,
        "tolerance": 0.1,
    } | changes
    with pytest.raises(ValueError, match=message) as raised:
        adaptive_insertion_deletion(**arguments)
    assert "\n" not in str(raised.value)
