"""The driver of a study: its runs as Ray tasks, their outcomes, and the report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray

from labn.distributed.capacity import check_capacity, max_concurrent, resources
from labn.distributed.checks.nodes import Requirements, check_nodes
from labn.distributed.session import connected
from labn.errors import Interrupted, RunFailed
from labn.runs.folder import RunFolder, locked
from labn.runs.reporter import Reporter, StoppingReporter
from labn.runs.tracked import close_entry, closing_entry, deliver_kept, log_settings
from labn.sweeps.ablation.ablation_report import PICTURES, StudySummary, summarise
from labn.sweeps.ablation.ablation_study import AblationRun, AblationStudy, settings_as_text
from labn.sweeps.ablation.register import register_best
from labn.sweeps.entry import open_sweep_entry
from labn.sweeps.worker import Outcome, Worker
from labn.tracking import Tracker, image_in_description

_POLL_S = 0.5
_LONGEST_NOTE = 7500
"""The length of a note, in characters, that every tracker accepts."""
_NUM_NAMED = 3
"""How many failures the error message names."""


def run_study(
    study: AblationStudy,
    reporter: Reporter,
    should_stop: Callable[[], bool] = lambda: False,
    *,
    is_serial: bool = False,
) -> StudySummary:
    """Train and score the unfinished runs of a study, then write and return its report.

    Runs are tasks of the Ray that this process is connected to, else of ``RAY_ADDRESS``, else of a
    local one; with ``is_serial`` they run one after the other in this process. A failed run is
    recorded with the reason; the others continue.

    Raises:
        UserError: the settings are not those of the runs in the folder, or there is no capacity.
        RunFailed: some runs failed and are not in the report, or ``should_stop`` returned True.
    """
    folder = study.settings.output_dir
    with locked(folder, "runs this study", name=".ablation.lock"):
        for run in study.runs():
            RunFolder(run.config.output_dir).check_same(run.config)
        study = study.sharing_splits(StoppingReporter(reporter, should_stop))
        entry = _open_entry(study)
        with closing_entry(entry):
            problem = _run_all(study, entry.run_id, reporter, should_stop, is_serial)
            deliver_kept(
                (run.config, RunFolder(run.config.output_dir), "FINISHED")
                for run in filter(study.is_finished, study.runs())
            )
            summary = summarise(study, reporter)
            card = register_best(study, reporter)
            _log_report(entry, summary, [*summary.files, *([card] if card else [])])
            if problem:
                raise RunFailed(problem)
    return summary


def _run_all(
    study: AblationStudy,
    entry_id: str | None,
    reporter: Reporter,
    should_stop: Callable[[], bool],
    is_serial: bool,
) -> str | None:
    """Run the unfinished runs; return which of them failed, if any did.

    Raises:
        Interrupted: ``should_stop`` returned True.
    """
    every = study.runs(entry_id)
    left = [run for run in every if not study.is_finished(run)]
    num_done = len(every) - len(left)
    if num_done:
        reporter.message(f"{num_done} of {len(every)} runs are finished already")
    session = _Session(study, reporter, should_stop, num_done, left)
    if left and is_serial:
        session.run_here()
    elif left:
        processes = study.settings.each_run.processes
        keys = ("each_run.workers", "each_run.cpus", "each_run.gpus")
        with connected(reporter.message, lambda: check_capacity(processes, keys)):
            check_nodes(Requirements.of(study.base, processes), reporter.message)
            session.run_on_ray()
    if session.is_stopping:
        raise Interrupted(
            f"stopped as asked; {session.num_finished} of {len(every)} runs are finished, and the"
            " others saved: run the same command again to resume"
        )
    return _failures_as_text(session.failures, len(every))


def _open_entry(study: AblationStudy) -> Tracker:
    title, settings = study.settings.title, study.settings
    conditions = {
        f"conditions.{name}": settings_as_text(row) for name, row in study.differing().items()
    }
    others = {"seeds": settings.seeds, "evaluate": settings.evaluate.model_dump_json()}
    entry = open_sweep_entry(study.base, title, conditions | others, {"study": title})
    log_settings(entry, study.save())
    return entry


def _log_report(entry: Tracker, summary: StudySummary, files: Sequence[Path]) -> None:
    """Log the means by condition and metric, a note in Markdown, and the report's files."""
    means = {
        f"{condition}/{name}": value
        for condition, row in summary.means.items()
        for name, value in row.items()
    }
    entry.log_metrics(means, step=0)
    shown = [path for path in files if path.name in ("scores.png", "maps.png")]
    pictures = "\n\n".join(
        image_in_description(path.stem, entry.run_id or "", f"report/{path.name}") for path in shown
    )
    note = summary.note.replace(PICTURES, pictures)
    entry.set_tags({"mlflow.note.content": note[:_LONGEST_NOTE]})
    for path in files:
        entry.log_artifact(path, "report")


