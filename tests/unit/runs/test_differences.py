from __future__ import annotations

import itertools
import math
from statistics import fmean, stdev

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from labn.runs.comparison.differences import (
    Cell,
    collect,
    compare_baselines,
    compare_cells,
    label_conditions,
    summarise_cells,
)

# Sums in another order, in the same float64.
ROUNDING = 1e-12
METHODS, SCORES, IMAGES = ("LABN", "RISE", "random"), ("ID", "PID m=16"), tuple("abcdef")
RUNS = {"with": ("w0", "w1", "w2"), "without": ("o0", "o1")}


def make_value(condition, run, method, score, name, rng):
    level = {"LABN": 0.5, "RISE": 0.2, "random": 0.0}[method] - 0.1 * (condition == "without")
    return level + 0.05 * SCORES.index(score) + rng.normal(0, 0.1)


@pytest.fixture
def rows():
    """One dictionary per value, with runs and images in mixed order."""
    rng = np.random.default_rng(20)
    made = [
        {"condition": c, "run": run, "method": m, "score": s, "name": name}
        for c, runs in RUNS.items()
        for s, m, name, run in itertools.product(SCORES, METHODS, IMAGES, runs)
    ]
    return [row | {"value": make_value(*row.values(), rng)} for row in made]


def values_of(rows, *, run, method, score):
    """One run's values, by image."""
    return {
        row["name"]: row["value"]
        for row in rows
        if (row["run"], row["method"], row["score"]) == (run, method, score)
    }


def seed_means(rows, cell):
    return [
        fmean(values_of(rows, run=run, method=cell.method, score=cell.score).values())
        for run in RUNS[cell.condition]
    ]


def image_means(rows, cell):
    by_run = [
        values_of(rows, run=run, method=cell.method, score=cell.score)
        for run in RUNS[cell.condition]
    ]
    return [fmean(values[name] for values in by_run) for name in IMAGES]


