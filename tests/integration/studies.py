"""Small studies, their outputs in their folder and in the tracker, and checks of these."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import psutil
import pytest
import yaml
from command_line import SMALL
from mlflow import MlflowClient

CONDITIONS = {
    "full": {},
    "no-kl": {"loss.lambda_kl": 0},
    # Found to be wrong only when the data is read: there are two classes.
    "broken": {"loss.class_weights": [1, 1, 1]},
}
SEEDS = [0, 1]
GOOD = [f"{name}/seed-{seed}" for seed in SEEDS for name in ("full", "no-kl")]
PATIENCE_S = 240


def write_study(folder: Path, epochs: int = 6, **changes: Any) -> Path:
    """Write a study of small runs, whose file, store, cache and outputs are in one folder."""
    base = SMALL | {
        "data": SMALL["data"] | {"cache_dir": str(folder / "cache")},
        "train": SMALL["train"] | {"epochs": epochs, "checkpoint_steps": 1},
        "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}", "log_model": False},
    }
    tree = {"base": base, "conditions": CONDITIONS, "seeds": SEEDS, "register_min_auroc": 0}
    tree |= changes
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(tree | {"output_dir": str(folder / "study")}))
    return path


def outcomes(folder: Path) -> dict[str, bytes]:
    """Return the outcome of each run that ended, by name, as bytes."""
    found = folder.glob("study/*/seed-*/outcome.json")
    return {str(path.parent.relative_to(folder / "study")): path.read_bytes() for path in found}


def finished(folder: Path) -> dict[str, bytes]:
    """Return the outcomes of the runs that finished."""
    return {name: text for name, text in outcomes(folder).items() if b'"finished"' in text}


def entries(folder: Path) -> dict[str, SimpleNamespace]:
    """Return the tracker's runs by name: id, status and tags."""
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


def run_id_of(folder: Path, name: str) -> str:
    """Return the tracker's id of a run."""
    return str(json.loads((folder / "study" / name / "tracker.json").read_text())["run_id"])


def logged(folder: Path, key: str) -> list[tuple[Any, ...]]:
    """Return every logged metric of a run with its time: training it again would add some."""
    with sqlite3.connect(folder / "mlflow.db") as store:
        return sorted(
            store.execute(
                "select key, step, value, timestamp from metrics"
                " where run_uuid = ? and key not like 'system/%'",
                [key],
            )
        )


def worker_of(process: subprocess.Popen[str], names: list[str]) -> psutil.Process | None:
    """Return a Ray process that trains one of the runs, if there is one."""
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            words = " ".join(child.cmdline())
        except psutil.NoSuchProcess:
            continue
        if any(f"ray::{name}" in words for name in names):
            return child
    return None


def kill_study(process: subprocess.Popen[str]) -> None:
    """Kill the driver by SIGKILL, and wait until the processes of its Ray have ended."""
    others = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    psutil.wait_procs(others, timeout=PATIENCE_S)


def check_failures(study: SimpleNamespace) -> None:
    """Check that the broken condition is named, and that the others continued."""
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


def check_tracker(study: SimpleNamespace) -> None:
    """Check that the tracker has a parent, and one child per run."""
    found = entries(study.folder)

    parent = found.pop("study")
    assert parent.status == "FAILED"  # as the command was
    assert sorted(found) == sorted(f"study-{name}-{seed}" for name in CONDITIONS for seed in SEEDS)
    for name, entry in found.items():
        match = re.fullmatch(r"study-(.+)-(\d)", name)
        assert match is not None, name
        condition, seed = match.groups()
        expected = {"study": "study", "condition": condition, "seed": seed}
        assert expected.items() <= entry.tags.items()
        assert entry.tags["mlflow.parentRunId"] == parent.id
        assert entry.status == ("FAILED" if condition == "broken" else "FINISHED")
    assert "must have one weight" in found["study-broken-0"].tags["failure"]
    assert "- **no-kl**: loss.lambda_kl=0.0" in parent.tags["mlflow.note.content"]
    assert "full/test_pid" in {row[0] for row in logged(study.folder, parent.id)}
    kept = {path.name for path in study.folder.glob(f"mlruns/**/{parent.id}/artifacts/report/*")}
    assert {"report.html", "scores.png", "differences.png", "maps.png"} <= kept


def check_registered(study: SimpleNamespace) -> None:
    """Check that the best network by validation is registered, once, with its card."""
    scores: dict[str, float] = {}
    for name in GOOD:
        summary = json.loads((study.folder / "study" / name / "summary.json").read_text())
        scores[name] = summary["metrics"]["val_pid"]
    means = {c: sum(scores[f"{c}/seed-{s}"] for s in SEEDS) for c in ("full", "no-kl")}
    condition = max(means, key=means.__getitem__)
    best = max((f"{condition}/seed-{s}" for s in SEEDS), key=scores.__getitem__)

    client = MlflowClient(f"sqlite:///{study.folder / 'mlflow.db'}")
    (version,) = client.search_model_versions("name = 'labn-synthetic'")

    assert version.run_id == run_id_of(study.folder, best)
    assert float(version.tags["val_pid"]) == pytest.approx(scores[best], abs=1e-4)
    assert version.description == (study.folder / "study/report/model_card.md").read_text()
    assert "neither made nor tested for decisions about patients" in version.description
    loaded = mlflow.pyfunc.load_model(client.get_model_version_download_uri(
        "labn-synthetic", version.version))  # fmt: skip
    outputs = loaded.predict(np.zeros((3, 40, 50, 3), dtype=np.uint8))
    assert outputs["probabilities"].sum(axis=1) == pytest.approx(1, abs=1e-5)
