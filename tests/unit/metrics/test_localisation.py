from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from labn.metrics.localisation import field_distance, localisation

# The replica sums in another order, in the same float64.
ROUNDING = 1e-12

SCORES = ("pointing_hit", "pointing_chance", "energy_inside", "area_share", "auroc")


def make_case(seed, *, num_images=4, height=6, width=7, levels=None):
    """Random maps and masks; few `levels` make tied pixels."""
    rng = np.random.default_rng(seed)
    saliency = rng.random((num_images, height, width))
    if levels is not None:
        saliency = np.floor(saliency * levels)
    return saliency, rng.random((num_images, height, width)) < 0.3


def score(saliency, masks):
    return localisation(torch.as_tensor(saliency), torch.as_tensor(masks))


def replica(saliency, mask):
    """One image's scores, pixel by pixel and pair by pair."""
    pixels = [(i, j) for i in range(len(saliency)) for j in range(len(saliency[0]))]
    inside = [p for p in pixels if mask[p]]
    outside = [p for p in pixels if not mask[p]]
    highest = [p for p in pixels if saliency[p] == max(saliency[q] for q in pixels)]
    wins = [(saliency[p] > saliency[q]) + (saliency[p] == saliency[q]) / 2
            for p in inside for q in outside]  # fmt: skip
    return {
        "pointing_hit": sum(p in inside for p in highest) / len(highest),
        "pointing_chance": len(inside) / len(pixels),
        "energy_inside": sum(saliency[p] for p in inside) / sum(saliency[p] for p in pixels),
        "area_share": len(inside) / len(pixels),
        "auroc": sum(wins) / len(wins),
    }


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("levels", [None, 2, 5])
def test_scores_agree_with_a_replica_that_counts_pixels_and_pairs(seed, levels):
    saliency, masks = make_case(seed, levels=levels)
    scores = score(saliency, masks)
    for i in range(len(saliency)):
        expected = replica(saliency[i], masks[i])
        for name in SCORES:
            assert getattr(scores, name)[i] == pytest.approx(expected[name], abs=ROUNDING), name


def test_scores_by_hand():
    saliency = torch.tensor([[[4.0, 4.0], [0.0, 2.0]]])
    masks = torch.tensor([[[True, False], [False, True]]])
    scores = score(saliency, masks)
    # One of two highest pixels; 6 of 10; pairs 4=4, 4>0, 2<4, 2>0.
    assert scores.pointing_hit.tolist() == [0.5]
    assert scores.energy_inside.tolist() == [0.6]
    assert scores.area_share.tolist() == scores.pointing_chance.tolist() == [0.5]
    assert scores.auroc.tolist() == [2.5 / 4]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    arrays(np.float64, (1, 4, 5), elements=st.integers(0, 9).map(float)),
    arrays(np.bool_, (1, 4, 5)),
)
def test_a_mask_and_its_complement_share_out_each_score(saliency, masks):
    inside, outside = score(saliency, masks), score(saliency, ~masks)
    total = {name: (getattr(inside, name) + getattr(outside, name)).item() for name in SCORES}
    assert total.pop("area_share") == 1
    if not masks.any() or masks.all():
        assert all(map(math.isnan, total.values()))
        return
    is_zero = math.isnan(total["energy_inside"])
    assert is_zero == (not saliency.any())
    assert is_zero or total["energy_inside"] == pytest.approx(1, abs=ROUNDING)
    for name in ("pointing_hit", "pointing_chance", "auroc"):
        assert total[name] == pytest.approx(1, abs=ROUNDING)


def test_only_energy_depends_on_more_than_the_order_of_pixels():
    saliency, masks = make_case(3)
    scores, stretched = score(saliency, masks), score(np.exp(3 * saliency), masks)
    assert torch.equal(scores.auroc, stretched.auroc)
    assert torch.equal(scores.pointing_hit, stretched.pointing_hit)
    assert (scores.energy_inside - stretched.energy_inside).abs().min() > 1e-3


def test_a_constant_map_scores_what_chance_does():
    _, masks = make_case(4)
    scores = score(np.full(masks.shape, 0.25), masks)
    assert scores.auroc.tolist() == [0.5] * 4
    for name in ("pointing_hit", "pointing_chance", "energy_inside"):
        np.testing.assert_allclose(getattr(scores, name), scores.area_share, atol=ROUNDING)


