"""Data and checkpoints in object storage, over S3's real protocol."""

from __future__ import annotations

import concurrent.futures
import json
import os
import shutil
import signal
import subprocess

import pandas as pd
import pytest
from bitwise import assert_same
from command_line import (
    COMMAND,
    ENVIRONMENT,
    assert_mistake,
    run,
    start,
    succeed,
    wait_for,
    write_config,
)
from object_storage import BUCKET, SECRET, S3Server, put

from labn.data.readers.synthetic import write_synthetic
from labn.storage.mirror import mirror
from labn.storage.remote import Folder
from labn.training import checkpoint

pytestmark = pytest.mark.slow
TIMEOUT_S = 240
# Of 40 steps, with a checkpoint after each.
SETTINGS = {
    "train__epochs": 10, "train__checkpoint_steps": 1, "train__log_steps": 1,
    "train__keep_checkpoints": 3, "train__early_stopping_patience": None,
    "tracking__log_model": False,
}  # fmt: skip


@pytest.fixture
def s3(tmp_path, monkeypatch):
    server = S3Server(tmp_path / "s3.log")
    server.start()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
        monkeypatch.setitem(ENVIRONMENT, name, value)
    yield server
    server.stop()


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    write_synthetic(folder, num_images=40, positive_fraction=0.5, seed=0, image_size=32)
    return folder


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_data_is_fetched_once_by_many_processes_and_again_where_it_changed(
    tmp_path, s3, images, caplog
):
    address, remote = put(images, "data/set")
    cache = tmp_path / "cache"
    with concurrent.futures.ProcessPoolExecutor(3) as pool:
        places = list(pool.map(mirror, [address] * 3, [cache] * 3))

    place = places[0]
    assert set(places) == {place}
    assert contents(place) == contents(images)
    assert s3.num_gets(".png") == len(list(images.rglob("*.png")))

    # One file is another now in storage, one is gone, one was damaged on the disk.
    changed, gone, damaged, *_ = sorted(path.name for path in images.rglob("*.png"))
    by_name = {path.name: path for path in images.rglob("*.png")}
    remote.delete(by_name[gone].relative_to(images).as_posix())
    by_name[gone].unlink()
    shutil.copy(by_name[damaged], by_name[changed])
    put(by_name[changed].parent, f"data/set/{by_name[changed].parent.relative_to(images)}")
    here = place / by_name[damaged].relative_to(images)
    here.write_bytes(here.read_bytes()[:-1] + b"?")

    assert mirror(address, cache) == place

    assert contents(place) == contents(images)
    assert "have changed since they were fetched" in caplog.text
    num_gets = s3.num_gets(".png")
    assert mirror(address, cache) == place
    assert s3.num_gets(".png") == num_gets


def test_a_run_on_data_in_storage_prints_no_secret(tmp_path, s3, images):
    address, _ = put(images, "set")
    store = tmp_path / "mlflow.db"
    config = write_config(
        tmp_path, data__name="folder", data__root=address, tracking__uri=f"sqlite:///{store}",
        train__storage=f"s3://{BUCKET}/run", train__epochs=1, tracking__log_model=False,
    )  # fmt: skip

    done = succeed("train", config)

    outputs = {"stderr": done.stderr.encode(), "stdout": done.stdout.encode(), **contents(tmp_path)}
    del outputs["s3.log"]
    assert [name for name, text in outputs.items() if SECRET.encode() in text] == []
    assert address.encode() in store.read_bytes()


def test_a_run_resumes_where_its_folder_is_empty(tmp_path, s3):
    whole = write_config(tmp_path, "whole.yaml", output_dir=tmp_path / "whole", **SETTINGS)
    succeed("train", whole)
    storage = Folder(f"s3://{BUCKET}/runs/1")
    config = write_config(tmp_path, train__storage=f"s3://{BUCKET}/runs/1", **SETTINGS)
    process = start("train", config)
    wait_for(lambda: len(copies(storage)) == 3 and copies(storage)[-1] >= "step-00000010", process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    shutil.rmtree(tmp_path / "run")
    # The newest is damaged there: cut off, as if someone had meddled with it.
    names = copies(storage)
    files = json.loads(storage.read(names[-1]))
    newest = f"objects/{files[f'checkpoints/{names[-1][:-5]}.pt']}"
    storage.write(newest, storage.read(newest)[:1000])

    done = succeed("train", config)

    assert f"{names[-1]} is incomplete" in done.stderr
    assert f"restored the checkpoint of step {int(names[-2][5:13])} from" in done.stderr
    assert_ended_alike(tmp_path / "run", tmp_path / "whole")
    # The last one is there when the command ends, and no more than three, with their files.
    assert copies(storage)[-1] == "step-00000040.json", done.stderr
    assert len(copies(storage)) == 3
    used = {
        digest for name in copies(storage) for digest in json.loads(storage.read(name)).values()
    }
    assert {file.name for file in storage.files("objects")} == {f"objects/{d}" for d in used}


def copies(storage):
    return [file.name for file in storage.files() if file.name.startswith("step-")]


def assert_ended_alike(folder, whole):
    histories = [pd.read_csv(place / "history.csv") for place in (folder, whole)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    states = [checkpoint.load_newest(place / "checkpoints")[1] for place in (folder, whole)]
    assert_same(states[0]["model"], states[1]["model"])
    assert_same(states[0]["optimizer"], states[1]["optimizer"])


def test_storage_that_is_away_for_a_while_costs_nothing(tmp_path, s3):
    storage, log = Folder(f"s3://{BUCKET}/run"), tmp_path / "stderr"
    changes = SETTINGS | {"train__epochs": 60}
    config = write_config(tmp_path, train__storage=f"s3://{BUCKET}/run", **changes)
    with log.open("w") as file:
        process = subprocess.Popen([*COMMAND, "train", config], stderr=file, env=ENVIRONMENT)
    wait_for(lambda: copies(storage), process)

    s3.stop()
    wait_for(lambda: "the upload is retried" in log.read_text(), process)
    s3.start()

    assert process.wait(TIMEOUT_S) == 0, log.read_text()
    assert log.read_text().count("the upload is retried") == 1
    assert "can be reached again" in log.read_text()
    assert copies(storage)[-1] == "step-00000240.json"


def test_storage_that_cannot_be_used_is_refused_before_any_work(tmp_path, s3):
    config = write_config(tmp_path, train__storage="s3://no-such-bucket/run")
    assert_mistake(run("train", config), "train.storage = s3://no-such-bucket/run: cannot be used")

    first = write_config(tmp_path, train__storage=f"s3://{BUCKET}/run", train__epochs=1)
    succeed("train", first)
    other = write_config(
        tmp_path, train__storage=f"s3://{BUCKET}/run", output_dir=tmp_path / "other",
        train__epochs=2,
    )  # fmt: skip
    assert_mistake(
        run("train", other), "holds a run with other settings", "train.epochs is 1 there"
    )
