"""`labn ablate`: real Ray; failures stay alone, and what is left behind holds together."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from base64 import b64decode
from html.parser import HTMLParser
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from command_line import assert_mistake, lose_end, run, run_here
from PIL import Image
from studies import (
    GOOD,
    SEEDS,
    check_failures,
    check_registered,
    check_tracker,
    entries,
    finished,
    outcomes,
    write_study,
)

from labn.runs.evaluation.measure_maps import COSTS
from labn.sweeps.ablation import ablation_driver
from tests.bench import results

EPOCHS = 2


@pytest.fixture(scope="module", autouse=True)
def blank_figures():
    """Draw the figures: the report's are looked at."""


@pytest.fixture(scope="module")
def study(tmp_path_factory, shared_ray):
    """A study that nothing disturbs; one of its conditions is wrong."""
    folder = tmp_path_factory.mktemp("study")
    path = write_study(folder, EPOCHS, evaluate={"metrics": ["ROAD", "sparseness"]})
    done = run_here("ablate", path)
    return SimpleNamespace(folder=folder, path=path, returncode=done.returncode, errors=done.stderr)


def test_every_run_of_a_study_trains_to_its_end(study):
    assert sorted(finished(study.folder)) == sorted(GOOD)
    for name in GOOD:
        history = pd.read_csv(study.folder / "study" / name / "history.csv")
        assert history["epoch"].tolist() == list(range(1, EPOCHS + 1)), name


def test_a_condition_that_fails_is_named_and_the_others_continue(study):
    check_failures(study)


def test_the_tracker_has_a_parent_and_one_child_a_run(study):
    check_tracker(study)


# MLflow's own queries, and a type hint of its own.
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")
def test_the_best_conditions_network_is_registered_with_its_card(study):
    check_registered(study)


def test_a_run_of_a_study_is_that_of_plain_training(study, labn, tmp_path):
    config = study.folder / "study/no-kl/seed-1/config.yaml"

    done = labn("train", config, f"output_dir={tmp_path / 'run'}", "tracking.uri=none")

    assert done.returncode == 0, done.stderr
    histories = [
        pd.read_csv(place / "history.csv")
        for place in (tmp_path / "run", study.folder / "study/no-kl/seed-1")
    ]
    pd.testing.assert_frame_equal(*histories, check_exact=True)


def test_the_report_compares_conditions_over_seeds(study):
    report = json.loads((study.folder / "study/report/report.json").read_text())

    for condition in ("full", "no-kl"):
        (row,) = (
            one
            for one in report["scores"]
            if (one["condition"], one["method"], one["score"]) == (condition, "LABN", "PID m=8")
        )
        ended = outcomes(study.folder)
        metrics = {seed: json.loads(ended[f"{condition}/seed-{seed}"])["metrics"] for seed in SEEDS}
        values = {seed: one["test_pid"] for seed, one in metrics.items()}
        assert row["num_seeds"] == len(SEEDS)
        assert row["by_run"] == {
            f"{condition}/seed-{seed}": pytest.approx(value) for seed, value in values.items()
        }
        assert row["mean"] == pytest.approx(sum(values.values()) / len(values))
    pairs = {
        (one["cell"]["condition"], one["other"]["condition"])
        for one in report["differences"]
        if one["cell"]["method"] == one["other"]["method"]
    }
    assert pairs == {("no-kl", "full")}
    metrics = {(x["cell"]["condition"], x["cell"]["score"]) for x in report["metrics"]}
    scores = ("PID m=16", "ROAD", "sparseness", *COSTS)
    assert metrics == {(name, score) for name in ("full", "no-kl") for score in scores}
    latex = (study.folder / "study/report/report.tex").read_text()
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") > 3


class References(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for key, value in attrs if key in ("src", "href", "srcset", "data")]


def test_the_page_of_results_repeats_the_report(study, tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["results", str(study.folder / "study"), "--out", str(tmp_path / "r.md")]
    )

    results.main()

    page = (tmp_path / "r.md").read_text()
    report = json.loads((study.folder / "study/report/report.json").read_text())
    for row in report["scores"]:
        if row["score"] == "PID m=16 matched":
            line = next(
                x for x in page.splitlines() if f"| {row['condition']} | {row['method']} |" in x
            )
            assert f"{row['mean']:.3f} ± {row['sd']:.3f} |" in line
    for run_row in report["runs"]:
        assert f"| {run_row['name']} |" in page
    for picture in re.findall(r"\]\((images/.*)\)", page):
        assert (tmp_path / picture).is_file()


