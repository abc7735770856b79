"""Statistical tests of differences between methods, over seeds and over images.

Over seeds (few, and different for each method) Welch's test compares means; over images (many,
and the same for all methods) the differences within an image are resampled. The images are the
same in every run, so a result over images need not hold for another training seed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike
from scipy.stats import bootstrap, permutation_test, ttest_ind_from_stats

_LARGEST_EXACT_N = 14
_BATCH_NUMBERS = 2**20


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (n - 1) of n values; ``sd`` is None for one value."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class WelchTest:
    """Welch's test of two methods; ``difference`` is the mean of ``a`` minus that of ``b``.

    ``p`` is two-sided, and None where the test does not apply, for the ``reason``.
    """

    p: float | None
    difference: float
    a: Summary
    b: Summary
    reason: str | None = None


@dataclass(frozen=True)
class PairedTest:
    """A permutation test over n pairs; ``difference`` is the mean of first minus second.

    ``p`` is two-sided. Where ``is_exact`` it is over all 2^n changes of sign, else over
    ``num_resamples`` random ones and the observed one, so it is never 0.
    """

    p: float
    difference: float
    n: int
    num_resamples: int
    is_exact: bool


@dataclass(frozen=True)
class Interval:
    """A mean over n images and its confidence interval; the ends are None for one image."""

    mean: float
    low: float | None
    high: float | None
    confidence: float
    n: int


def summarise(values: ArrayLike) -> Summary:
    """Return the summary of one method's scores over its seeds.

    Raises:
        ValueError: there is no value, or one is not finite.
    """
    values_n = _as_values("values", values).tolist()
    # These functions sum exactly, so that equal values have no spread.
    sd = statistics.stdev(values_n) if len(values_n) > 1 else None
    return Summary(statistics.mean(values_n), sd, len(values_n))


def welch(a: ArrayLike, b: ArrayLike) -> WelchTest:
    """Compare two methods over their seeds by Welch's t-test (Welch 1947; Iida 2022, 5.2).

    Raises:
        ValueError: a method has no score, or one is not finite.
    """
    summary_a, summary_b = summarise(a), summarise(b)
    p, reason = _welch_p(summary_a, summary_b)
    return WelchTest(p, summary_a.mean - summary_b.mean, summary_a, summary_b, reason)


def _welch_p(a: Summary, b: Summary) -> tuple[float | None, str | None]:
    if a.sd is None or b.sd is None:
        return None, f"Welch's test needs two seeds of each method, but got {a.n} and {b.n}"
    # A smaller spread is the rounding error of equal scores.
    noise = 10 * math.ulp(max(abs(a.mean), abs(b.mean)))
    if max(a.sd, b.sd) <= noise:
        return None, "neither method's scores vary over its seeds"
    result = ttest_ind_from_stats(a.mean, a.sd, a.n, b.mean, b.sd, b.n, equal_var=False)
    return float(result.pvalue), None


def paired_bootstrap(
    differences: ArrayLike, num_resamples: int = 10_000, confidence: float = 0.95, *, seed: int
) -> Interval:
    """Return the interval of a mean difference over images (BCa bootstrap; Efron 1987).

    Raises:
        ValueError: there is no difference, one is not finite, or a setting is out of range.
    """
    if num_resamples < 100:
        raise ValueError(f"num_resamples: got {num_resamples}, must be at least 100")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: got {confidence}, must be between 0 and 1")
    differences_n = _as_values("differences", differences)
    mean, n = float(differences_n.mean()), len(differences_n)
    if n == 1:
        return Interval(mean, None, None, confidence, n)
    if np.ptp(differences_n) <= 10 * math.ulp(np.abs(differences_n).max()):
        return Interval(mean, mean, mean, confidence, n)
    result = bootstrap(
        (differences_n,),
        np.mean,
        n_resamples=num_resamples,
        batch=_batch_size(n),
        confidence_level=confidence,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(result.low), float(result.high), confidence, n)


def paired_permutation(
    a: ArrayLike, b: ArrayLike, num_resamples: int = 10_000, *, seed: int
) -> PairedTest:
    """Test whether two methods differ on the same images, by changing signs at random.

    For up to 14 images all changes of sign are tried, and ``num_resamples`` is ignored.

    Raises:
        ValueError: the numbers of scores differ or are 0, or a score is not finite.
    """
    a_n, b_n = _as_values("a", a), _as_values("b", b)
    if len(a_n) != len(b_n):
        raise ValueError(
            f"a and b: got {len(a_n)} and {len(b_n)} scores, must be of the same images"
        )
    if num_resamples < 1:
        raise ValueError(f"num_resamples: got {num_resamples}, must be at least 1")
    n = len(a_n)
    is_exact = n <= _LARGEST_EXACT_N
    num_resamples = 2**n if is_exact else num_resamples
    p = 1.0 if n == 1 else _permutation_p(a_n - b_n, num_resamples, seed)
    return PairedTest(p, float((a_n - b_n).mean()), n, num_resamples, is_exact)


def _permutation_p(
    differences_n: Float64[np.ndarray, " n"], num_resamples: int, seed: int
) -> float:
    result = permutation_test(
        (differences_n,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=num_resamples,
        batch=_batch_size(len(differences_n)),
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values adjusted for multiple tests, step-down (Holm 1979), at most 1.

    None and NaN stand for tests that were not made: they are kept and not counted.

    Raises:
        ValueError: a p-value is outside [0, 1].
    """
    adjusted = list(p_values)
    made = [(p, i) for i, p in enumerate(p_values) if p is not None and not math.isnan(p)]
    largest = 0.0
    for rank, (p, i) in enumerate(sorted(made)):
        if not 0 <= p <= 1:
            raise ValueError(f"p_values: got {p} at position {i}, must be 0 to 1, None or NaN")
        largest = max(largest, min(1.0, (len(made) - rank) * p))
        adjusted[i] = largest
    return adjusted


def _batch_size(n: int) -> int:
    """Return the number of resamples of n values to hold in memory at once."""
    return max(1, _BATCH_NUMBERS // n)


def _as_values(name: str, values: ArrayLike) -> Float64[np.ndarray, " n"]:
    values_n = np.asarray(values, dtype=np.float64)
    if values_n.ndim != 1 or not len(values_n):
        raise ValueError(f"{name}: got shape {values_n.shape}, must be a list of at least one")
    if not np.isfinite(values_n).all():
        raise ValueError(f"{name}: got NaN or infinity, must be finite")
    return values_n
