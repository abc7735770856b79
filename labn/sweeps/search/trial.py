"""A trial: its runs, and its process, which reports epochs and obeys pruning."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray import tune

from labn.config import Config, DataConfig
from labn.config.search import SearchConfig
from labn.errors import OutOfMemory, RunFailed
from labn.runs.reporter import Reporter
from labn.storage.files import write_json
from labn.sweeps.entry import folds_of, run_config, run_name
from labn.sweeps.search.asha import list_rungs
from labn.sweeps.search.space import Parameters, Space
from labn.sweeps.worker import Outcome, Worker, validation_metrics

OUTCOME = "outcome"
"""The key of a trial's last report, an ``Outcome``."""

NODE = "node"
"""The key of its first report, the node of its process."""

_PRUNED = "pruned.json"


def trial_folder(search: SearchConfig, number: int) -> Path:
    """Return the folder of a trial."""
    return search.output_dir / "trials" / str(number)


def run_folders(search: SearchConfig, number: int) -> list[Path]:
    """Return the folders of a trial's runs so far: the trial's own, or those in it."""
    folder = trial_folder(search, number)
    return sorted(folder.glob("seed-*")) or [folder]


def runs_of(
    search: SearchConfig, data: DataConfig, number: int
) -> list[tuple[Path, int, int | None]]:
    """Return each run of a trial: its folder, the number of its seed, and its fold.

    The folder is the trial's own if there is one run only.
    """
    folder, trial = trial_folder(search, number), search.trial
    folds = folds_of(data, "trial.each_fold", each_fold=trial.each_fold)
    runs = [(folder / run_name(i, fold), i, fold) for i in range(trial.seeds) for fold in folds]
    return runs if len(runs) > 1 else [(folder, *runs[0][1:])]


def trial_configs(
    search: SearchConfig,
    space: Space,
    parameters: Parameters,
    number: int,
    parent_run_id: str | None,
) -> list[Config]:
    """Return the configurations of a trial's runs, which differ in their seeds and folds."""
    config = space.config(parameters)
    tracking = config.tracking.model_copy(update={"log_model": search.trial.log_model})
    changes: dict[str, Any] = {"tracking": tracking}
    if search.pruning is not None and config.train.monitor != "val_pid":
        # The PID of early epochs decides less, and is measured at fewer points. The number grows
        # after a rung, so that all trials are measured alike at each rung. Where the PID decides
        # which epoch is the best, all epochs are measured alike.
        epochs = tuple(rung + 1 for rung in list_rungs(search.pruning, config.train.epochs))
        changes["validation"] = config.validation.model_copy(update={"pid_growth_epochs": epochs})
    config = config.model_copy(update=changes)
    return [
        run_config(
            config,
            *folder.relative_to(search.output_dir).parts,
            seed=config.train.seed + i,
            fold=fold,
            entry_name=f"{search.output_dir.name}-{number}",
            parent_run_id=parent_run_id,
        )
        for folder, i, fold in runs_of(search, config.data, number)
    ]


def prune(folder: Path, reason: str) -> None:
    """Stop a trial permanently; it checks for this after every epoch."""
    write_json(folder / _PRUNED, {"reason": reason})


def run_trial(given: dict[str, Any], worker: Worker, required: tuple[str, ...]) -> None:
    """Run a trial: ``given`` holds its ``folder``, and the ``configs`` of its runs as JSON.

    A trial without the ``required`` metrics has failed.

    Raises:
        OutOfMemory: this process, which ran out of memory, must end. The outcome is stored; the
            process that Tune starts instead reports it, and serves the next trial.
    """
    folder = Path(given["folder"])
    tune.report({NODE: ray.get_runtime_context().get_node_id()})
    outcome = Outcome.read(folder)
    if outcome is None:
        configs = [Config.model_validate(tree) for tree in json.loads(given["configs"])]
        outcome = _complete(folder, configs, worker, required)
        if outcome.is_out_of_memory and worker.processes.num == 1:
            outcome.write(folder)
            raise OutOfMemory(outcome.reason)
    tune.report({OUTCOME: asdict(outcome)})