def test_only_the_area_is_defined_for_an_empty_or_a_full_mask_and_no_energy_for_a_zero_map():
    saliency = torch.ones(4, 2, 2)
    saliency[3] = 0
    masks = torch.zeros(4, 2, 2, dtype=torch.bool)
    masks[1], masks[2:, 0, 0] = True, True
    scores = score(saliency, masks)
    undefined = {name: getattr(scores, name).isnan().tolist() for name in SCORES}
    assert undefined.pop("area_share") == [False] * 4
    assert undefined.pop("energy_inside") == [True, True, False, True]
    assert list(undefined.values()) == [[True, True, False, False]] * 3
    assert scores.area_share.tolist() == [0, 1, 0.25, 0.25]
    assert scores.energy_inside[2] == scores.pointing_hit[2] == 0.25


def test_no_images_have_no_scores():
    scores = score(torch.zeros(0, 3, 3), torch.zeros(0, 3, 3, dtype=torch.bool))
    assert all(getattr(scores, name).shape == (0,) for name in SCORES)


def test_maps_of_any_precision_are_scored_in_their_own():
    saliency, masks = make_case(5)
    # These steps vanish in float32.
    steps = 1 + 1e-12 * np.arange(42.0).reshape(1, 6, 7)
    assert score(steps, masks[:1]).auroc.item() == pytest.approx(
        replica(steps[0], masks[0])["auroc"], abs=ROUNDING
    )
    half = torch.as_tensor(saliency).half()
    assert torch.equal(score(half, masks).auroc, score(half.double(), masks).auroc)
    assert score(half.requires_grad_(), masks).energy_inside.dtype == torch.float64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"saliency": torch.zeros(2, 3, 4)}, r"got shapes \(2, 3, 4\) and \(2, 3, 3\), must both"),
        ({"saliency": torch.zeros(2, 1, 3, 3), "masks": torch.zeros(2, 1, 3, 3) > 0}, "got shapes"),
        ({"saliency": torch.full((2, 3, 3), math.nan)}, "NaN or infinity in the map of image 0"),
        (
            {"saliency": torch.zeros(2, 3, 3).index_fill(0, torch.tensor(1), -0.5)},
            "got -0.5 in the map of image 1, must not be below 0",
        ),
    ],
)
def test_what_breaks_a_rule_is_refused_in_one_line_that_names_it(changes, message):
    arguments = {"saliency": torch.zeros(2, 3, 3), "masks": torch.zeros(2, 3, 3) > 0} | changes
    with pytest.raises(ValueError, match=message) as raised:
        localisation(**arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
@pytest.mark.parametrize("inside", [1, 255])
def test_masks_of_0_and_1_or_255_score_as_booleans_do(dtype, inside):
    saliency, masks = make_case(6)
    expected, scores = (
        score(saliency, masks),
        score(saliency, torch.tensor(masks).to(dtype) * inside),
    )
    assert all(torch.equal(getattr(scores, name), getattr(expected, name)) for name in SCORES)


def test_maps_of_integers_are_scored_and_maps_without_pixels_refused():
    saliency, masks = make_case(7, levels=9)
    expected, scores = score(saliency, masks), score(saliency.astype(np.uint8), masks)
    assert all(torch.equal(getattr(scores, name), getattr(expected, name)) for name in SCORES)
    with pytest.raises(ValueError, match=r"got shapes \(2, 0, 3\).*torch.float32"):
        localisation(torch.zeros(2, 0, 3), torch.zeros(2, 0, 3) > 0)


def test_the_field_distance_is_to_the_nearest_strong_pixel_against_an_even_map():
    rng = np.random.default_rng(2)
    strength = rng.uniform(0, 170, (7, 9))
    strength[0, :3] = np.nan
    maps = np.stack([rng.random((7, 9)), np.ones((7, 9)), strength >= 150, np.zeros((7, 9))])

    found = field_distance(maps, strength)

    strong = [place for place, value in np.ndenumerate(strength) if value >= 150]
    distances = np.array(
        [min(math.dist(place, one) for one in strong) for place in np.ndindex(strength.shape)]
    )
    weighted = maps[0].ravel() @ distances / maps[0].sum()
    assert found[:3] == pytest.approx([weighted / distances.mean(), 1, 0], abs=ROUNDING)
    assert math.isnan(found[3])
    for constant in (149.0, 150.0):
        assert np.isnan(field_distance(maps, np.full((7, 9), constant))).all()
