from __future__ import annotations

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labn.metrics.statistics import (
    Summary,
    holm,
    paired_bootstrap,
    paired_permutation,
    summarise,
    welch,
)

# Sums in another order, in the same float64.
ROUNDING = 1e-12

FEW = settings(max_examples=50, deadline=None, derandomize=True)
INTEGERS = st.lists(st.integers(-5, 5), min_size=1, max_size=7)


def welch_replica(a, b):
    """Welch's p from the formulas, the t density integrated by Simpson's rule."""
    (mean_a, var_a), (mean_b, var_b) = (
        (sum(x) / len(x), sum((v - sum(x) / len(x)) ** 2 for v in x) / (len(x) - 1) / len(x))
        for x in (a, b)
    )
    t = abs(mean_a - mean_b) / math.sqrt(var_a + var_b)
    nu = (var_a + var_b) ** 2 / (var_a**2 / (len(a) - 1) + var_b**2 / (len(b) - 1))
    scale = math.exp(math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2)) / math.sqrt(nu * math.pi)
    steps = 20_000
    weights = [1] + [4, 2] * (steps // 2 - 1) + [4, 1]
    density = [(1 + (t * k / steps) ** 2 / nu) ** (-(nu + 1) / 2) for k in range(steps + 1)]
    integral = sum(w * d for w, d in zip(weights, density, strict=True)) * t / steps / 3
    return 1 - 2 * scale * integral


@pytest.mark.parametrize(
    ("a", "b", "p"),
    [
        # The first example of Wikipedia's "Welch's t-test", and one of few values; p from R.
        (
            "27.5 21.0 19.0 23.6 17.0 17.9 16.9 20.1 21.9 22.6 23.1 19.6 19.0 21.7 21.4",
            "27.1 22.0 20.8 23.4 23.4 23.5 25.8 22.0 24.8 20.2 21.9 22.1 22.9 20.5 24.4",
            0.021378001462867,
        ),
        ("3.0 4.0 1.0 2.1", "490.2 340.0 433.9", 0.0107515611497845),
    ],
)
def test_welch_gives_the_p_of_textbook_examples(a, b, p):
    a, b = ([float(value) for value in text.split()] for text in (a, b))
    comparison = welch(a, b)
    assert comparison.p == pytest.approx(p, abs=1e-13)
    assert (comparison.a.n, comparison.b.n) == (len(a), len(b))
    assert comparison.difference == pytest.approx(sum(a) / len(a) - sum(b) / len(b))
    assert comparison.reason is None


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n_a", "n_b"), [(4, 4), (2, 7), (3, 2)])
def test_welch_agrees_with_a_replica_that_integrates_the_density(seed, n_a, n_b):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal(n_a), 1 + 2 * rng.standard_normal(n_b)
    # Simpson's rule on 20 000 steps is good to 1e-10 here.
    assert welch(a, b).p == pytest.approx(welch_replica(a.tolist(), b.tolist()), abs=1e-9)
    assert welch(b, a).p == welch(a, b).p


def four_seeds(mean, sd):
    """Four values with this mean and standard deviation."""
    return [mean + sign * sd * math.sqrt(3) / 2 for sign in (-1, -1, 1, 1)]


@pytest.mark.parametrize(
    ("labn", "baseline", "low", "high"),
    [
        # Table 2 against the better baseline, IDRiD: p < 0.1 is reported for m >= 2.
        ((0.458, 0.198), (0.179, 0.080), 0.05, 0.1),
        ((0.455, 0.181), (0.101, 0.033), 0, 0.1),
        # Magnetograms: p < 0.05 for m >= 2, p > 0.1 for ID.
        ((0.748, 0.102), (0.414, 0.129), 0, 0.05),
        ((0.756, 0.096), (0.461, 0.164), 0, 0.05),
        ((0.506, 0.170), (0.374, 0.080), 0.1, 1),
    ],
)
def test_the_papers_differences_are_as_significant_as_reported(labn, baseline, low, high):
    comparison = welch(four_seeds(*labn), four_seeds(*baseline))
    assert low < comparison.p < high
    assert (comparison.a.mean, comparison.a.sd) == pytest.approx(labn)


def test_a_summary_gives_the_standard_deviation_of_the_sample():
    # 2, 4, 4, 4, 5, 5, 7, 9: squares of deviations add to 32.
    summary = summarise([2, 4, 4, 4, 5, 5, 7, 9])
    assert summary == Summary(5, math.sqrt(32 / 7), 8)
    assert summarise(torch.tensor([0.5])) == Summary(0.5, None, 1)


@pytest.mark.parametrize(("a", "b"), [([0.4], [0.1, 0.2]), ([0.1, 0.2], [0.4]), ([1], [2])])
def test_one_seed_has_a_difference_but_no_p(a, b):
    comparison = welch(a, b)
    assert comparison.p is None
    assert comparison.reason == (
        f"Welch's test needs two seeds of each method, but got {len(a)} and {len(b)}"
    )
    assert comparison.difference == pytest.approx(np.mean(a) - np.mean(b))


@pytest.mark.parametrize(
    ("a", "b"), [([0.1] * 3, [0.2] * 3), ([0.3] * 2, [0.3] * 2), ([0.1 + 0.2, 0.3], [0.1, 0.1])]
)
def test_scores_that_never_vary_have_no_p(a, b):
    comparison = welch(a, b)
    assert comparison.p is None
    assert comparison.reason == "neither method's scores vary over its seeds"


def test_one_method_may_be_the_same_on_every_seed():
    a, b = [0.1, 0.1, 0.1], [0.2, 0.4, 0.3]
    assert welch(a, b).p == pytest.approx(welch_replica(a, b), abs=1e-9)


def holm_replica(p_values):
    """Each adjusted p is the largest of those that the ordered procedure requires up to it."""
    made = [p for p in p_values if p is not None and p == p]
    adjusted = []
    for p in p_values:
        if p is None or p != p:
            adjusted.append(p)
            continue
        asked = [sum(other >= q for other in made) * q for q in made if q <= p]
        adjusted.append(min(1.0, max(asked)))
    return adjusted


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        # The example of Wikipedia's "Holm-Bonferroni method".
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.02], [0.02]),
        ([], []),
        ([None, 0.01, None, 0.04], [None, 0.02, None, 0.04]),
        ([0.0, 1.0, 0.02, 0.02], [0.0, 1.0, 0.06, 0.06]),
    ],
)
def test_holm_gives_textbook_values(p_values, adjusted):
    assert holm(p_values) == pytest.approx(adjusted)


