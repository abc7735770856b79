from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, roc_curve

from labn.metrics.skill import (
    brier_skill,
    gandin_murphy_gerrity,
    quadratic_kappa,
    skill_by_threshold,
)

ROUNDING = 1e-12


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    return rng.random(50), rng.random(50) < 0.3


def test_the_brier_skill_is_the_gain_over_the_base_rate(case):
    probabilities, is_positive = case
    climate = np.full(50, is_positive.mean())
    expected = 1 - brier_score_loss(is_positive, probabilities) / brier_score_loss(
        is_positive, climate
    )

    assert brier_skill(probabilities, is_positive) == pytest.approx(expected, abs=ROUNDING)
    assert brier_skill(climate, is_positive) == pytest.approx(0, abs=ROUNDING)
    assert brier_skill(is_positive.astype(float), is_positive) == 1
    assert math.isnan(brier_skill(probabilities, np.ones(50, dtype=bool)))


def test_rates_by_threshold_are_points_of_the_roc_curve(case):
    probabilities, is_positive = case
    false, true, thresholds = roc_curve(is_positive, probabilities, drop_intermediate=False)

    found = skill_by_threshold(probabilities, is_positive, thresholds[1:].tolist())

    assert [row.true_positive_rate for row in found] == pytest.approx(true[1:], abs=ROUNDING)
    assert [row.false_positive_rate for row in found] == pytest.approx(false[1:], abs=ROUNDING)
    assert [row.tss for row in found] == pytest.approx(true[1:] - false[1:], abs=ROUNDING)
    assert skill_by_threshold(probabilities, np.ones(50, dtype=bool), [0.5]) == []


def by_definition(confusion):
    """The mean of Peirce's score over the ways to cut the classes in two: what the GMGS equals."""
    cuts = []
    for cut in range(1, len(confusion)):
        low, high = confusion[:cut], confusion[cut:]
        cuts.append(high[:, cut:].sum() / high.sum() - low[:, cut:].sum() / low.sum())
    return np.mean(cuts)


@pytest.mark.parametrize("num_classes", [2, 3, 4, 5])
def test_the_gerrity_score_is_the_mean_skill_over_all_cuts(num_classes):
    confusion = np.random.default_rng(num_classes).integers(1, 20, (num_classes, num_classes))

    assert gandin_murphy_gerrity(confusion) == pytest.approx(by_definition(confusion), abs=1e-12)
    assert gandin_murphy_gerrity(np.diag(np.arange(1, num_classes + 1))) == pytest.approx(1)
    everything_low = np.zeros_like(confusion)
    everything_low[:, 0] = confusion.sum(axis=1)
    assert gandin_murphy_gerrity(everything_low) == pytest.approx(0, abs=1e-12)


def test_without_the_highest_class_the_gerrity_score_is_undefined():
    assert math.isnan(gandin_murphy_gerrity(np.array([[3, 1], [0, 0]])))


def test_the_quadratic_kappa_is_the_share_of_squared_errors_that_chance_would_make():
    rng = np.random.default_rng(4)
    for num_classes in (3, 5):
        confusion = rng.integers(0, 9, (num_classes, num_classes))
        i, j = np.indices(confusion.shape)
        chance = np.outer(confusion.sum(axis=1), confusion.sum(axis=0)) / confusion.sum()
        expected = 1 - ((i - j) ** 2 * confusion).sum() / ((i - j) ** 2 * chance).sum()
        assert quadratic_kappa(confusion) == pytest.approx(expected, abs=ROUNDING)
    assert quadratic_kappa(np.diag([3, 1, 2])) == 1
    assert quadratic_kappa(np.array([[0, 4, 0], [0, 5, 0], [0, 6, 0]])) == 0
    assert math.isnan(quadratic_kappa(np.diag([0, 7, 0])))
