"""The epochs that TPE with ASHA needs to reach the final score of random search."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import ray
import yaml

from labn.config import load_search
from labn.errors import Interrupted
from labn.sweeps.search.search_driver import run_search
from labn.sweeps.search.status import SearchStatus
from tests.bench.curves import NUM_EPOCHS, PROBLEM
from tests.bench.timing import Row, row_of

NUM_TRIALS = 24


class _BestScore:
    """A reporter that keeps the best score so far."""

    best = float("-inf")

    def message(self, text: str) -> None:
        """Ignore a message."""

    def show(self, status: SearchStatus) -> None:
        """Keep the best score."""
        if status.best is not None:
            self.best = status.best[1]["val_pid"]


def search_rows(num_rounds: int) -> list[Row]:
    """Repeat both searches, each time with another seed of the sampler."""
    ray.init("local", include_dashboard=False, log_to_driver=False)
    results = []
    for seed in range(num_rounds):
        with tempfile.TemporaryDirectory() as folder:
            target, whole = _search(Path(folder), "random", seed, {"trials": NUM_TRIALS})
            # The settings of ASHA are the search's own defaults.
            changes = {"trials": NUM_TRIALS * NUM_EPOCHS, "pruning": {}}
            best, needed = _search(Path(folder), "tpe", seed, changes, target, whole)
        reached = "reaches" if best >= target else "does not reach"
        print(
            f"  seed {seed}: random has val_pid {target:.3f} after {whole} epochs; TPE with ASHA"
            f" {reached} it within {needed} ({best:.3f})",
            flush=True,
        )
        results.append((whole, needed if best >= target else float("inf")))
    ray.shutdown()
    return [
        row_of(
            "search: epochs until random search's best val_pid, TPE with ASHA against random",
            [needed for _, needed in results],
            [whole for whole, _ in results],
            "epochs",
            at_least=1 / 0.6,
        )
    ]


def _search(
    folder: Path,
    sampler: str,
    seed: int,
    changes: dict[str, Any],
    target: float = float("inf"),
    most_epochs: float = float("inf"),
) -> tuple[float, int]:
    """Search until the trials, epochs or target are reached; return best score and epochs."""
    tree = {"pruning": None} | PROBLEM | changes
    tree |= {
        "sampler": {"name": sampler, "seed": seed},
        "output_dir": str(folder / sampler),
    }
    tree["base"] = tree["base"] | {"data": tree["base"]["data"] | {"cache_dir": str(folder)}}
    path = folder / f"{sampler}.yaml"
    path.write_text(yaml.safe_dump(tree))
    search = load_search(path)
    reporter = _BestScore()

    def is_enough() -> bool:
        return reporter.best >= target or _num_epochs(folder / sampler) >= most_epochs

    try:
        run_search(search, path, reporter, is_enough)
    except Interrupted:
        if not is_enough():
            raise
    return reporter.best, _num_epochs(folder / sampler)


def _num_epochs(folder: Path) -> int:
    """Return the number of epochs of all trials, including interrupted ones."""
    histories = folder.glob("trials/*/history.csv")
    return sum(len(path.read_text().splitlines()) - 1 for path in histories)
