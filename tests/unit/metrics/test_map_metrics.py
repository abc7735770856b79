"""Each metric against an independent replica, or a case known by hand."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats

from labn.errors import UserError
from labn.metrics.explained import Explained
from labn.metrics.imputation import impute
from labn.metrics.map_metrics import METRICS, find_metric, resolve_metrics

SIZE, PATCH = 12, 4
GENERATOR = np.random.default_rng(3)
WEIGHTS = torch.from_numpy(GENERATOR.normal(size=(2, SIZE, SIZE)))
IMAGE = torch.from_numpy(GENERATOR.normal(size=(2, SIZE, SIZE)))
BASELINE = torch.full_like(IMAGE, 0.1)
MAPS = GENERATOR.random((3, SIZE, SIZE))
MASK = np.zeros((SIZE, SIZE), dtype=np.bool_)
MASK[2:5, 3:9] = True
FIELD = np.where(MASK, 400.0, 10.0)


def predict(images):
    """A logistic regression of the pixels."""
    logit = (images * WEIGHTS).sum(dim=(1, 2, 3)) / 10
    return torch.stack([-logit, logit], dim=1).softmax(dim=1)


def fixed(own, image):
    return torch.from_numpy(own)


def explained(maps=MAPS, explain=None, mask=MASK, image=IMAGE, **changes):
    explain = explain or [partial(fixed, one) for one in maps]
    given = {"predict": predict, "image": image, "label": 1, "name": "a", "maps": maps}
    given |= {"explain": explain, "baseline": BASELINE, "patch_size": PATCH, "mask": mask}
    given |= {"field": FIELD}
    return Explained(**(given | changes))


def probability(image):
    return predict(image[None])[0, 1].item()


def compute(name, **changes):
    return find_metric(name).compute(explained(**changes))


def without_patches(numbers):
    image = IMAGE.clone()
    for number in numbers:
        row, column = (PATCH * part for part in divmod(number, SIZE // PATCH))
        block = (slice(None), slice(row, row + PATCH), slice(column, column + PATCH))
        image[block] = BASELINE[block]
    return image


def patch_sum(saliency, number):
    row, column = (PATCH * part for part in divmod(number, SIZE // PATCH))
    return saliency[row : row + PATCH, column : column + PATCH].sum()


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("name", METRICS)
def test_each_value_is_in_its_range_and_does_not_depend_on_the_batches_or_other_maps(
    name, batch_size
):
    together = compute(name, batch_size=batch_size)
    metric = METRICS[name]

    assert together.shape == (3,)
    assert (metric.range[0] <= together).all()
    assert (together <= metric.range[1]).all()
    alone = [compute(name, maps=MAPS[i : i + 1])[0] for i in range(3)]
    np.testing.assert_allclose(together, alone, atol=1e-12)


def test_road_compares_images_without_the_most_and_the_least_important_pixels():
    for saliency, value in zip(MAPS, compute("ROAD"), strict=True):
        order = np.argsort(-saliency.ravel())
        found = []
        for share in (0.1, 0.3, 0.5, 0.7, 0.9):
            count = round(share * SIZE * SIZE)
            # One generator for each image, from the seed and the name.
            least, most = (
                probability(impute(IMAGE, removed, explained().generator))
                for removed in (order[-count:], order[:count])
            )
            found.append(least - most)
        assert value == pytest.approx(np.mean(found))


def test_a_map_of_the_true_contributions_is_the_most_faithful():
    contribution = (WEIGHTS * (IMAGE - BASELINE)).sum(dim=0).numpy()
    maps = np.stack([contribution.clip(min=0), (-contribution).clip(min=0)])
    for name in ("ROAD", "IDSDS"):
        best, worst = compute(name, maps=maps)
        assert best > 0 > worst


def test_idsds_is_the_rank_correlation_of_patches_with_the_fall_of_each():
    drops = [probability(IMAGE) - probability(without_patches([n])) for n in range(9)]

    for saliency, value in zip(MAPS, compute("IDSDS"), strict=True):
        sums = [patch_sum(saliency, number) for number in range(9)]
        assert value == pytest.approx(stats.spearmanr(sums, drops).statistic)


def test_infidelity_is_the_part_of_the_drops_that_no_scale_of_the_sums_explains():
    one = explained()
    chosen, _ = one.random_subsets
    drops = [probability(IMAGE) - probability(without_patches(np.flatnonzero(c))) for c in chosen]

    for saliency, value in zip(MAPS, compute("infidelity"), strict=True):
        sums = np.array([sum(patch_sum(saliency, n) for n in np.flatnonzero(c)) for c in chosen])
        (_, (left,), *_) = np.linalg.lstsq(sums[:, None], np.array(drops), rcond=None)
        assert value == pytest.approx(left / np.square(drops).sum())


def test_infidelity_is_that_of_captum_with_its_best_scale():
    from captum.metrics import infidelity

    one = explained()
    chosen, drops = one.random_subsets
    masks = torch.from_numpy(chosen[:, one.patches]).double()[:, None].expand(-1, 2, -1, -1)
    frames = torch.where(masks > 0, BASELINE, IMAGE)

    for saliency, value in zip(MAPS, compute("infidelity"), strict=True):
        found = infidelity(
            lambda x: predict(x)[:, 1],
            lambda x: (masks, frames),
            IMAGE[None],
            torch.from_numpy(saliency).expand(1, 2, -1, -1) / 2,
            n_perturb_samples=len(masks),
            normalize=True,
        )
        assert value == pytest.approx(found.item() / np.square(drops).mean())


def test_average_drop_and_gain_are_of_the_image_faded_by_the_map():
    p = probability(IMAGE)
    pairs = zip(MAPS, compute("average drop"), compute("average gain"), strict=True)
    for saliency, drop, gain in pairs:
        weight = torch.from_numpy(saliency / saliency.max())
        faded = probability(weight * IMAGE + (1 - weight) * BASELINE)
        assert drop == pytest.approx(max(0, p - faded) / p)
        assert gain == pytest.approx(max(0, faded - p) / (1 - p))


def test_sparseness_is_ginis_mean_difference():
    for saliency, value in zip(MAPS, compute("sparseness"), strict=True):
        flat = saliency.ravel()
        differences = np.abs(flat[:, None] - flat).mean()
        assert value == pytest.approx(differences / (2 * flat.mean()))


def test_entropy_is_a_share_of_that_of_an_even_map():
    for saliency, value in zip(MAPS, compute("entropy"), strict=True):
        assert value == pytest.approx(stats.entropy(saliency.ravel()) / math.log(SIZE * SIZE))


def test_complexity_of_an_even_map_and_of_one_pixel():
    even, single = np.ones((SIZE, SIZE)), np.zeros((SIZE, SIZE))
    single[3, 4] = 1
    maps = np.stack([even, single])
    np.testing.assert_allclose(compute("sparseness", maps=maps), [0, 1 - 1 / 144], atol=1e-12)
    np.testing.assert_allclose(compute("entropy", maps=maps), [1, 0], atol=1e-12)


@pytest.mark.parametrize("name", ["shift", "flip"])
def test_a_map_that_moves_with_its_image_is_robust_and_a_fixed_one_is_not(name):
    methods = [lambda image: image.abs().sum(dim=0), partial(fixed, MAPS[0])]
    maps = np.stack([method(IMAGE).numpy() for method in methods])

    moving, still = compute(name, maps=maps, explain=methods)

    assert moving == pytest.approx(1)
    moved = np.roll(MAPS[0], -1, axis=(0, 1)) if name == "shift" else MAPS[0][:, ::-1]
    assert still == pytest.approx(stats.spearmanr(moved.ravel(), MAPS[0].ravel()).statistic)


def test_the_spread_is_that_of_the_maps_of_flips_and_shifts_moved_back():
    weights = np.random.default_rng(8).random((SIZE, SIZE))
    still = torch.from_numpy(weights)
    methods = [lambda image: image.abs().sum(dim=0), lambda image: image[0] ** 2 * still]
    maps = np.stack([method(IMAGE).numpy() for method in methods])

    moving, others = compute("spread", maps=maps, explain=methods)

    assert moving == pytest.approx(0, abs=1e-12)
    own = IMAGE[0].numpy() ** 2
    # The weights stand still: moved back, they move against the image. A 28th of 12 pixels is 1.
    moved = [weights, weights[:, ::-1], weights[::-1], weights[::-1, ::-1]]
    moved += [np.roll(weights, step, axis) for axis in (0, 1) for step in (1, -1)]
    views = np.stack([own * one for one in moved])
    assert others == pytest.approx(views.std(axis=0).mean() / views.mean())


def test_the_field_distance_is_of_magnetograms_only():
    assert compute("field distance", maps=MASK[None] * 1.0) == pytest.approx([0])
    assert np.isnan(compute("field distance", field=None)).all()


def test_sensitivity_is_the_greatest_relative_change_under_noise():
    seen = []

    def explain(image):
        seen.append(image)
        return image[0].abs()

    own = IMAGE[0].abs().numpy()
    (value,) = compute("sensitivity", maps=own[None], explain=[explain])

    changes = [np.linalg.norm(image[0].abs().numpy() - own) / np.linalg.norm(own) for image in seen]
    assert len(changes) == 4
    assert value == pytest.approx(max(changes))
    noise = torch.stack(seen) - IMAGE
    assert 0 < noise.abs().max() <= 0.02 * (IMAGE.max() - IMAGE.min())


def test_localisation_counts_the_pixels_inside_the_mask():
    inside = np.stack([MASK * 1.0, ~MASK * 1.0, MASK * 2.0 + ~MASK * 1.0])
    share = MASK.mean()
    expected = {
        "relevance mass": [1, 0, 2 * share / (1 + share)],
        "relevance rank": [1, 0, 1],
        "top-k": [1, 0, 1],
        "IoU": [1, 0, 1],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(compute(name, maps=inside), values)


def test_iou_is_at_the_area_of_the_mask():
    for saliency, value in zip(MAPS, compute("IoU"), strict=True):
        highest = saliency >= np.sort(saliency.ravel())[-MASK.sum()]
        assert value == pytest.approx((highest & MASK).sum() / (highest | MASK).sum())


@pytest.mark.parametrize("mask", [None, np.zeros_like(MASK), np.ones_like(MASK)])
def test_localisation_without_a_region_is_undefined(mask):
    for name, metric in METRICS.items():
        if metric.kind == "localisation" and name != "field distance":
            assert np.isnan(compute(name, mask=mask)).all()


def test_a_map_of_zeros_has_no_value_or_the_worst():
    maps = np.zeros((1, SIZE, SIZE))
    for name in ("sparseness", "relevance mass", "IDSDS", "sensitivity"):
        assert np.isnan(compute(name, maps=maps)).all()
    assert compute("infidelity", maps=maps) == [1]


def test_names_are_found_whatever_their_case_and_all_are_all():
    assert resolve_metrics(["road", "iou", "average_drop"]) == ("ROAD", "IoU", "average drop")
    assert resolve_metrics(["all", "ROAD"]) == tuple(METRICS)


def test_an_unknown_metric_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r'--metrics sparsness: .*Did you mean "sparseness"'):
        resolve_metrics(["sparsness"])