def sign_flip_p(differences):
    """Two-sided p over all changes of sign: twice the smaller tail."""
    observed = sum(differences)
    sums = [
        sum(s * d for s, d in zip(signs, differences, strict=True))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    tails = (sum(t >= observed - 1e-12 for t in sums), sum(t <= observed + 1e-12 for t in sums))
    return min(1.0, 2 * min(tails) / len(sums))


def holm_replica(p_values):
    """The largest, over hypotheses at most as unlikely, of p times how many were left."""
    order = sorted(p_values)
    return [
        max(min(1.0, (len(order) - k) * q) for k, q in enumerate(order) if q <= p) for p in p_values
    ]


def test_a_summary_is_over_seeds_of_means_over_images(rows):
    summaries = summarise_cells(collect(pd.DataFrame(rows)))

    assert list(summaries) == [
        Cell(condition, method, score)
        for condition, score, method in itertools.product(RUNS, SCORES, METHODS)
    ]
    for cell, summary in summaries.items():
        means = seed_means(rows, cell)
        assert summary.mean == pytest.approx(fmean(means), abs=ROUNDING)
        assert summary.sd == pytest.approx(stdev(means), abs=ROUNDING)
        assert (summary.num_seeds, summary.num_images) == (len(means), len(IMAGES))
        assert summary.by_run == pytest.approx(
            dict(zip(RUNS[cell.condition], means, strict=True)), abs=ROUNDING
        )


def test_the_order_of_the_rows_changes_nothing_but_the_order_of_the_cells(rows):
    shuffled = [rows[i] for i in np.random.default_rng(21).permutation(len(rows))]

    summaries, other = (summarise_cells(collect(pd.DataFrame(r))) for r in (rows, shuffled))

    assert list(summaries)[:3] == [Cell("with", method, "ID") for method in METHODS]
    assert {cell: one.mean for cell, one in other.items()} == pytest.approx(
        {cell: one.mean for cell, one in summaries.items()}, abs=ROUNDING
    )


def test_each_method_is_tested_against_the_reference_and_each_condition_against_the_first(rows):
    differences = compare_cells(collect(pd.DataFrame(rows)), "LABN", num_resamples=100)

    assert [(one.cell, one.other) for one in differences] == [
        (Cell(condition, "LABN", score), Cell(condition, method, score))
        for condition in RUNS
        for score in SCORES
        for method in ("RISE", "random")
    ] + [(Cell("without", "LABN", score), Cell("with", "LABN", score)) for score in SCORES]


def test_every_test_agrees_with_one_made_by_hand(rows):
    differences = compare_cells(collect(pd.DataFrame(rows)), "LABN", num_resamples=100)

    for one in differences:
        a, b = (seed_means(rows, cell) for cell in (one.cell, one.other))
        assert one.difference == pytest.approx(fmean(a) - fmean(b), abs=ROUNDING)
        expected = stats.ttest_ind(a, b, equal_var=False).pvalue
        # t is a difference of means of few values: it has fewer exact digits than they have.
        assert one.welch_p == pytest.approx(expected, rel=1e-8)
        assert one.welch_reason is None
        assert (one.num_seeds, one.num_other_seeds) == (len(a), len(b))
        images_a, images_b = (image_means(rows, cell) for cell in (one.cell, one.other))
        paired = np.subtract(images_a, images_b).tolist()
        assert fmean(paired) == pytest.approx(one.difference, abs=ROUNDING)
        assert one.permutation_p == pytest.approx(sign_flip_p(paired), abs=ROUNDING)
        assert (one.num_images, one.num_resamples, one.is_exact) == (6, 64, True)
        assert min(paired) <= one.low < one.difference < one.high <= max(paired)
        assert one.confidence == 0.95


def test_both_tests_are_corrected_over_all_that_was_tested(rows):
    differences = compare_cells(collect(pd.DataFrame(rows)), "LABN", num_resamples=100)

    for name in ("welch_p", "permutation_p"):
        raw = [getattr(one, name) for one in differences]
        corrected = [getattr(one, f"{name}_holm") for one in differences]
        assert corrected == pytest.approx(holm_replica(raw), abs=ROUNDING)
        assert corrected != raw


def test_the_interval_covers_the_means_of_resampled_images(rows):
    (one, *_) = compare_cells(collect(pd.DataFrame(rows)), "LABN", num_resamples=4000)
    paired = np.subtract(image_means(rows, one.cell), image_means(rows, one.other))
    resampled = np.random.default_rng(22).choice(paired, (4000, len(paired))).mean(axis=1)

    # BCa moves the percentiles a little, and both sides are random.
    spread = resampled.std()
    assert [one.low, one.high] == pytest.approx(
        np.quantile(resampled, [0.025, 0.975]).tolist(), abs=spread / 2
    )


def test_one_seed_has_neither_spread_nor_welch_but_is_tested_over_images(rows):
    single = pd.DataFrame([row for row in rows if row["run"] in ("w0", "o0")])

    cells = collect(single)

    assert all(one.sd is None for one in summarise_cells(cells).values())
    for one in compare_cells(cells, "LABN", num_resamples=100):
        assert one.welch_p is None
        assert one.welch_p_holm is None
        assert "needs two seeds of each method, but got 1 and 1" in one.welch_reason
        assert 0 < one.permutation_p <= one.permutation_p_holm <= 1


def test_the_same_seed_gives_the_same_tests(rows):
    cells = collect(pd.DataFrame(rows))

    assert compare_cells(cells, "LABN", num_resamples=100) == compare_cells(
        cells, "LABN", num_resamples=100
    )


def test_undefined_values_are_left_out_of_a_mean_and_its_count(rows):
    for row in rows:
        if row["method"] == "random" or (row["run"] == "w0" and row["name"] == "a"):
            row["value"] = math.nan

    summaries = summarise_cells(collect(pd.DataFrame(rows)))

    assert not [cell for cell in summaries if cell.method == "random"]
    summary = summaries[Cell("with", "LABN", "ID")]
    assert summary.num_images == 5
    kept = values_of(rows, run="w0", method="LABN", score="ID")
    assert summary.by_run["w0"] == pytest.approx(
        fmean(kept[name] for name in "bcdef"), abs=ROUNDING
    )


@pytest.mark.parametrize("lost", ["all methods", "one method", "one run"])
def test_tests_refuse_methods_of_different_images(rows, lost):
    def is_kept(row):
        is_lost = (
            row["name"] == "a"
            and {
                "all methods": row["condition"] == "without",
                "one method": row["method"] == "RISE",
                "one run": row["run"] == "w1",
            }[lost]
        )
        return not is_lost

    cells = collect(pd.DataFrame(filter(is_kept, rows)))

    with pytest.raises(ValueError, match="must have the same images, in every run"):
        compare_cells(cells, "LABN", num_resamples=100)


def test_tests_refuse_an_unknown_reference(rows):
    with pytest.raises(ValueError, match=r"Grad-CAM.* is missing"):
        compare_cells(collect(pd.DataFrame(rows)), "Grad-CAM", num_resamples=100)


def test_an_image_that_is_scored_twice_is_refused(rows):
    with pytest.raises(ValueError, match="duplicate"):
        collect(pd.DataFrame([*rows, rows[0]]))


def test_baselines_agree_as_far_as_they_order_the_methods_alike():
    def table(score, baseline, means):
        return [
            {"condition": "all", "run": run, "method": method, "score": score, "name": name}
            | {"baseline": baseline, "value": mean + shift + (run == "r1") * 0.01}
            for method, mean in zip("xyz", means, strict=True)
            for run in ("r0", "r1")
            for name, shift in (("a", -0.3), ("b", 0.3))
        ]

    values = pd.DataFrame(
        table("ID", "zero", (1, 2, 3))
        + table("PID m=2", "bias", (1, 2, 3))
        + table("PID m=2", "black", (2, 1, 3))
        + table("PID m=2", "blur", (3, 2, 1))
    )

    (agreement,) = compare_baselines(values)

    assert (agreement.condition, agreement.score) == ("all", "PID m=2")
    assert agreement.baselines == ("bias", "black", "blur")
    # One swap of three pairs: 2 - 1 of 3; the reverse: -1; both: 1 - 2 of 3.
    np.testing.assert_allclose(
        agreement.ranks.tau, [[1, 1 / 3, -1], [1 / 3, 1, -1 / 3], [-1, -1 / 3, 1]], atol=ROUNDING
    )
    assert agreement.ranks.num_methods == 3


def test_a_method_without_one_of_the_baselines_does_not_count():
    values = pd.DataFrame(
        {"condition": "all", "run": "r", "method": method, "score": "PID m=2", "name": "a"}
        | {"baseline": baseline, "value": value}
        for method, baseline, value in [
            ("x", "bias", 1.0),
            ("y", "bias", 2.0),
            ("z", "bias", 0.0),
            ("x", "black", 5.0),
            ("y", "black", 7.0),
        ]
    )

    (agreement,) = compare_baselines(values)

    assert agreement.ranks.num_methods == 2
    np.testing.assert_allclose(agreement.ranks.tau, np.ones((2, 2)))
    assert compare_baselines(values[values["method"] == "x"]) == []


def test_conditions_are_named_by_the_settings_that_differ():
    common = {"model.split": 7, "data.name": "idrid"}
    settings = [
        common | {"loss.lambda_kl": 1.0, "train.ema_decay": None},
        common | {"loss.lambda_kl": 0.0, "train.ema_decay": None},
        common | {"loss.lambda_kl": 1.0, "train.ema_decay": 0.9},
        common | {"loss.lambda_kl": 1.0, "train.ema_decay": None},
    ]

    assert label_conditions(settings) == [
        "loss.lambda_kl=1.0, train.ema_decay=null",
        "loss.lambda_kl=0.0, train.ema_decay=null",
        "loss.lambda_kl=1.0, train.ema_decay=0.9",
        "loss.lambda_kl=1.0, train.ema_decay=null",
    ]
    assert label_conditions([common, common]) == ["all runs", "all runs"]