def test_holm_skips_nan():
    first, second, third = holm([0.03, math.nan, 0.01])
    assert (first, third) == pytest.approx((0.03, 0.02))
    assert math.isnan(second)


@FEW
@given(st.lists(st.none() | st.floats(0, 1), max_size=8))
def test_holm_agrees_with_a_replica_and_keeps_the_order(p_values):
    adjusted = holm(p_values)
    assert adjusted == pytest.approx(holm_replica(p_values), abs=ROUNDING)
    pairs = [(p, q) for p, q in zip(p_values, adjusted, strict=True) if p is not None]
    assert all(p <= q <= 1 for p, q in pairs)
    assert [q for _, q in sorted(pairs)] == sorted(q for _, q in pairs)


@pytest.mark.parametrize("p", [-0.1, 1.1, math.inf])
def test_holm_refuses_values_outside_0_to_1(p):
    with pytest.raises(ValueError, match=f"p_values: got {p} at position 1, must be 0 to 1"):
        holm([0.5, p])


def permutation_replica(differences):
    """The share of all changes of sign that leave integers' sum at least as far from zero."""
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(total >= abs(sum(differences)) for total in sums) / len(sums)


@FEW
@given(INTEGERS)
def test_the_exact_permutation_test_agrees_with_counting_every_sign(differences):
    # Tenths, whose sums tie only up to rounding.
    a = np.array(differences) / 10
    test = paired_permutation(a, np.zeros(len(a)), seed=0)
    assert test.p == permutation_replica(differences)
    assert test.is_exact
    assert (test.n, test.num_resamples) == (len(a), 2 ** len(a))
    assert test.difference == pytest.approx(a.mean(), abs=ROUNDING)


def test_permutation_is_exact_up_to_fourteen_images_only():
    scores = np.arange(15.0)
    assert paired_permutation(scores[:14], np.zeros(14), 10, seed=0).p == 2 / 2**13
    many = paired_permutation(scores, np.zeros(15), 99, seed=0)
    assert (many.is_exact, many.num_resamples, many.n) == (False, 99, 15)


def test_a_sampled_permutation_p_is_never_zero_and_near_the_exact_one():
    differences = np.random.default_rng(0).integers(-40, 60, 15)
    sampled = paired_permutation(differences, np.zeros(15), 4000, seed=1)
    exact = permutation_replica(differences.tolist())
    assert 0.01 < exact < 0.5
    # Twice the share of one side: four standard errors of 4000 draws.
    error = 2 * math.sqrt(exact / 2 * (1 - exact / 2) / 4000)
    assert sampled.p == pytest.approx(exact, abs=4 * error)
    # One in 50 cannot be undercut: the observed order counts as one, on either side.
    assert paired_permutation(np.arange(1, 40), np.zeros(39), 99, seed=0).p == 2 / 100