def _complete(
    folder: Path, configs: Sequence[Config], worker: Worker, required: tuple[str, ...]
) -> Outcome:
    """Complete the runs of a trial; return an outcome with the mean of their metrics."""
    every = []
    for number, config in enumerate(configs):
        reporter = _TrialReporter(folder, required, reports_epochs=number == 0)
        outcome = worker.complete(config, reporter, reporter.is_stopped)
        if reporter.failure is not None:
            return Outcome.of_failure(RunFailed(reporter.failure), metrics=reporter.last)
        if outcome.state == "interrupted":
            reason = reporter.pruned or ""
            return Outcome(state="pruned", metrics=reporter.last, reason=reason)
        if outcome.state == "failed":
            return outcome
        every.append(_with_mean_pid(config, outcome.metrics, worker))
    names = [name for name in every[0] if all(name in metrics for metrics in every)]
    values = {name: [metrics[name] for metrics in every] for name in names}
    means = {name: statistics.fmean(row) for name, row in values.items()}
    if (fault := _fault(means, required, "the best epoch")) is not None:
        return Outcome.of_failure(RunFailed(fault))
    spread = {name: statistics.stdev(row) for name, row in values.items() if len(row) > 1}
    return Outcome(state="finished", metrics=means, spread=spread)


def _with_mean_pid(config: Config, metrics: dict[str, float], worker: Worker) -> dict[str, float]:
    """Return a run's validation metrics, with the mean PID of the patch sizes it was scored at."""
    if worker.evaluate is None:
        return metrics
    sizes = worker.evaluate.patch_sizes or ()
    pids = {f"val_pid_m{size}": metrics[f"val_pid_m{size}_LABN"] for size in sizes}
    mean = {"val_pid": statistics.fmean(pids.values())}
    matched = _mean_over(sizes, metrics, "LABN")
    if matched is not None:
        mean["val_pid_matched"] = matched
        if (centre := _mean_over(sizes, metrics, "centre")) is not None:
            mean["val_pid_over_centre"] = matched - centre
    return validation_metrics(config.output_dir) | pids | mean


def _mean_over(sizes: Sequence[int], metrics: Mapping[str, float], method: str) -> float | None:
    """Return a method's mean PID at matched confidence; None if one was not measured."""
    values = [metrics.get(f"val_pid_m{size}_matched_{method}") for size in sizes]
    measured = [value for value in values if value is not None]
    return statistics.fmean(measured) if len(measured) == len(values) else None


def _fault(metrics: Mapping[str, float], required: tuple[str, ...], place: str) -> str | None:
    """Return which required metric is missing or not finite; None if all are finite."""
    for name in required:
        if not math.isfinite(metrics.get(name, math.nan)):
            return f"{name} of {place} is {metrics.get(name, 'missing')}"
    return None


class _TrialReporter(Reporter):
    """A reporter that sends each epoch to the search, and receives whether to stop."""

    def __init__(self, folder: Path, required: tuple[str, ...], *, reports_epochs: bool) -> None:
        self._folder, self._required, self._reports_epochs = folder, required, reports_epochs
        self.last: dict[str, float] = {}
        self.failure: str | None = None
        self.pruned = _read_pruned(folder)

    def is_stopped(self) -> bool:
        """Return whether the run must end early."""
        return self.failure is not None or self.pruned is not None

    def epoch(self, metrics: Mapping[str, float], num_epochs: int, time_s: float) -> None:
        """Report an epoch, and wait until the search has decided on the trial."""
        self.last = dict(metrics)
        fault = _fault(metrics, self._required, f"epoch {metrics['epoch']:.0f}")
        if fault is not None:
            self.failure = fault
        elif self._reports_epochs:
            # Returns after the search has decided.
            tune.report(dict(metrics))
            self.pruned = _read_pruned(self._folder)


def _read_pruned(folder: Path) -> str | None:
    file = folder / _PRUNED
    return str(json.loads(file.read_text())["reason"]) if file.is_file() else None
