"""What a trial does in its own process: it trains a run, and tells the search how that goes."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune

from labn.config import Config
from labn.config.workers import Workers
from labn.errors import Interrupted, RunFailed, UserError
from labn.runs.folder import RunFolder
from labn.runs.reporting import Reporter
from labn.search.study import Outcome
from labn.storage.files import write_json
from labn.storage.remote import below

OUTCOME = "outcome"
"""Key of a trial's last report: an ``Outcome``."""

_PRUNED = "pruned.json"
_TAKE_OVER_S = 120  # NFS frees the locks of a lost node after its lease, 90 s as a rule


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all trials of a search share."""

    wanted: tuple[str, ...]
    """Metrics without which a trial has failed."""
    num_seeds: int
    patch_sizes: tuple[int, ...] | None
    """Of the PID whose mean counts; None: the run's own."""
    workers: Workers


def trial_folder(output_dir: Path, number: int) -> Path:
    """Name the folder of a trial."""
    return output_dir / "trials" / str(number)


def run_folders(folder: Path, num_seeds: int) -> list[Path]:
    """Name the folders of a trial's runs: its own, or one for each seed in it."""
    return [folder] if num_seeds == 1 else [folder / f"seed-{i}" for i in range(num_seeds)]


def prune(folder: Path, reason: str) -> None:
    """Tell a trial to stop, for good; it looks after every epoch."""
    write_json(folder / _PRUNED, {"reason": reason})


def run_trial(given: dict[str, Any], task: Task) -> None:
    """Be a trial: ``given`` has its ``folder``, and its run's ``config`` as JSON."""
    outcome = _attempt(Path(given["folder"]), json.loads(given["config"]), task)
    tune.report({OUTCOME: asdict(outcome)})


def _attempt(folder: Path, tree: dict[str, Any], task: Task) -> Outcome:
    last: dict[str, float] = {}
    try:
        scores = []
        for number, place in enumerate(run_folders(folder, task.num_seeds)):
            config = Config.model_validate(tree | {"output_dir": str(place)})
            own: dict[str, Any] = {"seed": config.train.seed + number}
            if task.num_seeds > 1:
                own["storage"] = below(config.train.storage, f"seed-{number}")
            config = config.model_copy(update={"train": config.train.model_copy(update=own)})
            reporter = _Reporter(folder, task.wanted, is_heard=number == 0)
            try:
                scores.append(_train(config, task, reporter))
            except Interrupted:
                last = reporter.last
                if reporter.failure is None:
                    return Outcome(state="pruned", metrics=last, reason=reporter.pruned or "")
            if reporter.failure is not None:
                raise RunFailed(reporter.failure)
        return _finished(scores, task.wanted)
    # Whatever befalls a trial is its own affair; the search goes on.
    except Exception as error:  # noqa: BLE001
        text = " ".join(str(error).split()) or type(error).__name__
        known = isinstance(error, (RunFailed, UserError))
        reason = text if known else f"{type(error).__name__}: {text}"
        return Outcome(state="failed", metrics=last, reason=reason, kind=type(error).__name__)


def _train(config: Config, task: Task, reporter: _Reporter) -> dict[str, float]:
    """Train one run to its end, from its newest checkpoint; give its best epoch's metrics."""
    # Of a search that was killed, the trials' processes may still be ending.
    with RunFolder(config.output_dir).claimed(wait_s=_TAKE_OVER_S):
        pass
    if reporter.is_stopped():
        raise Interrupted
    import torch

    torch.set_num_threads(max(1, int(task.workers.cpus)))
    if task.workers.num == 1:
        from labn.runs.training import train_run

        metrics = train_run(config, reporter, reporter.is_stopped).metrics
    else:
        metrics = _train_on_workers(config, task, reporter)
    return metrics | _mean_pid(config, task, reporter)


def _mean_pid(config: Config, task: Task, reporter: _Reporter) -> dict[str, float]:
    """Score the PID of the best epoch at the patch sizes that the search asks for."""
    if task.patch_sizes is None:
        return {}
    from labn.runs.scoring import evaluate_run

    choices = {"methods": ("LABN",), "patch_sizes": task.patch_sizes}
    scores = evaluate_run(config.output_dir, "validation", [], reporter, choices)
    sizes = {f"val_pid_m{m}": scores.metrics[f"val_pid_m{m}_LABN"] for m in task.patch_sizes}
    return sizes | {"val_pid": statistics.fmean(sizes.values())}


def _train_on_workers(config: Config, task: Task, reporter: _Reporter) -> dict[str, float]:
    from labn.distributed import train_distributed

    assert ray.is_initialized()
    return train_distributed(config, task.workers, reporter, reporter.is_stopped).metrics


def _finished(scores: list[dict[str, float]], wanted: tuple[str, ...]) -> Outcome:
    metrics = {
        name: statistics.fmean(score[name] for score in scores)
        for name in scores[0]
        if all(name in score for score in scores)
    }
    for name in wanted:
        if not math.isfinite(metrics.get(name, math.nan)):
            raise RunFailed(f"{name} of the best epoch is {metrics.get(name, 'not there')}")
    spread = {}
    if len(scores) > 1:
        spread = {name: statistics.stdev(score[name] for score in scores) for name in metrics}
    return Outcome(state="finished", metrics=metrics, spread=spread)


class _Reporter(Reporter):
    """Passes each epoch on to the search, and hears from it whether to stop."""

    def __init__(self, folder: Path, wanted: tuple[str, ...], *, is_heard: bool) -> None:
        self._folder, self._wanted, self._is_heard = folder, wanted, is_heard
        self.last: dict[str, float] = {}
        self.failure: str | None = None
        self.pruned = _read_pruned(folder)

    def is_stopped(self) -> bool:
        """Tell whether the run shall end before its time."""
        return self.failure is not None or self.pruned is not None

    def say(self, text: str) -> None:
        """Keep quiet: many trials run at once."""

    def advance(self, task: str, done: int, total: int) -> None:
        """Keep quiet."""

    def epoch(self, metrics: Mapping[str, float], num_epochs: int, time_s: float) -> None:
        """Report an epoch, and wait until the search has decided on the trial."""
        self.last = dict(metrics)
        for name in self._wanted:
            if not math.isfinite(metrics.get(name, math.nan)):
                value = metrics.get(name, "not there")
                self.failure = f"{name} is {value} after epoch {metrics['epoch']:.0f}"
                return
        if self._is_heard:
            # Comes back once the search asks for more, having decided.
            tune.report(dict(metrics))
            self.pruned = _read_pruned(self._folder)


def _read_pruned(folder: Path) -> str | None:
    place = folder / _PRUNED
    return str(json.loads(place.read_text())["reason"]) if place.is_file() else None
