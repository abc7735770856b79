from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from labn.config import Config
from labn.errors import UserError
from labn.runs.folder import RunFolder
from labn.runs.replicas import Replicas
from labn.storage.remote import (
    Folder,
    StorageError,
    absolute,
    address_error,
    subfolder,
    without_secrets,
)
from labn.training import checkpoint


@pytest.mark.parametrize(
    ("address", "fault"),
    [
        ("s3://bucket/folder", None),
        ("gs://anonymous@bucket", None),
        ("s3://bucket/folder?endpoint_override=127.0.0.1:9000&scheme=http", None),
        ("http://host/folder", "must be a path, or begin with s3:// or gs://"),
        ("s3:///folder", "must name a bucket"),
        ("s3://key:secret@bucket", "must not contain credentials"),
        ("s3://bucket?access_key=1", "has unknown option access_key"),
    ],
)
def test_an_address_is_refused_with_its_error(address, fault):
    found = address_error(address)
    assert found is None if fault is None else fault in found


@pytest.mark.parametrize("key", ["data.root", "train.storage"])
def test_a_secret_in_an_address_is_refused_and_not_repeated(tmp_path, key):
    from labn.config import load_config

    path = tmp_path / "config.yaml"
    path.write_text("data: {name: folder, root: .}\noutput_dir: run\n")
    with pytest.raises(UserError) as refused:
        load_config(path, [f"{key}=s3://key:hush@bucket/run?secret=hush"])
    assert f"{key} = s3://bucket/run: must not contain credentials" in str(refused.value)
    assert "hush" not in str(refused.value)


def test_a_folder_within_another_keeps_the_options_of_its_address():
    assert subfolder("s3://b/run/?region=x", "trials", "3") == "s3://b/run/trials/3?region=x"
    assert subfolder(Path("/runs"), "trials", "3") == Path("/runs/trials/3")
    assert subfolder(None, "trials") is None
    assert absolute("s3://b") == "s3://b"
    assert absolute(Path("runs")) == Path.cwd() / "runs"
    assert without_secrets("s3://a:b@bucket/x?y=z") == "s3://bucket/x"


def test_a_folder_on_a_disk_reads_what_was_written(tmp_path):
    folder = Folder(tmp_path / "not yet")
    assert folder.files() == []
    assert folder.size("a/b") is None
    folder.write("a/b", b"text")
    assert [(file.name, file.size) for file in folder.files()] == [("a/b", 4)]
    assert folder.read("a/b") == b"text"
    with (tmp_path / "copy").open("wb") as copy:
        assert folder.download("a/b", copy) == hashlib.sha256(b"text").hexdigest()
    assert (tmp_path / "copy").read_bytes() == b"text"
    folder.delete("a/b")
    with pytest.raises(StorageError):
        folder.read("a/b")


def make_run(tmp_path, name, storage, **train):
    config = Config.model_validate(
        {
            "data": {"name": "synthetic"},
            "train": {"storage": str(storage), "keep_checkpoints": 2} | train,
            "output_dir": str(tmp_path / name),
        }
    )
    return config, RunFolder(config.output_dir)


def save(run, step):
    """Write a stand-in for a checkpoint."""
    path = checkpoint.step_path(run.checkpoints, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(f"step {step}".encode())
    run.best_file.write_bytes(b"best")
    return path


def replicate_steps(tmp_path, storage, *steps):
    config, run = make_run(tmp_path, "first", storage)
    for step in steps:
        replicas = Replicas(config, run)
        assert replicas.restore() is None
        with replicas:
            replicas.add(save(run, step))


def test_the_newest_replicas_are_kept_and_restored_to_an_empty_folder(tmp_path):
    storage = tmp_path / "storage"
    replicate_steps(tmp_path, storage, 1, 2, 3)
    config, run = make_run(tmp_path, "second", storage)

    message = Replicas(config, run).restore()

    assert message == f"restored the checkpoint of step 3 from {storage}"
    assert checkpoint.newest_path(run.checkpoints).read_bytes() == b"step 3"
    assert run.best_file.read_bytes() == b"best"
    names = {file.name for file in Folder(storage).files() if file.name.startswith("step")}
    assert names == {"step-00000002.json", "step-00000003.json"}
    # Two checkpoints and the best network, which is the same in both.
    assert len(Folder(storage).files("objects")) == 3
    assert Replicas(config, run).restore() is None


@pytest.mark.parametrize("damage", ["cut off", "missing", "another", "unnamed"])
def test_an_incomplete_replica_is_skipped(tmp_path, caplog, damage):
    storage = tmp_path / "storage"
    replicate_steps(tmp_path, storage, 1, 2)
    newest = storage / "step-00000002.json"
    place = storage / "objects" / json.loads(newest.read_text())["checkpoints/step-00000002.pt"]
    if damage == "cut off":
        newest.write_text(newest.read_text()[:50])
    elif damage == "missing":
        place.unlink()
    elif damage == "another":
        place.write_bytes(b"step 0")
    else:
        newest.write_text('{"../outside.pt": "0"}')
    config, run = make_run(tmp_path, "second", storage)

    assert Replicas(config, run).restore() == f"restored the checkpoint of step 1 from {storage}"

    assert "step-00000002.json is incomplete" in caplog.text
    assert [path.name for path in run.checkpoints.iterdir()].count("step-00000002.pt") == 0


def test_a_folder_that_is_ahead_of_its_storage_is_left_as_it_is(tmp_path):
    replicate_steps(tmp_path, tmp_path / "storage", 1)
    config, run = make_run(tmp_path, "second", tmp_path / "storage")
    save(run, 5)
    assert Replicas(config, run).restore() is None
    assert checkpoint.newest_path(run.checkpoints).name == "step-00000005.pt"


def test_storage_of_another_run_is_refused(tmp_path):
    replicate_steps(tmp_path, tmp_path / "storage", 1)
    config, run = make_run(tmp_path, "second", tmp_path / "storage", seed=7)
    with pytest.raises(UserError, match=r"train.seed is 0 there, 7 now"):
        Replicas(config, run).restore()
