from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from labn.errors import UserError
from labn.metrics.explained import Explained
from labn.metrics.map_metrics import find_metric, resolve_metrics


def predict(images):
    logit = images.mean(dim=(1, 2, 3))
    return torch.stack([-logit, logit], dim=1).softmax(dim=1)


def compute(*names, has_mask=True):
    rng = np.random.default_rng(0)
    maps = rng.random((2, 8, 8))
    mask = np.zeros((8, 8), dtype=np.bool_)
    mask[2:5, 2:7] = True
    one = Explained(
        predict=predict, image=torch.from_numpy(rng.normal(size=(2, 8, 8))), label=1, name="a",
        maps=maps, explain=[lambda image: image[0].abs(), lambda image: image[1].abs()],
        baseline=torch.zeros(2, 8, 8, dtype=torch.float64), patch_size=4,
        mask=mask if has_mask else None,
    )  # fmt: skip
    return [find_metric(name).compute(one) for name in names]


def test_without_quantus_its_metrics_are_refused_with_the_fix(monkeypatch):
    monkeypatch.setitem(sys.modules, "quantus", None)
    with pytest.raises(
        UserError, match=r"--metrics quantus:ROAD: .*run `pip install labn\[quantus"
    ):
        resolve_metrics(["quantus:ROAD"])


@pytest.mark.parametrize("name", ["MPRT", "SmoothMPRT", "EfficientMPRT", "RandomLogit"])
def test_a_metric_that_needs_other_maps_is_refused_and_names_the_command_that_has_it(name):
    with pytest.raises(UserError, match=rf"--metrics quantus:{name}: needs maps.*`labn sanity`"):
        resolve_metrics([f"quantus:{name}"])


def test_a_metric_that_one_image_cannot_answer_is_refused():
    with pytest.raises(UserError, match=r"--metrics quantus:Consistency: needs several images"):
        resolve_metrics(["quantus:Consistency"])


@pytest.mark.filterwarnings("ignore")
def test_no_metric_of_quantus_that_randomises_is_left():
    quantus = pytest.importorskip("quantus")

    for one in quantus.AVAILABLE_METRICS["Randomisation"].values():
        with pytest.raises(UserError, match="labn sanity"):
            resolve_metrics([f"quantus:{one.__name__}"])


@pytest.mark.filterwarnings("ignore")  # Quantus's own
def test_quantus_agrees_where_a_metric_is_the_same():
    pytest.importorskip("quantus")
    ours = compute("sparseness", "entropy", "relevance mass", "relevance rank")
    ours[1] = ours[1] * np.log(64)
    names = ("Sparseness", "Complexity", "RelevanceMassAccuracy", "RelevanceRankAccuracy")

    theirs = compute(*(f"quantus:{name}" for name in names))

    np.testing.assert_allclose(theirs, ours, rtol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_a_metric_of_quantus_may_ask_the_network_and_the_method():
    pytest.importorskip("quantus")

    for values in compute("quantus:PixelFlipping", "quantus:AvgSensitivity"):
        assert values.shape == (2,)
        assert np.isfinite(values).all()
    with pytest.raises(UserError, match=r'Did you mean "Sparseness"'):
        resolve_metrics(["quantus:Sparsenes"])


@pytest.mark.filterwarnings("ignore")
def test_without_lesions_a_localisation_of_quantus_is_undefined():
    pytest.importorskip("quantus")
    (values,) = compute("quantus:PointingGame", has_mask=False)
    assert np.isnan(values).all()


@pytest.mark.filterwarnings("ignore")
def test_a_metric_of_quantus_that_fails_is_named_and_leaves_the_generator_alone(monkeypatch):
    quantus = pytest.importorskip("quantus")

    def fail(self, **_):
        np.random.random(3)  # noqa: NPY002
        raise ValueError("two\nlines")

    monkeypatch.setattr(quantus.Sparseness, "__call__", fail)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    message = r"--metrics quantus:Sparseness: Quantus fails on a \(two lines\); leave it out"
    with pytest.raises(UserError, match=message):
        compute("quantus:Sparseness")
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
