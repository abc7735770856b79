"""Workers: the cost of Ray Train per epoch, and the speed-up by a second worker.

Whole commands run in turn, in processes of one thread each. The rows use the metrics that they log
to the tracker, without the first epoch. Each run needs its own process, because the number of
threads is set when torch is loaded.
"""

from __future__ import annotations

import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from tests.bench.timing import Row, row_of

_MAX_ROUNDS = 3
_CONFIG = {
    "data": {"name": "synthetic", "image_size": 112, "synthetic": {"num_images": 320}},
    "model": {"backbone": "lambda_cnn", "split": 0, "theta_alpha": 0.25},
    "train": {
        "epochs": 6, "batch_size": 32, "warmup_epochs": 1, "early_stopping_patience": None,
    },
    "validation": {"pid_patch_size": 16, "pid_num_points": 5},
}  # fmt: skip
_WAYS = {
    "plain": (),
    "one": ("--workers", "1"),
    "two": ("--workers", "2"),
}


def worker_rows(num_rounds: int) -> list[Row]:
    """Compare one worker with the plain command, and two with one."""
    epochs: dict[str, list[dict[str, float]]] = {way: [] for way in _WAYS}
    for _ in range(min(num_rounds, _MAX_ROUNDS)):
        for way, options in _WAYS.items():
            with tempfile.TemporaryDirectory() as folder:
                epochs[way].append(_median_epoch(Path(folder), options))
    return [
        _row(
            "epoch of `labn train --workers 1` against the plain command's",
            "epoch_time_s",
            epochs["one"],
            epochs["plain"],
            1 / 1.05,
        ),
        _row(
            "images/s of 2 workers of one thread against one worker's",
            "images_per_s",
            epochs["two"],
            epochs["one"],
            1.6,
        ),
    ]


def _row(
    name: str,
    metric: str,
    ours: list[dict[str, float]],
    other: list[dict[str, float]],
    at_least: float,
) -> Row:
    is_rate = metric == "images_per_s"
    own, theirs = ([epoch[metric] for epoch in epochs] for epochs in (ours, other))
    unit = "images/s" if is_rate else "s"
    return row_of(name, own, theirs, unit, is_rate=is_rate, at_least=at_least)


def _median_epoch(folder: Path, options: tuple[str, ...]) -> dict[str, float]:
    """Train; return the medians over all epochs except the first, which includes the start."""
    tracking = {"log_model": False, "uri": f"sqlite:///{folder / 'mlflow.db'}"}
    tree = _CONFIG | {"output_dir": str(folder / "run"), "tracking": tracking}
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(tree))
    subprocess.run(
        [sys.executable, "-m", "labn", "train", str(config), *options],
        check=True,
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    with sqlite3.connect(folder / "mlflow.db") as store:
        rows = store.execute(
            "select key, value from metrics where step > 1"
            " and key in ('epoch_time_s', 'images_per_s')"
        ).fetchall()
    names = {name for name, _ in rows}
    return {name: statistics.median(v for key, v in rows if key == name) for name in names}
