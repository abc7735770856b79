"""`labn ablate`: real Ray, real kills; nothing runs twice, nothing is lost, failures stay alone."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sqlite3
from base64 import b64decode
from html.parser import HTMLParser
from types import SimpleNamespace

import mlflow
import numpy as np
import pandas as pd
import psutil
import pytest
import yaml
from command_line import SMALL, assert_mistake, run, start, wait_for
from mlflow import MlflowClient
from PIL import Image

pytestmark = pytest.mark.slow

CONDITIONS = {
    "full": {},
    "no-kl": {"loss.lambda_kl": 0},
    # Known to be wrong once the data is read: there are two classes.
    "broken": {"loss.class_weights": [1, 1, 1]},
}
SEEDS = [0, 1]
EPOCHS = 6
GOOD = [f"{name}/seed-{seed}" for seed in SEEDS for name in ("full", "no-kl")]
PATIENCE_S = 120


def write_study(folder, **changes):
    base = SMALL | {
        "data": SMALL["data"] | {"cache_dir": str(folder / "cache")},
        "train": SMALL["train"] | {"epochs": EPOCHS, "checkpoint_steps": 1},
        "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}", "log_model": False},
    }
    tree = {"base": base, "conditions": CONDITIONS, "seeds": SEEDS} | changes
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(tree | {"output_dir": str(folder / "study")}))
    return path


def outcomes(folder):
    """What each run that ended says of it, by name, as bytes."""
    found = folder.glob("study/*/seed-*/outcome.json")
    return {str(path.parent.relative_to(folder / "study")): path.read_bytes() for path in found}


def finished(folder):
    return {name: text for name, text in outcomes(folder).items() if b'"finished"' in text}


def entries(folder):
    """The tracker's runs by name: id, status and tags."""
    with sqlite3.connect(folder / "mlflow.db") as store:
        runs = store.execute("select run_uuid, name, status from runs").fetchall()
        assert len({name for _, name, _ in runs}) == len(runs), runs
        return {
            name: SimpleNamespace(
                id=key,
                status=status,
                tags=dict(store.execute("select key, value from tags where run_uuid = ?", [key])),
            )
            for key, name, status in runs
        }


def run_id_of(folder, name):
    """What the tracker calls a run."""
    return json.loads((folder / "study" / name / "tracker.json").read_text())["run_id"]


def logged(folder, key):
    """Every metric that a run was given, with its time: another run of it would add some."""
    with sqlite3.connect(folder / "mlflow.db") as store:
        return sorted(
            store.execute(
                "select key, step, value, timestamp from metrics"
                " where run_uuid = ? and key not like 'system/%'",
                [key],
            )
        )


def worker_of(process, names):
    """A process of Ray that works on one of the runs."""
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            words = " ".join(child.cmdline())
        except psutil.NoSuchProcess:
            continue
        if any(f"ray::{name}" in words for name in names):
            return child
    return None


