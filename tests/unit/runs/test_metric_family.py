"""One family of tests over metrics and methods, against scipy and by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from labn.metrics.statistics import holm
from labn.runs.comparison.differences import collect
from labn.runs.comparison.metric_family import agree, is_better_high, measure_family

METHODS, IMAGES, RUNS = ("LABN", "RISE", "random"), tuple("abcdef"), ("one", "two")
SCORES = ("PID m=16", "ROAD", "entropy", "IoU", "seconds")


def make_rows():
    rng = np.random.default_rng(0)
    rows = [
        {"condition": "all runs", "run": run, "method": m, "score": s, "name": i}
        | {"value": rng.normal(METHODS.index(m) / 4, 0.2)}
        for s, m, i, run in itertools.product(SCORES, METHODS, IMAGES, RUNS)
    ]
    return pd.DataFrame(rows)


def set_value(rows, value, **where):
    chosen = np.logical_and.reduce([rows[key] == wanted for key, wanted in where.items()])
    rows.loc[chosen, "value"] = value
    return rows


def measured(rows, reference="LABN"):
    return {value.cell[1:]: value for value in measure_family(collect(rows), reference)}


def images_of(rows, method, score):
    chosen = rows[(rows["method"] == method) & (rows["score"] == score)]
    return chosen.groupby("name")["value"].mean()


def test_each_metric_is_tested_against_the_reference_over_images():
    rows = make_rows()
    found = measured(rows)

    assert list(found) == [(m, s) for s, m in itertools.product(SCORES, METHODS)]
    for (method, score), value in found.items():
        own, reference = (images_of(rows, name, score) for name in (method, "LABN"))
        assert value.mean == pytest.approx(own.mean())
        assert value.low < value.mean < value.high
        assert value.num_images == 6
        if method == "LABN":
            assert value.difference is value.p is value.p_holm is None
            continue
        assert value.difference == pytest.approx((own - reference).mean())
        if score == "seconds":
            assert value.p is None
            continue
        exact = stats.permutation_test(
            (own - reference,), np.mean, permutation_type="samples", n_resamples=np.inf
        )
        assert value.p == pytest.approx(exact.pvalue)


def test_holm_corrects_for_all_tests_of_the_family():
    found = list(measured(make_rows()).values())
    made = [value for value in found if value.p is not None]

    assert len(made) == 4 * 2
    assert [value.p_holm for value in made] == holm([value.p for value in made])


def test_a_metric_is_over_the_images_on_which_all_methods_have_it():
    rows = set_value(make_rows(), np.nan, name="c", method="RISE", score="IoU", run="two")
    rows = set_value(rows, np.nan, method="random", score="ROAD")
    rows = set_value(rows, np.nan, score="entropy")

    found = measured(rows)

    for method in METHODS:
        assert found[method, "IoU"].num_images == 5
        expected = images_of(rows, method, "IoU").drop("c").mean()
        assert found[method, "IoU"].mean == pytest.approx(expected)
        assert (method, "entropy") not in found
    assert ("random", "ROAD") not in found
    assert found["RISE", "ROAD"].num_images == 6


def test_without_the_reference_there_are_means_only():
    found = measured(make_rows(), reference="edges")

    assert all(value.difference is value.p is None for value in found.values())


def test_metrics_agree_by_their_better_direction():
    rows = make_rows()
    for rank, method in enumerate(METHODS):
        rows = set_value(rows, rank, method=method, score="ROAD")
        rows = set_value(rows, -rank, method=method, score="entropy")
        rows = set_value(rows, -rank, method=method, score="IoU")
        rows = set_value(rows, 1, method=method, score="PID m=16")

    (agreement,) = agree(measure_family(collect(rows), "LABN"))

    assert agreement.metrics == ("PID m=16", "ROAD", "entropy", "IoU")  # seconds are a cost
    assert agreement.methods == METHODS
    assert agreement.is_better_high == (True, True, False, True)
    assert agreement.means[1].tolist() == [0, 1, 2]
    assert agreement.tau[1, 2] == pytest.approx(1)
    assert agreement.tau[1, 3] == pytest.approx(-1)
    assert np.isnan(agreement.tau[0]).all()


def test_one_metric_or_one_method_has_nothing_to_agree_with():
    rows = make_rows()
    for only in (rows[rows["score"] == "ROAD"], rows[rows["method"] == "LABN"]):
        assert agree(measure_family(collect(only), "LABN")) == []


@pytest.mark.parametrize(
    ("score", "expected"),
    {"ID": 1, "PID m=8 matched": 1, "ROAD": 1, "entropy": 0, "forward passes": 0}.items(),
)
def test_the_better_direction_is_that_of_the_registry(score, expected):
    assert is_better_high(score) == expected
