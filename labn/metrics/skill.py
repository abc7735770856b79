"""Skill of forecasts and grades: BSS, GMGS, TSS by threshold (flares), quadratic kappa (retina)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.metrics import cohen_kappa_score


class ThresholdSkill(NamedTuple):
    """Rates where an image counts as positive if its probability reaches a threshold.

    ``tss``, the difference of the two, lies in [-1, 1]; more is better.
    """

    threshold: float
    true_positive_rate: float
    false_positive_rate: float
    tss: float


def brier_skill(
    probabilities: Float[np.ndarray, " n"], is_positive: Bool[np.ndarray, " n"]
) -> float:
    """Return the Brier skill score of the positive class's probabilities (Brier 1950).

    It is 1 - BS / BS of the images' own base rate: 1 is perfect, 0 no better than the base rate,
    below 0 worse. NaN where all images are of one class.
    """
    outcomes = is_positive.astype(np.float64)
    reference = float(outcomes.var())
    if reference == 0:
        return math.nan
    return 1 - float(np.mean((probabilities - outcomes) ** 2)) / reference


def gandin_murphy_gerrity(confusion: Int[np.ndarray, "c c"]) -> float:
    """Return the Gandin-Murphy-Gerrity score of ordered classes (Gerrity 1992).

    ``confusion`` has true classes in rows. 1 is perfect, 0 no skill; a miss by one class costs
    less than one by several, and hits of rare classes count more. For two classes it is the TSS.
    NaN where the lowest or the highest class does not occur.
    """
    observed = confusion.sum(axis=1) / confusion.sum()
    below = observed.cumsum()[:-1]
    if below.min() <= 0 or below.max() >= 1 - np.finfo(float).eps:
        return math.nan
    odds = (1 - below) / below
    num_steps = len(odds)
    rewards = np.empty(confusion.shape)
    for (i, j), _ in np.ndenumerate(confusion):
        low, high = min(i, j), max(i, j)
        terms = (1 / odds[:low]).sum() - (high - low) + odds[high:].sum()
        rewards[i, j] = terms / num_steps
    return float((rewards * confusion).sum() / confusion.sum())


def quadratic_kappa(confusion: Int[np.ndarray, "c c"]) -> float:
    """Return Cohen's kappa of ordered classes with quadratic weights (Cohen 1968).

    ``confusion`` has true classes in rows. 1 is perfect, 0 chance; an error by two grades costs
    four times one by one. NaN where all images are of one class and were taken for it.
    """
    places = np.indices(confusion.shape).reshape(2, -1)
    true, predicted = np.repeat(places, confusion.ravel(), axis=1)
    if len({*true.tolist(), *predicted.tolist()}) < 2:
        return math.nan
    return float(cohen_kappa_score(true, predicted, weights="quadratic"))


def skill_by_threshold(
    probabilities: Float[np.ndarray, " n"],
    is_positive: Bool[np.ndarray, " n"],
    thresholds: Sequence[float],
) -> list[ThresholdSkill]:
    """Return the rates and TSS at each threshold; none where all images are of one class."""
    if is_positive.all() or not is_positive.any():
        return []
    rows = []
    for threshold in thresholds:
        called = probabilities >= threshold
        hits, alarms = float(called[is_positive].mean()), float(called[~is_positive].mean())
        rows.append(ThresholdSkill(threshold, hits, alarms, hits - alarms))
    return rows
