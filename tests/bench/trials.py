"""The cost of a trial of a search beyond its training, on a running Ray."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import torch
import yaml

from labn.config import load_config, load_search
from labn.runs.reporter import Reporter
from labn.runs.train import train_run
from labn.sweeps.search.search_driver import run_search
from labn.sweeps.search.status import SearchStatus
from tests.bench.timing import Row, row_of, time_s

NUM_TRIALS = 6
_BASE: dict[str, Any] = {
    "data": {"name": "synthetic", "image_size": 48, "synthetic": {"num_images": 300}},
    "model": {"backbone": "lambda_cnn", "split": 0, "theta_alpha": 0.25},
    "train": {"epochs": 3, "batch_size": 16, "warmup_epochs": 1},
    "validation": {"pid_patch_size": 8, "pid_num_points": 9},
}


class _Clock:
    """A reporter that records when each trial ended."""

    def __init__(self) -> None:
        self.ends_s: list[float] = []

    def message(self, text: str) -> None:
        """Ignore a message."""

    def show(self, status: SearchStatus) -> None:
        """Record the time of a trial's end."""
        now_s = time.monotonic()
        self.ends_s += [now_s] * (status.num_ended - len(self.ends_s))


def overhead_rows(num_rounds: int) -> list[Row]:
    """Time trials one after the other, and their runs again without a search.

    Everything counts: proposing, scheduling, reporting, tracking and writing a trial.
    """
    ray.init("local", include_dashboard=False, log_to_driver=False)
    torch.set_num_threads(1)  # as a trial of one CPU has
    with_search, alone = [], []
    with tempfile.TemporaryDirectory() as place:
        for number in range(num_rounds):
            folder = Path(place) / str(number)
            folder.mkdir()
            start_s = time.monotonic()
            ends_s = _search(folder, Path(place) / "cache", seed=number)
            cycles = [b - a for a, b in zip([start_s, *ends_s], ends_s, strict=False)]
            runs = [_train_alone(folder, trial) for trial in range(NUM_TRIALS)]
            print(
                f"  round {number}: first trial {cycles[0]:.1f} s, with the start of the search and"
                f" of its process; then {statistics.median(cycles[1:]):.2f} s a trial,"
                f" {statistics.median(runs[1:]):.2f} s its run alone",
                flush=True,
            )
            # The first of each warms up.
            with_search += cycles[1:]
            alone += runs[1:]
    ray.shutdown()
    beyond = sorted(a - b for a, b in zip(with_search, alone, strict=True))
    quartiles = statistics.quantiles(beyond, n=4)
    print(
        f"  a trial's time beyond its training: median {statistics.median(beyond):.2f} s"
        f" (quartiles {quartiles[0]:.2f} to {quartiles[2]:.2f}, n = {len(beyond)})",
        flush=True,
    )
    return [
        row_of(
            "search: a trial of 3 epochs, its run alone against as a trial",
            with_search,
            alone,
            "s",
            statistics.median(beyond),
            "seconds of a trial beyond its training",
        )
    ]


def _search(folder: Path, cache: Path, seed: int) -> list[float]:
    """Search one trial at a time; return the times at which they ended."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    base = _BASE | {"tracking": {"uri": uri}}
    base["data"] = base["data"] | {"cache_dir": str(cache)}
    tree = {
        "base": base,
        "space": {"model.theta_alpha": {"type": "float", "low": 0.05, "high": 0.75}},
        "trials": NUM_TRIALS,
        "sampler": {"name": "tpe", "seed": seed},
        "pruning": None,
        "trial": {"max_concurrent": 1},
        "output_dir": str(folder / "search"),
    }
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(tree))
    clock = _Clock()
    run_search(load_search(path), path, clock)
    return clock.ends_s


def _train_alone(folder: Path, trial: int) -> float:
    """Train a trial's run once more, tracked as before; return the seconds."""
    config = load_config(folder / "search" / "trials" / str(trial) / "config.yaml")
    config = config.model_copy(update={"output_dir": folder / f"alone-{trial}"})
    return time_s(lambda: train_run(config, Reporter()))
