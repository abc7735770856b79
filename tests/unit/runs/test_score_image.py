from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_run import STATISTICS, make_model, make_subset

from labn.data.batches import standardise
from labn.errors import UserError
from labn.explain.attention import LabnAttention
from labn.explain.controls import EdgeEnergy, RandomMap
from labn.metrics.faithfulness import patch_insertion_deletion
from labn.metrics.localisation import localisation
from labn.runs.evaluation.score_image import (
    Measure,
    Sample,
    baseline_image,
    explain,
    measures,
    score_image,
)
from labn.training.evaluate import predictor

SUBSET = make_subset(4, seed=3, labels=[1, 1, 0, 1])
CPU = torch.device("cpu")
MASK = np.zeros((24, 24), dtype=np.bool_)
MASK[3:9, 5:14] = True
BASELINES = ("bias", "zero", "black", "blur")


@pytest.fixture(scope="module")
def model():
    """An untrained network whose outputs differ between frames."""
    model = make_model(seed=4)
    with torch.no_grad():
        model.fc.weight.mul_(20)
        model.train()(standardise(SUBSET.pixels(np.arange(4)), STATISTICS, CPU))
    return model.eval()


@pytest.fixture(scope="module")
def methods(model):
    return LabnAttention(model), RandomMap(seed=2), EdgeEnergy()


def sample(position, mask=None):
    image = standardise(SUBSET.pixels(np.array([position])), STATISTICS, CPU)[0]
    name, label = SUBSET.names[position], int(SUBSET.labels[position])
    return Sample(name=name, label=label, image=image, mask=mask)


def score(model, methods, one, *, wanted=None, batch_size=64):
    return score_image(
        predictor(model),
        one,
        methods,
        wanted or measures((4, 8), "bias"),
        STATISTICS,
        num_points=5,
        batch_size=batch_size,
    )


def test_each_method_is_scored_by_each_measure_as_it_would_be_alone(model, methods):
    one = sample(1)
    rows = score(model, methods, one).scores

    assert [(row["method"], row["score"]) for row in rows] == [
        (method, measure)
        for measure in ("ID", "PID m=4", "PID m=8")
        for method in ("LABN", "random", "edges")
    ]
    for row in rows:
        (method,) = (method for method in methods if method.name == row["method"])
        maps = method.explain(one.image[None], torch.tensor([1]), (one.name,))
        alone = (predictor(model), one.image[None], maps, torch.tensor([1]))
        baseline = 0.0 if row["score"] == "ID" else STATISTICS.bias_image
        expected = patch_insertion_deletion(
            *alone, patch_size=row["patch_size"], baseline=baseline, num_points=5
        )
        # A float32 network in batches of another size.
        assert row["value"] == pytest.approx(expected.pid.item(), abs=1e-6)
        assert row["value"] == row["insertion_auc"] - row["deletion_auc"]
        assert row["insertion_curve"] == pytest.approx(expected.insertion_curve[0], abs=1e-6)
        assert row["deletion_curve"] == pytest.approx(expected.deletion_curve[0], abs=1e-6)
        assert row["fractions"] == expected.fractions.tolist()
        assert row["num_points"] == 5
        assert row["name"] == one.name and row["label"] == 1
    assert max(abs(row["value"]) for row in rows) > 1e-3


def test_matched_scores_are_those_at_the_networks_temperature(model, methods):
    one = sample(1)
    wanted = measures((4, 8), "bias", has_matched=True)
    rows = score_image(
        predictor(model), one, methods, wanted, STATISTICS, num_points=5, temperature=3.0
    ).scores

    assert list(dict.fromkeys(row["score"] for row in rows)) == [
        "ID", "PID m=4", "PID m=8", "PID m=4 matched", "PID m=8 matched"
    ]  # fmt: skip
    plain = score(model, methods, one).scores
    assert rows[: len(plain)] == plain
    for row in rows[len(plain) :]:
        (method,) = (method for method in methods if method.name == row["method"])
        expected = patch_insertion_deletion(
            predictor(model), one.image[None],
            method.explain(one.image[None], torch.tensor([1]), (one.name,)), torch.tensor([1]),
            patch_size=row["patch_size"], baseline=STATISTICS.bias_image, num_points=5,
            temperature=3.0,
        ).matched  # fmt: skip
        assert row["value"] == pytest.approx(expected.pid.item(), abs=1e-6)


