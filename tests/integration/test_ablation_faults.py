"""`labn ablate` under faults: real kills; nothing runs twice, nothing is lost."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pandas as pd
import pytest
from command_line import run, start, wait_for
from studies import (
    GOOD,
    PATIENCE_S,
    check_failures,
    check_registered,
    check_tracker,
    finished,
    kill_study,
    logged,
    outcomes,
    run_id_of,
    worker_of,
    write_study,
)

pytestmark = pytest.mark.slow

EPOCHS = 6


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study that is killed once a run is finished, then again loses a worker, then ends."""
    folder = tmp_path_factory.mktemp("study")
    path = write_study(folder, EPOCHS)
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


def test_a_killed_study_resumes_and_loses_no_run(study):
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


# MLflow's own queries, and a type hint of its own.
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")
def test_a_killed_study_ends_as_an_undisturbed_one(study):
    """Its network is registered once, though the study was started twice."""
    check_failures(study)
    check_tracker(study)
    check_registered(study)


@pytest.mark.parametrize("options", [("--serial",), ()], ids=["serial", "Ray"])
def test_a_study_that_is_asked_to_stop_saves_and_resumes(tmp_path, options):
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