class _Session:
    """A session of a study in this process: it starts runs, and stores and reports outcomes."""

    def __init__(
        self,
        study: AblationStudy,
        reporter: Reporter,
        should_stop: Callable[[], bool],
        num_finished: int,
        left: Sequence[AblationRun],
    ) -> None:
        self._study, self._reporter, self._should_stop = study, reporter, should_stop
        self.num_finished, self._left = num_finished, left
        self._num_runs = num_finished + len(left)
        self.failures: dict[str, str] = {}
        self.is_stopping = False
        self._worker = Worker(
            processes=study.settings.each_run.processes, evaluate=study.settings.evaluate
        )
        stop_file = f".stop-{os.getpid()}-{time.time_ns()}"
        self._stop_file = study.settings.output_dir / stop_file
        self._epochs: dict[str, int] = {}  # by the name of a run that was started

    def run_here(self) -> None:
        """Run one after the other in this process."""
        for run in self._left:
            self._show_epochs([run])
            reporter = _EpochReporter(partial(self._show_epochs, [run]))
            self._ended(run, _complete(run, self._worker, self._should_stop, reporter))
            self.is_stopping = self._should_stop()

    def run_on_ray(self) -> None:
        """Run as tasks, as many at once as there is capacity for."""
        given = self._study.settings.each_run
        reserved = resources(given.processes)
        remote: Any = ray.remote(
            num_cpus=reserved.pop("CPU"),
            num_gpus=reserved.pop("GPU", 0),
            resources=reserved,
            max_retries=given.retries,
        )(_run_task)
        left = list(self._left)
        pending: dict[Any, AblationRun] = {}
        while left or pending:
            self._check_stop()
            most = max_concurrent(given.processes) or len(self._left)
            while left and len(pending) < most:
                run = left.pop(0)
                task = remote.options(name=run.name)
                pending[task.remote(run, self._worker, self._stop_file)] = run
            ready, _ = ray.wait(list(pending), num_returns=1, timeout=_POLL_S)
            self._show_epochs(list(pending.values()))
            for reference in ready:
                run = pending.pop(reference)
                try:
                    outcome = ray.get(reference)
                # Ray's own errors, such as a task killed too often or out of memory.
                except Exception as error:  # noqa: BLE001
                    outcome = _record(run, Outcome.of_failure(error))
                self._ended(run, outcome)
        self._stop_file.unlink(missing_ok=True)

    def _check_stop(self) -> None:
        if self._should_stop() and not self.is_stopping:
            self.is_stopping = True
            self._stop_file.touch()

    def _ended(self, run: AblationRun, outcome: Outcome) -> None:
        if outcome.state == "interrupted":
            return
        if outcome.state == "failed":
            self.failures[run.name] = outcome.reason
            self._reporter.message(f"{run.name}: failed: {outcome.reason}")
        else:
            self.num_finished += 1
            self._reporter.message(f"{run.name}: {_shown(outcome)} ({outcome.time_s or 0:.0f} s)")
        # Epochs that training stopped before need not be waited for.
        self._epochs[run.name] = run.config.train.epochs
        self._show_epochs([])

    def _show_epochs(self, running: Sequence[AblationRun]) -> None:
        """Report the epochs of all runs if there are new ones, with those of the running ones."""
        epochs = {run.name: _num_epochs(run) for run in running}
        if epochs and epochs.items() <= self._epochs.items():
            return
        self._epochs |= epochs
        ended = self.num_finished + len(self.failures)
        states = [f"{ended} of {self._num_runs} runs ended"]
        states += [f"{run.name} {epochs[run.name]}/{run.config.train.epochs}" for run in running]
        done = sum(self._epochs.get(run.name, 0) for run in self._left)
        total = sum(run.config.train.epochs for run in self._left)
        self._reporter.advance(f"epochs, {', '.join(states)}", done, total)


def _run_task(run: AblationRun, worker: Worker, stop_file: Path) -> Outcome:
    """Complete a run as a Ray task; save it and stop once ``stop_file`` exists."""
    return _complete(run, worker, stop_file.exists, Reporter())


def _complete(
    run: AblationRun, worker: Worker, should_stop: Callable[[], bool], reporter: Reporter
) -> Outcome:
    if should_stop():
        return Outcome(state="interrupted")
    return _record(run, worker.complete(run.config, reporter, should_stop, run.tags))


class _EpochReporter(Reporter):
    """A reporter that calls a function after each epoch."""

    def __init__(self, on_epoch: Callable[[], None]) -> None:
        self._on_epoch = on_epoch

    def epoch(self, metrics: Mapping[str, float], num_epochs: int, time_s: float) -> None:
        """Report the end of an epoch."""
        self._on_epoch()


def _num_epochs(run: AblationRun) -> int:
    """Return how many epochs a run has trained, wherever it runs: its folder is shared."""
    file = RunFolder(run.config.output_dir).history_file
    return len(file.read_text().splitlines()) - 1 if file.is_file() else 0


def _record(run: AblationRun, outcome: Outcome) -> Outcome:
    """Write an outcome to the run's folder, log it if the run failed, and return it."""
    folder = RunFolder(run.config.output_dir)
    if outcome.state == "failed":
        close_entry(run.config, folder, {"failure": outcome.reason}, "FAILED")
    if outcome.state != "interrupted":
        outcome.write(folder.path)
    return outcome


def _shown(outcome: Outcome) -> str:
    wanted = ("pid", "auroc", "accuracy")
    found = [
        f"{name} {value:.3f}"
        for name, value in outcome.metrics.items()
        if name.partition("_")[2] in wanted
    ]
    return ", ".join(found) or "finished"


def _failures_as_text(failures: dict[str, str], num_runs: int) -> str | None:
    if not failures:
        return None
    named = [f"{name} ({reason})" for name, reason in list(failures.items())[:_NUM_NAMED]]
    more = "; ..." if len(failures) > _NUM_NAMED else ""
    return (
        f"{len(failures)} of {num_runs} runs failed: {'; '.join(named)}{more};"
        " the report is of the others; run the same command again to retry"
    )
