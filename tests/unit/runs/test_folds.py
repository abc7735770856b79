"""The folds of one condition and seed are compared as one sample over all their images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from labn.config import Config
from labn.errors import UserError
from labn.report.seeds import seeds_figure
from labn.runs.comparison.compare import compare_runs
from labn.runs.comparison.comparison_tables import tables
from labn.runs.comparison.differences import Cell
from labn.runs.comparison.read_runs import ScoredRun, _check_comparable, condition_settings

PID = "PID m=8"


def scored(condition, seed, fold, values):
    """Return a run whose images are named by their fold."""
    names = [f"{fold}-{number}" for number in range(len(values))]
    config = Config.model_validate(
        {
            "data": {"name": "synthetic", "folds": 2, "fold": fold or 0},
            "loss": {"lambda_kl": condition},
            "train": {"seed": seed},
            "output_dir": "runs/x",
        }
    )
    images = pd.DataFrame({"name": names, "label": "1", "sha256": names})
    rows = [
        (name, method, PID, "bias image", value + shift, 9)
        for method, shift in (("LABN", 0.0), ("random", -0.5))
        for name, value in zip(names, values, strict=True)
    ]
    return ScoredRun(
        scored_in=Path(f"runs/{condition}/{seed}/{fold}/evaluation/validation"),
        prefix="val",
        name=f"{condition}/{seed}/{fold}",
        path=Path(f"runs/{condition}/{seed}/{fold}"),
        seed=seed,
        fold=fold,
        settings=condition_settings(config),
        terms={},
        metrics={"val_auroc": 0.5 + 0.1 * (fold or 0), "val_accuracy": 0.5},
        images=images,
        manifest=images.assign(partition=str(fold)),
        scores=pd.DataFrame(
            rows, columns=["name", "method", "score", "baseline", "value", "num_points"]
        ),
        localisation=None,
        lambda_layer=None,
    )


RUNS = [
    scored(1.0, 0, 0, [0.1, 0.2, 0.3]),
    scored(1.0, 0, 1, [0.5]),
    scored(1.0, 1, 0, [0.3, 0.4, 0.5]),
    scored(1.0, 1, 1, [0.7]),
    scored(0.0, 0, 0, [0.0, 0.1, 0.1]),
    scored(0.0, 0, 1, [0.4]),
]


def test_every_image_counts_once_in_a_sample_of_folds():
    _check_comparable(RUNS, "validation")
    found = compare_runs(RUNS, "validation", "LABN", ["full"] * 4 + ["no-kl"] * 2)

    full = found.scores[Cell("full", "LABN", PID)]
    assert list(full.by_run.values()) == pytest.approx([1.1 / 4, 1.9 / 4])
    assert (full.num_seeds, full.num_images) == (2, 4)
    assert found.scores[Cell("no-kl", "LABN", PID)].by_run == pytest.approx({"0.0/0/0": 0.15})
    assert found.classification[Cell("full", "", "auroc")].mean == pytest.approx(0.55)
    assert found.num_images == 4
    (between,) = (one for one in found.differences if one.other.condition == "full"
                  and one.cell.condition == "no-kl")  # fmt: skip
    assert between.num_images == 4
    assert between.difference == pytest.approx(0.15 - 0.375)


def test_a_network_without_the_reference_is_tested_against_the_first_conditions():
    plain = [scored(0.0, 0, 0, [0.2, 0.1, 0.0]), scored(0.0, 0, 1, [0.4])]
    plain = [replace(one, scores=one.scores.query("method != 'LABN'")) for one in plain]
    runs = [*RUNS[:2], *plain]
    _check_comparable(runs, "validation")
    found = compare_runs(runs, "validation", "LABN", ["full"] * 2 + ["plain"] * 2)

    pairs = {(one.cell, one.other): one.difference for one in found.differences}
    assert set(pairs) == {
        (Cell("full", "LABN", PID), Cell(name, "random", PID)) for name in ("full", "plain")
    }
    other = pairs[Cell("full", "LABN", PID), Cell("plain", "random", PID)]
    assert other == pytest.approx(1.1 / 4 - (0.7 / 4 - 0.5))
    headings = dict(tables(found))
    assert len(headings["Conditions: LABN"].rows) == 1
    assert len(headings["Scores: plain"].rows) == 1
    assert [row[2] for row in headings["Runs"].rows] == [0, 1, 0, 1]
    assert [row[-1] for row in headings["Classification"].rows] == [1, 1]
    seeds = {cell: list(one.by_run.values()) for cell, one in found.scores.items()}
    panels = seeds_figure(seeds).axes
    assert len(panels[0].get_lines()[0].get_xdata()) == 2


def test_on_test_images_which_are_the_same_in_each_fold_folds_are_samples_as_seeds_are():
    images = RUNS[0].images
    runs = [replace(one, images=images, scores=RUNS[0].scores) for one in RUNS[:2]]
    found = compare_runs(runs, "test", "LABN", ["full"] * 2)
    assert found.scores[Cell("full", "LABN", PID)].num_seeds == 2


def test_a_condition_that_lacks_a_fold_is_refused():
    with pytest.raises(UserError, match=r"runs/0.0/0/0: there is no run of fold 1"):
        _check_comparable(RUNS[:5], "validation")


def test_some_of_the_folds_are_not_passed_for_all(caplog):
    _check_comparable([RUNS[0], RUNS[2]], "validation")
    assert "only 1 of the 2 folds are compared" in caplog.text
    found = compare_runs([RUNS[0], RUNS[2]], "validation", conditions=["full"] * 2)
    assert "They are of 1 of 2 folds." in dict(tables(found))["Runs"].caption


def test_the_methods_are_tested_against_labn_or_the_first_where_no_run_has_it():
    plain = [replace(one, scores=one.scores.query("method != 'LABN'")) for one in RUNS[:2]]
    names = ["one"] * 2
    assert compare_runs(RUNS[:2], "validation", conditions=names).reference == "LABN"
    assert compare_runs(plain, "validation", conditions=names).reference == "random"
    both = compare_runs([*plain, *RUNS[4:]], "validation", conditions=["x"] * 2 + ["y"] * 2)
    assert both.reference == "LABN"
    assert [row[0] for row in dict(tables(both))["Conditions: LABN"].rows] == ["y"]


def test_how_pid_is_measured_is_of_the_condition_where_it_decides_the_best_epoch():
    def settings(monitor, size):
        tree = {"data": {"name": "synthetic"}, "output_dir": "x", "train": {"monitor": monitor}}
        return condition_settings(
            Config.model_validate(tree | {"validation": {"pid_patch_size": size}})
        )

    assert settings("val_auroc", 8) == settings("val_auroc", 4)
    assert settings("val_pid", 8) != settings("val_pid", 4)


def test_a_network_is_scored_as_another_by_its_own_methods():
    other = replace(RUNS[0], terms={"methods": ["LABN"], "patch_sizes": [8]})
    plain = replace(RUNS[4], terms={"methods": ["edges"], "patch_sizes": [2]})
    with pytest.raises(UserError, match=r"--methods edges --patch-sizes 8`"):
        _check_comparable([other, plain], "validation")


def test_the_same_fold_twice_is_no_other_sample():
    with pytest.raises(UserError, match="the same training as"):
        _check_comparable([*RUNS, replace(RUNS[0], name="again")], "validation")


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["study/full", "study/no-kl"], ["full", "full", "full", "full", "no-kl", "no-kl"]),
        # Two studies' folders of one name are not one condition.
        (["study/full", "other/full"], ["loss.lambda_kl=1.0"] * 4 + ["loss.lambda_kl=0.0"] * 2),
    ],
)
def test_runs_of_a_study_are_named_by_its_folders(folders, expected):
    runs = [
        replace(run, path=Path(folders[number >= 4]) / f"seed-{run.seed}-fold-{run.fold}")
        for number, run in enumerate(RUNS)
    ]
    assert compare_runs(runs, "validation", "LABN").conditions == expected