def kill_study(process):
    """Kill the driver as by the kernel, and wait until its Ray has noticed."""
    others = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    psutil.wait_procs(others, timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study that is killed once a run is finished, then again loses a worker, then ends."""
    folder = tmp_path_factory.mktemp("study")
    path = write_study(folder)
    first = start("ablate", path)
    wait_for(lambda: finished(folder), first)
    kill_study(first)
    before = finished(folder)
    logged_before = {name: logged(folder, run_id_of(folder, name)) for name in before}
    second = start("ablate", path)
    left = [name for name in GOOD if name not in before]

    def worker_trains():
        worker = worker_of(second, left)
        return worker is not None and any(
            list(folder.glob(f"study/{name}/checkpoints/step-*.pt")) for name in left
        )

    wait_for(worker_trains, second)
    worker_of(second, left).kill()
    _, errors = second.communicate(timeout=PATIENCE_S)
    return SimpleNamespace(
        folder=folder,
        path=path,
        before=before,
        logged_before=logged_before,
        returncode=second.returncode,
        errors=errors,
    )


def test_a_killed_study_goes_on_and_loses_no_run(study):
    assert 0 < len(study.before) < len(GOOD)
    assert sorted(finished(study.folder)) == sorted(GOOD)
    for name in GOOD:
        history = pd.read_csv(study.folder / "study" / name / "history.csv")
        assert history["epoch"].tolist() == list(range(1, EPOCHS + 1)), name


def test_what_was_finished_before_the_kill_is_not_run_again(study):
    for name, content in study.before.items():
        assert outcomes(study.folder)[name] == content
        assert logged(study.folder, run_id_of(study.folder, name)) == study.logged_before[name]
        assert study.logged_before[name]
    assert f"{len(study.before)} of 6 runs are finished already" in study.errors


def test_a_condition_that_fails_is_named_and_the_others_go_on(study):
    assert study.returncode == 1
    last = study.errors.splitlines()[-1]
    assert last.startswith("error: 2 of 6 runs failed: ")
    assert "broken/seed-0 (loss.class_weights = [1.0, 1.0, 1.0]: must have one weight" in last
    content = json.loads((study.folder / "study" / "summary.json").read_text())
    states = {(one["condition"], one["seed"]): one["state"] for one in content["runs"]}
    assert states == {
        (name, seed): "failed" if name == "broken" else "finished"
        for name in CONDITIONS
        for seed in SEEDS
    }
    report = json.loads((study.folder / "study/report/report.json").read_text())
    assert {one["condition"] for one in report["runs"]} == {"full", "no-kl"}
    assert (
        "Not in this report: broken, seed 0"
        in (study.folder / "study/report/report.md").read_text()
    )


def test_the_tracker_has_a_parent_and_one_child_a_run(study):
    found = entries(study.folder)

    parent = found.pop("study")
    assert parent.status == "FAILED"  # as the command was
    assert sorted(found) == sorted(f"study-{name}-{seed}" for name in CONDITIONS for seed in SEEDS)
    for name, entry in found.items():
        _, condition, seed = re.fullmatch(r"(study)-(.+)-(\d)", name).groups()
        expected = {"study": "study", "condition": condition, "seed": seed}
        assert expected.items() <= entry.tags.items()
        assert entry.tags["mlflow.parentRunId"] == parent.id
        assert entry.status == ("FAILED" if condition == "broken" else "FINISHED")
    assert "must have one weight" in found["study-broken-0"].tags["failure"]
    assert "- **no-kl**: loss.lambda_kl=0.0" in parent.tags["mlflow.note.content"]
    assert "full/test_pid" in {row[0] for row in logged(study.folder, parent.id)}
    kept = {path.name for path in study.folder.glob(f"mlruns/**/{parent.id}/artifacts/report/*")}
    assert {"report.html", "scores.png", "differences.png", "maps.png"} <= kept


# MLflow's own queries, and a type hint of its own.
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")
def test_the_best_conditions_network_is_registered_with_its_card(study):
    """The best by validation; once, though the study was started three times."""
    scores = {}
    for name in GOOD:
        summary = json.loads((study.folder / "study" / name / "summary.json").read_text())
        scores[name] = summary["metrics"]["val_pid"]
    means = {c: sum(scores[f"{c}/seed-{s}"] for s in SEEDS) for c in ("full", "no-kl")}
    condition = max(means, key=means.get)
    best = max((f"{condition}/seed-{s}" for s in SEEDS), key=scores.get)

    client = MlflowClient(f"sqlite:///{study.folder / 'mlflow.db'}")
    (version,) = client.search_model_versions("name = 'labn-synthetic'")

    assert version.run_id == run_id_of(study.folder, best)
    assert float(version.tags["val_pid"]) == pytest.approx(scores[best], abs=1e-4)
    assert version.description == (study.folder / "study/report/model_card.md").read_text()
    assert "not made, nor tested, for any decision about a patient" in version.description
    loaded = mlflow.pyfunc.load_model(client.get_model_version_download_uri(
        "labn-synthetic", version.version))  # fmt: skip
    outputs = loaded.predict(np.zeros((3, 3, 32, 32), dtype=np.float32))
    assert outputs["probabilities"].sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_a_run_of_a_study_is_that_of_plain_training(study, tmp_path):
    config = study.folder / "study/no-kl/seed-1/config.yaml"

    done = run("train", config, f"output_dir={tmp_path / 'run'}", "tracking.uri=none")

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
    latex = (study.folder / "study/report/report.tex").read_text()
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") > 3


class References(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for key, value in attrs if key in ("src", "href", "srcset", "data")]


def test_the_page_opens_without_a_network(study):
    html = (study.folder / "study/report/report.html").read_text()
    references = References()
    references.feed(html)

    pictures = [text for text in references.found if text.startswith("data:image/png;base64,")]
    assert len(pictures) == 6
    for text in pictures:
        with Image.open(io.BytesIO(b64decode(text.partition(",")[2]))) as picture:
            assert len(picture.convert("L").getcolors()) > 10
    assert all(text.startswith("data:") for text in references.found)
    assert not re.search(r"https?://|url\(|@import|<script", html)


def test_the_same_command_with_nothing_left_trains_nothing(study):
    content = yaml.safe_load(study.path.read_text())
    good = {name: content["conditions"][name] for name in ("full", "no-kl")}
    path = study.folder / "good.yaml"
    path.write_text(yaml.safe_dump(content | {"conditions": good}))
    before = outcomes(study.folder)

    done = run("ablate", path, "--json")

    assert done.returncode == 0, done.stderr
    assert "4 of 4 runs are finished already" in done.stderr
    assert "starting Ray" not in done.stderr
    assert outcomes(study.folder) == before
    means = json.loads(done.stdout)["means"]
    assert sorted(means) == ["full", "no-kl"]
    assert entries(study.folder)["study"].status == "FINISHED"


def test_labn_report_writes_the_report_of_a_study_anew(labn, study):
    report = study.folder / "study/report/report.html"
    report.unlink()

    done = labn("report", study.folder / "study")

    assert done.returncode == 0, done.stderr
    assert report.is_file()


def test_another_study_in_the_same_folder_is_refused(labn, study):
    done = labn("ablate", study.path, "train.epochs=9")

    assert_mistake(done, "holds a run with other settings", "train.epochs is 6 there, 9 now")


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


@pytest.mark.parametrize("options", [("--serial",), ()], ids=["serial", "Ray"])
def test_a_study_that_is_asked_to_stop_saves_and_goes_on(tmp_path, options):
    path = write_study(tmp_path, conditions={"full": {}}, seeds=[0])
    settings = (*options, "tracking.uri=none", "train.epochs=40")
    process = start("ablate", path, *settings)
    wait_for(lambda: list(tmp_path.glob("study/full/seed-0/checkpoints/step-*.pt")), process)

    process.send_signal(signal.SIGTERM)

    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1, errors
    assert "stopped as asked; 0 of 1 runs are finished" in errors
    assert outcomes(tmp_path) == {}
    done = run("ablate", path, "--serial", *settings[-2:])
    assert done.returncode == 0, done.stderr
    assert sorted(finished(tmp_path)) == ["full/seed-0"]


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


def test_a_study_runs_once_at_a_time(tmp_path):
    path = write_study(tmp_path, conditions={"full": {}}, seeds=[0])
    settings = (
        "--serial",
        "tracking.uri=none",
        "train.epochs=400",
        "train.early_stopping_patience=null",
    )
    process = start("ablate", path, *settings)
    try:
        wait_for(lambda: (tmp_path / "study/full/seed-0").is_dir(), process)
        done = run("ablate", path, *settings)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()

    assert done.returncode == 2
    assert "another process runs this study" in done.stderr
