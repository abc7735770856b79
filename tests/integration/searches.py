"""Small searches, and their outputs in their folder, their study and the tracker."""

from __future__ import annotations

import csv
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import psutil
import yaml
from command_line import ENVIRONMENT, SMALL
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

if TYPE_CHECKING:
    from labn.sweeps.search.status import SearchStatus

PATIENCE_S = 800
NUM_EPOCHS = 4


def write_search(folder: Path, **changes: Any) -> Path:
    """Write a search of small trials, whose file, store, cache and outputs are in one folder."""
    base = SMALL | {
        "data": SMALL["data"] | {"cache_dir": str(folder / "cache")},
        "train": SMALL["train"] | {"epochs": NUM_EPOCHS, "early_stopping_patience": None},
        "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}"},
    }
    tree: dict[str, Any] = {
        "base": base,
        "space": {
            "model.theta_alpha": {"type": "float", "low": 0.1, "high": 0.9},
            "loss.theta_b": {"type": "float", "low": 0.1, "high": 0.9},
        },
        "trials": 4,
        "sampler": {"name": "random"},
        # Halves of a CPU, so that two trials run at once wherever the tests run.
        "trial": {"cpus": 0.5, "max_concurrent": 2},
        "pruning": {"grace_epochs": 2, "reduction": 2},
        "output_dir": str(folder / "search"),
    }
    for key, value in changes.items():
        section, _, leaf = key.partition("__")
        if leaf:
            tree[section] = tree.get(section, {}) | {leaf.replace("__", "."): value}
        else:
            tree[section] = value
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


class Silent:
    def message(self, text: str) -> None:
        pass

    def show(self, status: SearchStatus) -> None:
        pass


def start_search(
    path: Path, *overrides: str, script: Path | None = None, cwd: Path | None = None
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "labn", "search", str(path)]
    if script is not None:
        command = [sys.executable, str(script), "--config", str(path)]
    return subprocess.Popen(
        [*command, *overrides], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=ENVIRONMENT, cwd=cwd,
    )  # fmt: skip


def end(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    """Wait for a process; return its standard output and standard error."""
    printed, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, errors
    return printed, errors


def trials_of(folder: Path) -> list[optuna.trial.FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(f"{folder}/search/study.journal"))
    return optuna.load_study(study_name=None, storage=storage).trials


def epochs_done(folder: Path, number: int) -> int:
    """Return how many epochs a trial has on disk."""
    place = folder / "search" / "trials" / str(number) / "history.csv"
    if not place.is_file():
        return 0
    with place.open() as file:
        return len(list(csv.DictReader(file)))


def trial_processes(process: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    """Return the processes that train a trial, by its number: they lock its folder."""
    found = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            for file in child.open_files():
                place = Path(file.path)
                if place.name == ".lock" and place.parent.parent.name == "trials":
                    found[int(place.parent.name)] = child
        except psutil.NoSuchProcess:
            continue
    return found


def runs_in(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the tracker's runs by name: status, id and tags."""
    with sqlite3.connect(folder / "mlflow.db") as store:
        runs = store.execute("select run_uuid, name, status from runs").fetchall()
        tags = store.execute("select run_uuid, key, value from tags").fetchall()
    return {
        name: {"status": status, "id": run_id} | {k: v for i, k, v in tags if i == run_id}
        for run_id, name, status in runs
    }
