"""Rank correlations: of methods under several baselines, and of the pixels of two maps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike
from scipy.stats import kendalltau, spearmanr

from labn.metrics.arguments import Numbers, as_numbers


@dataclass(frozen=True)
class RankAgreement:
    """Agreement of baselines in ranking the same methods: 1 the same order, -1 the reverse.

    ``tau`` (Kendall's b) and ``rho`` (Spearman's) are symmetric, baselines by baselines; NaN where
    a baseline scores all methods equally.
    """

    tau: Float64[np.ndarray, "k k"]
    rho: Float64[np.ndarray, "k k"]
    num_methods: int


def rank_agreement(scores: ArrayLike) -> RankAgreement:
    """Return the agreement of baselines in ranking methods.

    ``scores`` is (baselines, methods): in each row scores, higher is better, or ranks.

    Raises:
        ValueError: no baseline, fewer than two methods, or a score that is not finite.
    """
    scores_km = np.asarray(scores, dtype=np.float64)
    if scores_km.ndim != 2 or scores_km.shape[0] < 1 or scores_km.shape[1] < 2:
        raise ValueError(
            f"scores: got shape {scores_km.shape}, must be (baselines, methods) with at least one"
            " baseline and two methods"
        )
    _check_finite("scores", scores_km)
    tau, rho = (
        np.array([[measure(x, y) for y in scores_km] for x in scores_km])
        for measure in (_kendall, _spearman)
    )
    return RankAgreement(tau, rho, scores_km.shape[1])


def rank_correlation(map_a: Numbers, map_b: Numbers) -> float:
    """Return Spearman's correlation of two maps' pixels, NaN if a map is constant.

    A map that depends on the network should correlate little with the map of the same method
    after the network's weights are randomised (Adebayo 2018).

    Raises:
        ValueError: the shapes differ, fewer than two pixels, or a value is not finite.
    """
    a, b = _as_floats("map_a", map_a), _as_floats("map_b", map_b)
    if a.shape != b.shape or a.size < 2:
        raise ValueError(
            f"map_a and map_b: got shapes {a.shape} and {b.shape}, must be the same, of at least"
            " two pixels"
        )
    _check_finite("map_a", a)
    _check_finite("map_b", b)
    return _spearman(a.ravel(), b.ravel())


def _kendall(a: Float64[np.ndarray, " n"], b: Float64[np.ndarray, " n"]) -> float:
    return float(kendalltau(a, b).statistic)


def _spearman(a: Float64[np.ndarray, " n"], b: Float64[np.ndarray, " n"]) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(spearmanr(a, b).statistic)


def _as_floats(name: str, values: Numbers) -> Float64[np.ndarray, "*shape"]:
    return as_numbers(name, values).cpu().double().numpy()


def _check_finite(name: str, values: Float64[np.ndarray, "*shape"]) -> None:
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: got NaN or infinity, must be finite")
