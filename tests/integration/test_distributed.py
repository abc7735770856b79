"""`labn train --workers`: real workers, on the Ray that the tests share."""

from __future__ import annotations

import json
import sqlite3

import pandas as pd
from command_line import assert_mistake, run, write_config

# Of half a CPU each, so that two fit wherever the tests run.
TWO = ("--workers", "2", "--cpus-per-worker", "0.5")


def test_two_workers_train_one_run(shared_ray, tmp_path):
    store = tmp_path / "mlflow.db"
    tracking = {"uri": f"sqlite:///{store}", "log_model": False}
    config = write_config(tmp_path, train__log_steps=1, tracking=tracking)

    done = run("train", config, *TWO, "--json", RAY_ADDRESS=shared_ray)

    assert done.returncode == 0, done.stderr
    assert "2 workers, " in done.stderr
    assert json.loads(done.stdout)["num_epochs"] == 2
    history = pd.read_csv(tmp_path / "run/history.csv")
    assert history["epoch"].tolist() == [1, 2]
    with sqlite3.connect(store) as opened:
        assert opened.execute("select count(*) from runs").fetchone() == (1,)
        tags = dict(opened.execute("select key, value from tags"))
        last = dict(opened.execute("select key, value from latest_metrics"))
    assert tags["world_size"] == "2"
    assert last["world_size"] == 2
    assert min(last["images_per_s_rank_0"], last["images_per_s_rank_1"]) > 0


def test_workers_that_cannot_share_a_batch_are_refused_at_once(labn, tmp_path):
    done = labn("train", write_config(tmp_path), "--workers", "3")

    assert_mistake(done, "train.batch_size = 8: does not divide among 3 workers")
