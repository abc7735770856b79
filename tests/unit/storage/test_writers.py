"""Every writer of the package: what it renames is on the disk first, and nothing writes past it."""

from __future__ import annotations

import os
import shutil

import pandas as pd
import pytest
import yaml
from power_loss import Disk

from labn.config import load_config, load_search
from labn.data.readers.synthetic import write_synthetic
from labn.distributed.launch.tracker_database import MirroredDatabase
from labn.model.kernels.compiled import built
from labn.runs.folder import RunFolder
from labn.runs.replicas import Replicas
from labn.storage.mirror import mirror
from labn.sweeps.search.optuna_study import SearchStudy
from labn.sweeps.search.search_outputs import SearchOutputs
from labn.sweeps.search.space import Space
from labn.sweeps.search.trial import prune
from labn.sweeps.worker import Outcome
from labn.tracking.spool import Spool
from labn.training import checkpoint

SEARCH = {
    "base": {
        "data": {"name": "synthetic", "image_size": 32},
        "model": {"backbone": "lambda_cnn", "split": 0},
        "tracking": {"uri": "none"},
    },
    "space": {
        key: {"type": "float", "low": 0.1, "high": 0.9}
        for key in ("model.theta_alpha", "loss.theta_b")
    },
}


def search(folder):
    """Conclude a search of three trials."""
    (folder / "given").mkdir()
    path = folder / "given/search.yaml"
    path.write_text(yaml.safe_dump(SEARCH | {"output_dir": str(folder / "search")}))
    read = load_search(path)
    made = Space(read, path)
    study = SearchStudy(read, made)
    for number in range(3):
        assert study.next()[0] == number
        study.conclude(number, Outcome(state="finished", metrics={"val_pid": 0.1 * number}))
    SearchOutputs(read, made, study).conclude()
    return {
        "search/summary.json",
        "search/summary.md",
        "search/best.yaml",
        "search/figures/history.png",
    }


def pruning(folder):
    prune(folder / "trials/1", "worse than others")
    return {"trials/1/pruned.json"}


def tracker_id(folder):
    RunFolder(folder / "run").keep_tracker_run_id("sqlite:///mlflow.db", "1")
    return {"run/tracker.json"}


def spool(folder):
    """Keep two calls, of which one can be delivered."""
    (folder / "given").mkdir()
    (folder / "given/picture").write_text("picture")
    kept = Spool(folder / "spool")
    kept.append("run", "log_artifact", {"path": folder / "given/picture"})
    kept.append("run", "log_dataset", {"manifest": pd.DataFrame({"name": ["x"]})})

    def deliver(call, arguments):
        if call == "log_dataset":
            raise ConnectionError

    with pytest.raises(ConnectionError):
        kept.drain(deliver)
    assert len(kept) == 1
    return {"spool/untracked.jsonl"}


def database(folder):
    MirroredDatabase(folder / "given/mlflow.db", folder / "shared/mlflow.db").open()
    MirroredDatabase(folder / "head/mlflow.db", folder / "shared/mlflow.db").open()
    return {"shared/mlflow.db", "head/mlflow.db"}


def mirrored(folder):
    (folder / "given").mkdir()
    (folder / "given/x.png").write_bytes(b"image")
    place = mirror(str(folder / "given"), folder / "cache")
    assert (place / "x.png").read_bytes() == b"image"
    return {
        str((place / "x.png").relative_to(folder)),
        str((place.parent / "index.json").relative_to(folder)),
    }


def copies(folder):
    """Copy a checkpoint into storage, and take it from there."""
    (folder / "given").mkdir()
    path = folder / "given/config.yaml"
    path.write_text(f"data: {{name: synthetic}}\noutput_dir: {folder / 'given/run'}\n")
    config = load_config(path, [f"train.storage={folder / 'storage'}"])
    run = RunFolder(config.output_dir)
    run.checkpoints.mkdir(parents=True)
    checkpoint.step_path(run.checkpoints, 3).write_bytes(b"checkpoint")
    with Replicas(config, run) as made:
        assert made.restore() is None
        made.add(checkpoint.step_path(run.checkpoints, 3))
    assert Replicas(config, RunFolder(folder / "other")).restore() is not None
    return {
        "storage/config.yaml",
        "storage/step-00000003.json",
        "other/checkpoints/step-00000003.pt",
    }


def synthetic(folder):
    write_synthetic(folder / "set", num_images=4, positive_fraction=0.5, seed=0, image_size=32)
    return {"set/positive/0002.png", "set/masks/positive/0002.png"}


def kernel(folder):
    (folder / "given").mkdir()
    source = folder / "given/kernel.cpp"
    source.write_text('extern "C" int one() { return 1; }')
    return {str(built(source, folder / "kernels").relative_to(folder))}


@pytest.mark.parametrize(
    "write",
    [search, pruning, tracker_id, spool, database, mirrored, copies, synthetic, kernel],
    ids=lambda write: write.__name__,
)
def test_no_power_loss_leaves_half_of_what_is_written(tmp_path, monkeypatch, write):
    if write is kernel and shutil.which("g++") is None:
        pytest.skip("there is no compiler")
    disk = Disk(tmp_path)
    for name, call in disk.calls().items():
        monkeypatch.setattr(os, name, call)

    written = write(tmp_path)

    assert disk.faults == []
    assert disk.unkept() == []
    assert written <= set(disk.placed)