def test_the_baseline_of_id_is_zero_for_any_baseline_of_pid():
    assert measures((2, 16), "blur") == (
        Measure("ID", 1, "zero"),
        Measure("PID m=2", 2, "blur"),
        Measure("PID m=16", 16, "blur"),
    )


def test_rows_go_through_json_unchanged(model, methods):
    scores = score(model, methods, sample(0, MASK))
    assert json.loads(json.dumps(vars(scores))) == vars(scores)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_scores_do_not_depend_on_the_batch_size(model, methods, batch_size):
    expected = score(model, methods, sample(0)).scores
    found = score(model, methods, sample(0), batch_size=batch_size).scores
    for row, other in zip(found, expected, strict=True):
        assert row["value"] == pytest.approx(other["value"], abs=1e-6)


def test_methods_receive_the_class_and_name_of_the_image():
    asked = []

    def remember(images, labels, names):
        asked.append((images.shape, labels.tolist(), tuple(names)))
        return torch.zeros(len(images), *images.shape[2:])

    explain(sample(2), [SimpleNamespace(name="spy", explain=remember)])

    assert asked == [((1, 3, 24, 24), [0], (SUBSET.names[2],))]


def test_maps_are_compared_with_the_mask_where_one_is_known(model, methods):
    one = sample(1, MASK)
    rows = score(model, methods, one).localisation

    maps = explain(one, methods)
    expected = localisation(maps, torch.from_numpy(np.stack([MASK] * 3)))
    assert [row["method"] for row in rows] == ["LABN", "random", "edges"]
    for place, row in enumerate(rows):
        assert row.pop("name") == one.name
        row.pop("method")
        assert row == {name: values[place].item() for name, values in vars(expected).items()}
        assert row["area_share"] == 54 / 576
    assert score(model, methods, sample(1)).localisation == []


def test_the_bias_and_zero_baselines_are_those_of_training():
    image = sample(0).image
    assert torch.equal(baseline_image("bias", image, STATISTICS), STATISTICS.bias_image)
    assert torch.equal(baseline_image("zero", image, STATISTICS), torch.zeros(3, 24, 24))


def test_black_is_a_standardised_pixel_of_value_0():
    black = standardise(np.zeros((1, 24, 24, 3), dtype=np.uint8), STATISTICS, CPU)[0]
    found = baseline_image("black", sample(0).image, STATISTICS)
    # The same quotient in another order, in float32.
    torch.testing.assert_close(found, black, rtol=1e-6, atol=0)


def test_blur_is_a_gaussian_of_the_image_itself():
    """A pixel far from the border is the weighted mean of its neighbours."""
    image = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 112, 112))).float()
    sigma = 2.5  # 5 pixels at 224
    offsets = np.arange(-8, 9)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    window = image[1, 52:69, 42:59].double().numpy()

    found = baseline_image("blur", image, STATISTICS)

    # Sums of float32 numbers of about 1.
    assert found[1, 60, 50].item() == pytest.approx(weights @ window @ weights, abs=1e-5)
    assert found.shape == image.shape


def test_each_baseline_leads_to_other_scores(model, methods):
    values = []
    for baseline in BASELINES:
        rows = score(model, methods, sample(3), wanted=measures((4,), baseline)).scores
        assert {row["baseline"] for row in rows} == {"zero", baseline}
        values.append(rows[-1]["value"])
    assert len({round(value, 6) for value in values}) == 4


@pytest.mark.parametrize(
    ("shape", "value", "fault"),
    [
        ((1, 24, 24), math.nan, "values from nan to nan"),
        ((1, 24, 24), -0.5, "values from -0.5 to -0.5"),
        ((1, 1, 24, 24), 0.5, r"shape \(1, 1, 24, 24\)"),
        ((1, 12, 12), 0.5, r"shape \(1, 12, 12\)"),
        ((0, 24, 24), 0.5, r"shape \(0, 24, 24\) for"),
    ],
)
def test_a_method_whose_map_is_invalid_is_named(model, shape, value, fault):
    def explain(images, labels, names):
        return torch.full(shape, value)

    broken = SimpleNamespace(name="broken", explain=explain)

    with pytest.raises(
        UserError, match=f"--methods broken: got maps of .*{fault}.*must be of shape"
    ):
        score(model, (broken,), sample(0))
