"""`labn train --workers`: real Ray, real workers, real kills; each ends as if undisturbed."""

from __future__ import annotations

import os
import signal
import sqlite3
import time

import pandas as pd
import psutil
import pytest
from bitwise import assert_same
from command_line import run, start, write_config

from labn import checkpoint

pytestmark = pytest.mark.slow
# Of half a CPU each, so that two fit wherever the tests run.
TWO = ("--workers", "2", "--cpus-per-worker", "0.5")
PATIENCE_S = 90


def config_in(folder, **changes):
    """Write a run of 40 steps with a checkpoint after each; a third of a second a step."""
    folder.mkdir(exist_ok=True)
    settings = {
        "train__epochs": 10, "train__checkpoint_steps": 1, "train__log_steps": 1,
        "train__keep_checkpoints": 3, "tracking__uri": f"sqlite:///{folder / 'mlflow.db'}",
        "tracking__log_model": False,
    }  # fmt: skip
    return write_config(folder, **(settings | changes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run on two workers that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    done = run("train", config_in(folder), *TWO)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def outcome(folder):
    newest = checkpoint.load_newest(folder / "checkpoints")[1]
    return newest["model"], pd.read_csv(folder / "history.csv")


def assert_ended_alike(folder, whole):
    model, history = outcome(folder)
    expected_model, expected_history = outcome(whole)
    pd.testing.assert_frame_equal(history, expected_history, check_exact=True)
    assert_same(model, expected_model)


def wait_for_step(folder, step):
    """Wait until a checkpoint of this step or a later one is there."""
    last_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < last_s:
        newest = checkpoint.newest_path(folder / "checkpoints")
        if newest is not None and int(newest.stem.split("-")[1]) >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"no step {step} within {PATIENCE_S} s")


def workers_of(process):
    """The workers' processes, the first rank, which holds the run's lock, before the others."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(child.cmdline()):
                is_first = any(file.path.endswith("run/.lock") for file in child.open_files())
                found.append((not is_first, child.pid))
        except psutil.NoSuchProcess:
            continue
    return [pid for _, pid in sorted(found)]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_is_started_again_by_itself(tmp_path, whole, rank):
    process = start("train", config_in(tmp_path), *TWO)
    wait_for_step(tmp_path / "run", 6)
    workers = workers_of(process)
    assert len(workers) == 2

    os.kill(workers[rank], signal.SIGKILL)

    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    assert "started them again" in errors
    assert_ended_alike(tmp_path / "run", whole)
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        assert store.execute("select count(*) from runs").fetchone() == (1,)


def test_workers_that_cannot_share_a_batch_are_refused_at_once(tmp_path):
    done = run("train", config_in(tmp_path), "--workers", "3")

    assert done.returncode == 2
    assert "train.batch_size = 8: does not divide among 3 workers" in done.stderr
