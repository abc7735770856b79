from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labn.metrics.rank_agreement import rank_agreement, rank_correlation

# Sums in another order, in the same float64.
ROUNDING = 1e-12


def average_ranks(values):
    return [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]


def spearman_replica(a, b):
    """Pearson's correlation of average ranks."""
    ranks = [np.subtract(average_ranks(x), (len(x) + 1) / 2) for x in (a, b)]
    spread = math.sqrt(sum(ranks[0] ** 2) * sum(ranks[1] ** 2))
    return sum(ranks[0] * ranks[1]) / spread if spread else math.nan


def kendall_replica(a, b):
    """Kendall's tau-b, pair by pair."""
    signs = [
        ((a[i] > a[j]) - (a[i] < a[j]), (b[i] > b[j]) - (b[i] < b[j]))
        for i, j in itertools.combinations(range(len(a)), 2)
    ]
    untied = math.sqrt(sum(x != 0 for x, _ in signs) * sum(y != 0 for _, y in signs))
    return sum(x * y for x, y in signs) / untied if untied else math.nan


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(2, 6).flatmap(
    lambda m: st.lists(st.lists(st.integers(0, 4), min_size=m, max_size=m), min_size=1, max_size=4)
))  # fmt: skip
def test_agreement_is_kendalls_and_spearmans_of_each_pair_of_baselines(scores):
    agreement = rank_agreement(scores)
    for measure, replica in ((agreement.tau, kendall_replica), (agreement.rho, spearman_replica)):
        expected = [[replica(a, b) for b in scores] for a in scores]
        np.testing.assert_allclose(measure, expected, atol=ROUNDING)
    assert agreement.num_methods == len(scores[0])


def test_agreement_by_hand():
    # Against the first row: one adjacent swap of three (tau 1/3), the reverse (-1).
    agreement = rank_agreement([[1, 2, 3], [2, 1, 3], [3, 2, 1]])
    assert agreement.tau[0].tolist() == pytest.approx([1, 1 / 3, -1])
    assert agreement.rho[0].tolist() == pytest.approx([1, 0.5, -1])
    assert math.isnan(rank_agreement([[1, 2], [1, 1]]).tau[0, 1])
    assert math.isnan(rank_agreement([[1, 2], [1, 1]]).rho[0, 1])


@pytest.mark.parametrize("levels", [3, 1000])
def test_rank_correlation_agrees_with_a_replica_over_pixels(levels):
    a, b = np.random.default_rng(11).integers(0, levels, (2, 6, 7))
    a = a + b
    expected = spearman_replica(a.ravel().tolist(), b.ravel().tolist())
    assert rank_correlation(a, b) == pytest.approx(expected, abs=ROUNDING)
    assert rank_correlation(torch.from_numpy(a), torch.from_numpy(b)) == rank_correlation(a, b)


def test_rank_correlation_sees_order_alone():
    a = np.random.default_rng(12).standard_normal((5, 5))
    assert rank_correlation(a, np.exp(a)) == pytest.approx(1, abs=ROUNDING)
    assert rank_correlation(a, -(a**3)) == pytest.approx(-1, abs=ROUNDING)


def test_a_constant_map_has_no_rank_correlation():
    varied = np.arange(4.0).reshape(2, 2)
    constant = np.full((2, 2), 0.1)
    assert math.isnan(rank_correlation(varied, constant))
    assert math.isnan(rank_correlation(constant, varied))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rank_agreement([1, 2]), r"scores: got shape \(2,\), must be \(baselines"),
        (lambda: rank_agreement([[1]]), r"scores: got shape \(1, 1\)"),
        (lambda: rank_agreement(np.zeros((0, 3))), r"scores: got shape \(0, 3\)"),
        (lambda: rank_agreement([[1, math.nan]]), "scores: got NaN"),
        (lambda: rank_correlation([1, 2], [1, 2, 3]), r"map_a and map_b: got shapes \(2,\) and"),
        (lambda: rank_correlation([1], [1]), "at least two pixels"),
        (lambda: rank_correlation([1, 2], [1, math.inf]), "map_b: got NaN or infinity"),
    ],
)
def test_what_breaks_a_rule_is_refused_in_one_line_that_names_it(call, message):
    with pytest.raises(ValueError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_maps_of_any_type_are_correlated_by_their_exact_numbers():
    maps = torch.tensor([[1.0, 2.0, 4.0], [3.0, 8.0, 8.0]])
    other = maps.flip(1)
    expected = rank_correlation(maps, other)
    for dtype in (torch.bfloat16, torch.float16, torch.uint8, torch.int64):
        given = maps.to(dtype)
        given = given.requires_grad_() if given.is_floating_point() else given
        assert rank_correlation(given, other.numpy()) == expected
    with pytest.raises(ValueError, match=r"map_a: got torch.complex64 of shape \(2, 3\)"):
        rank_correlation(maps + 0j, other)
