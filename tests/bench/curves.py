"""The command `python -m tests.bench.curves`: record the curves that searches are compared on.

It trains Sobol points of the space of ``PROBLEM`` for all epochs, and the first of them again with
other seeds, which shows the noise. Each line of the file is one training; a command that is given
again continues after the last whole line.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from scipy.stats import qmc

from labn.config import Config
from labn.config.reading import set_key, validate
from labn.errors import Interrupted
from labn.runs.reporter import Reporter
from labn.runs.train import train_run
from labn.training.evaluate import Evaluation, evaluate

NUM_EPOCHS, NUM_POINTS, NUM_REPEATED, SEEDS = 9, 300, 60, (0, 1, 2)
RECORDED = Path(__file__).parent / "curves.jsonl.gz"
"""The curves of this repository."""
PROBLEM: dict[str, Any] = {
    "base": {
        "data": {"name": "synthetic", "image_size": 48, "synthetic": {"num_images": 300}},
        "model": {"backbone": "lambda_cnn", "split": 0, "theta_alpha": 0.25},
        "loss": {"theta_b": 0.5},
        "train": {
            "epochs": NUM_EPOCHS,
            "batch_size": 16,
            "warmup_epochs": 1,
            "learning_rate_head": 3e-3,
            "learning_rate_backbone": 3e-3,
            "early_stopping_patience": None,
        },
        "validation": {"pid_patch_size": 8, "pid_num_points": 9},
        "tracking": {"uri": "none"},
    },
    "space": {
        "model.theta_alpha": {"type": "float", "low": 0.05, "high": 0.75},
        "loss.theta_b": {"type": "float", "low": 0.1, "high": 0.9},
        "loss.lambda_lab": {"type": "float", "low": 0.1, "high": 3.0, "log": True},
        "loss.lambda_kl": {"type": "float", "low": 0.1, "high": 3.0, "log": True},
        "train.learning_rate_head": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True},
        "train.learning_rate_backbone": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True},
    },
    "trial": {"max_concurrent": 2},
}


def main() -> None:
    """Record what is not recorded yet."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.bench.curves")
    parser.add_argument("--out", type=Path, default=Path("runs/curves.jsonl"))
    out: Path = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    known = read_curves(out) if out.is_file() else []
    # A line that a kill has cut short is left out.
    out.write_text("".join(json.dumps(curve) + "\n" for curve in known))
    done = {(curve["point"], curve["seed"]) for curve in known}
    torch.set_num_threads(1)
    trainings = list(_trainings())
    with tempfile.TemporaryDirectory() as place, out.open("a") as file:
        for number, (point, seed) in enumerate(trainings):
            if (point, seed) not in done:
                curve = _train(sobol_points()[point], seed, Path(place) / str(number), Path(place))
                file.write(json.dumps({"point": point, "seed": seed} | curve) + "\n")
                file.flush()
                best = max(epoch["val_pid"] for epoch in curve["epochs"])
                print(f"{number + 1} of {len(trainings)}: val_pid {best:.3f}", flush=True)


def read_curves(path: Path) -> list[dict[str, Any]]:
    """Return the recorded trainings: point, seed, parameters, epochs; of whole lines only."""
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def sobol_points() -> list[dict[str, float]]:
    """Return the points of the space, by the keys of a run's configuration."""
    unit = qmc.Sobol(len(PROBLEM["space"]), seed=0).random(512)[:NUM_POINTS]
    return [from_unit(row) for row in unit]


def from_unit(row: np.ndarray) -> dict[str, float]:
    """Return the parameters at a point of the unit cube."""
    parameters = {}
    for value, (key, domain) in zip(row, PROBLEM["space"].items(), strict=True):
        low, high = domain["low"], domain["high"]
        is_log = domain.get("log", False)
        parameters[key] = float(
            low * (high / low) ** value if is_log else low + (high - low) * value
        )
    return parameters


def to_unit(parameters: dict[str, float]) -> list[float]:
    """Return the point of the unit cube of these parameters."""
    row = []
    for key, domain in PROBLEM["space"].items():
        value, low, high = parameters[key], domain["low"], domain["high"]
        is_log = domain.get("log", False)
        row.append(
            float(np.log(value / low) / np.log(high / low))
            if is_log
            else (value - low) / (high - low)
        )
    return row


def _trainings() -> Iterator[tuple[int, int]]:
    """Yield points and seeds; those that show the noise come first."""
    yield from ((point, seed) for point in range(NUM_REPEATED) for seed in SEEDS)
    yield from ((point, SEEDS[0]) for point in range(NUM_REPEATED, NUM_POINTS))


def _train(parameters: dict[str, float], seed: int, folder: Path, cache: Path) -> dict[str, Any]:
    tree = json.loads(json.dumps(PROBLEM["base"]))
    changes = {"train.seed": seed, "output_dir": str(folder), "data.cache_dir": str(cache)}
    for key, value in (parameters | changes).items():
        set_key(tree, key, value)
    epochs: list[dict[str, Any]] = []

    def recorded(*args: Any, **keywords: Any) -> Evaluation:
        evaluation = evaluate(*args, **keywords)
        assert evaluation.pid is not None
        scores = evaluation.as_metrics("val")
        each = [round(value, 4) for value in evaluation.pid.pid.tolist()]
        epochs.append({name: round(scores[name], 5) for name in ("val_pid", "val_auroc")})
        epochs[-1]["pid"] = each
        return evaluation

    # No reporter gets the scores of single images. The final evaluation, with its pictures, is not
    # needed.
    with patch("labn.runs.hooks.evaluate", recorded), suppress(Interrupted):
        config = validate(Config, tree, {"": ""})
        train_run(config, Reporter(), lambda: len(epochs) == NUM_EPOCHS)
    return {"parameters": parameters, "epochs": epochs}


if __name__ == "__main__":
    main()