def test_the_seed_determines_a_sampled_permutation():
    a, b = np.random.default_rng(2).standard_normal((2, 30))
    assert paired_permutation(a, b, 500, seed=3) == paired_permutation(a, b, 500, seed=3)
    assert len({paired_permutation(a, b, 500, seed=seed).p for seed in range(5)}) > 1


def bca_replica(values, num_resamples, confidence, seed):
    """Efron's BCa interval of the mean, from his formulas."""
    rng, normal, n = np.random.default_rng(seed), NormalDist(), len(values)
    means = sorted(
        np.mean([values[i] for i in rng.integers(0, n, n)]) for _ in range(num_resamples)
    )
    mean = sum(values) / n
    below = (
        sum(m < mean - ROUNDING for m in means) + sum(abs(m - mean) <= ROUNDING for m in means) / 2
    )
    bias = normal.inv_cdf(below / num_resamples)
    left_out = [(sum(values) - v) / (n - 1) for v in values]
    spread = [sum(left_out) / n - v for v in left_out]
    acceleration = sum(s**3 for s in spread) / (6 * sum(s**2 for s in spread) ** 1.5)
    ends = []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        z = bias + normal.inv_cdf(tail)
        ends.append(np.quantile(means, normal.cdf(bias + z / (1 - acceleration * z))))
    return ends


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_bootstrap_agrees_with_a_replica_of_efrons_formulas(confidence):
    values = np.exp(np.random.default_rng(5).standard_normal(20)).tolist()
    interval = paired_bootstrap(values, 10_000, confidence, seed=6)
    low, high = bca_replica(values, 10_000, confidence, seed=7)
    error = np.std(values, ddof=1) / math.sqrt(20)
    # Both ends come from 10 000 draws: a standard error of 0.03 to 0.06 of the mean's.
    assert interval.low == pytest.approx(low, abs=0.2 * error)
    assert interval.high == pytest.approx(high, abs=0.2 * error)
    assert interval.mean == pytest.approx(np.mean(values))
    assert (interval.n, interval.confidence) == (20, confidence)
    # The skew that BCa is for shows: the long tail is on the right.
    assert interval.high - interval.mean > 1.2 * (interval.mean - interval.low)


def test_the_interval_moves_and_scales_with_the_differences():
    values = np.random.default_rng(8).standard_normal(15)
    interval, other = (paired_bootstrap(v, 500, seed=9) for v in (values, 3 * values - 2))
    assert (other.low, other.high) == pytest.approx((3 * interval.low - 2, 3 * interval.high - 2))
    assert paired_bootstrap(values, 500, seed=9) == interval
    assert paired_bootstrap(values, 500, seed=10) != interval


@pytest.mark.parametrize("value", [0.0, 0.1, -0.3])
def test_differences_that_are_all_equal_have_an_interval_without_width(value):
    interval = paired_bootstrap([value] * 3, seed=0)
    assert interval.low == interval.high == interval.mean == pytest.approx(value)
    assert paired_bootstrap([0.1 + 0.2, 0.3], seed=0).low == pytest.approx(0.3)


def test_one_image_has_no_interval():
    interval = paired_bootstrap([0.4], seed=0)
    assert (interval.mean, interval.low, interval.high, interval.n) == (0.4, None, None, 1)


@FEW
@given(st.lists(st.integers(-2, 2), min_size=2, max_size=9))
def test_the_interval_lies_among_the_differences_and_holds_their_mean(differences):
    interval = paired_bootstrap(differences, 500, seed=0)
    ends = min(differences), interval.low, interval.mean, interval.high, max(differences)
    assert all(x <= y + ROUNDING for x, y in itertools.pairwise(ends))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: summarise([]), r"values: got shape \(0,\), must be a list of at least one"),
        (lambda: welch([0.1, math.nan], [0.1]), "values: got NaN or infinity, must be finite"),
        (lambda: paired_bootstrap([[0.1]], seed=0), r"differences: got shape \(1, 1\)"),
        (lambda: paired_bootstrap([math.inf], seed=0), "differences: got NaN or infinity"),
        (lambda: paired_bootstrap([1], 99, seed=0), "num_resamples: got 99, must be at least 100"),
        (lambda: paired_bootstrap([1], 100, 95, seed=0), "confidence: got 95, must be between 0"),
        (lambda: paired_permutation([1, 2], [1], seed=0), "a and b: got 2 and 1 scores, must be"),
        (lambda: paired_permutation([], [], seed=0), r"a: got shape \(0,\)"),
        (lambda: paired_permutation([1], [math.nan], seed=0), "b: got NaN or infinity"),
        (lambda: paired_permutation([1], [1], 0, seed=0), "num_resamples: got 0, must be"),
    ],
)
def test_what_breaks_a_rule_is_refused_in_one_line_that_names_it(call, message):
    with pytest.raises(ValueError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)