def test_the_page_opens_without_a_network(study):
    html = (study.folder / "study/report/report.html").read_text()
    references = References()
    references.feed(html)

    pictures = [text for text in references.found if text.startswith("data:image/png;base64,")]
    # Five of the study, the scores, the agreement of seeds, and, of two conditions each, their
    # spread and the metrics.
    assert len(pictures) == 11
    for text in pictures:
        with Image.open(io.BytesIO(b64decode(text.partition(",")[2]))) as picture:
            assert len(picture.convert("L").getcolors()) > 10
    assert all(text.startswith(("data:", "#section-")) for text in references.found)
    assert not re.search(r"https?://|url\(|@import|<script", html)


def test_the_same_command_with_nothing_left_trains_nothing(labn, study, monkeypatch):
    content = yaml.safe_load(study.path.read_text())
    good = {name: content["conditions"][name] for name in ("full", "no-kl")}
    path = study.folder / "good.yaml"
    path.write_text(yaml.safe_dump(content | {"conditions": good}))
    before = outcomes(study.folder)

    # Nothing to enter: it needs no Ray.
    monkeypatch.setattr(ablation_driver, "connected", None)
    read = lose_end(study.folder / "study" / GOOD[0])

    done = labn("ablate", path, "--json")

    assert done.returncode == 0, done.stderr
    assert "4 of 4 runs are finished already" in done.stderr
    assert outcomes(study.folder) == before
    means = json.loads(done.stdout)["means"]
    assert sorted(means) == ["full", "no-kl"]
    assert entries(study.folder)["study"].status == "FINISHED"
    assert read() == ("FINISHED", True)


def test_labn_report_writes_the_report_of_a_study_again(labn, study):
    report = study.folder / "study/report/report.html"
    report.unlink()

    done = labn("report", study.folder / "study")

    assert done.returncode == 0, done.stderr
    assert report.is_file()


def test_another_study_in_the_same_folder_is_refused(labn, study):
    done = labn("ablate", study.path, "train.epochs=9")

    assert_mistake(done, "holds a run with other settings", "train.epochs is 2 there, 9 now")


def test_conditions_that_are_the_same_are_refused(labn, tmp_path):
    path = write_study(tmp_path, conditions={"full": {}, "same": {"loss.lambda_kl": 1}})

    done = labn("ablate", path)

    assert_mistake(done, f"{path}: conditions.same", "the same network as conditions.full")
    assert not (tmp_path / "study").exists()


def test_a_dry_run_shows_conditions_and_makes_nothing(labn, tmp_path):
    done = labn("ablate", write_study(tmp_path), "--dry-run", "--json")

    content = json.loads(done.stdout)
    assert [one["is_finished"] for one in content["runs"]] == [False] * 6
    assert content["conditions"]["no-kl"]["loss.lambda_kl"] == 0
    assert not (tmp_path / "study").exists()


def test_a_dry_run_shows_seeds_and_folds(labn, tmp_path):
    settings = ("each_fold=true", "data.folds=3", "seeds=[0, 4]")
    done = labn("ablate", write_study(tmp_path), *settings, "--dry-run")

    assert done.returncode == 0, done.stderr
    total, *conditions = done.stdout.splitlines()
    assert "18 runs" in total
    assert len(conditions) == 3
    assert all(line.endswith("; seeds 0, 4, each on folds 0, 1, 2") for line in conditions)


@pytest.mark.slow
def test_runs_of_several_workers_train_through_ray_train(tmp_path):
    """Only one of the two fits at a time."""
    conditions = {"full": {}, "no-kl": {"loss.lambda_kl": 0}}
    each_run = {"workers": 2, "cpus": os.cpu_count() / 3}
    path = write_study(tmp_path, conditions=conditions, seeds=[0], each_run=each_run)

    done = run("ablate", path, "train.epochs=1", "--json")

    assert done.returncode == 0, done.stderr
    assert [one["state"] for one in json.loads(done.stdout)["runs"]] == ["finished"] * 2
    for name in conditions:
        assert entries(tmp_path)[f"study-{name}-0"].tags["world_size"] == "2"
