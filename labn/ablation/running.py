"""The driver of a study: its runs as Ray tasks, what came of each, and the report at the end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray

from labn.ablation.records import Records
from labn.ablation.registration import register_best
from labn.ablation.study import Study, StudyRun
from labn.ablation.summary import StudySummary, summarise
from labn.ablation.work import (
    Outcome,
    Task,
    complete,
    is_finished,
    keep_outcome,
    reason_of,
    tell_failure,
)
from labn.connection import connected
from labn.errors import RunFailed, Stopped
from labn.preflight import Requirements, check_nodes
from labn.room import check_room, max_concurrent, resources
from labn.runs.folder import RunFolder, locked
from labn.runs.reporting import Reporter
from labn.runs.tracked import closing_entry

_POLL_S = 0.5
_TIMES_NAMED = 3
"""How many failures the last line names."""


def run_study(
    study: Study,
    reporter: Reporter,
    should_stop: Callable[[], bool] = lambda: False,
    *,
    is_serial: bool = False,
) -> StudySummary:
    """Train and score every run of a study that is not finished, then write its report.

    Runs are tasks of the Ray that this process is connected to, else of ``RAY_ADDRESS``, else of
    one of its own; or, ``is_serial``, one after the other in this process. One that fails is
    recorded with the reason; the others go on.

    Raises:
        UserError: the settings are not those of the runs in the folder, or there is no room.
        RunFailed: some runs failed, of which the report has none, or it was asked to stop.
    """
    folder = study.settings.output_dir
    with locked(folder, "runs this study", name=".ablation.lock"):
        for run in study.runs():
            RunFolder(run.config.output_dir).check_same(run.config)
        records = Records(study)
        with closing_entry(records.entry):
            problem = _run_all(study, records, reporter, should_stop, is_serial)
            summary = summarise(study, reporter)
            card = register_best(study, reporter)
            records.keep(summary.means, summary.note, [*summary.files, *([card] if card else [])])
            if problem:
                raise RunFailed(problem)
    return summary


def _run_all(
    study: Study,
    records: Records,
    reporter: Reporter,
    should_stop: Callable[[], bool],
    is_serial: bool,
) -> str | None:
    """Run what is left; say which runs failed, if any did.

    Raises:
        Stopped: it was asked to.
    """
    every = study.runs(records.entry.run_id)
    left = [run for run in every if not is_finished(run, study.settings.evaluate)]
    num_done = len(every) - len(left)
    if num_done:
        reporter.say(f"{num_done} of {len(every)} runs are finished already")
    task = _task(study)
    task.stop_file.unlink(missing_ok=True)
    session = _Session(study, reporter, should_stop, task, num_done, len(every))
    if left and is_serial:
        session.run_here(left)
    elif left:
        processes = study.settings.each_run.processes
        with connected(reporter.say, lambda: check_room(processes, "each_run")):
            check_nodes(Requirements.of(study.base, processes), reporter.say)
            session.run_on_ray(left)
    task.stop_file.unlink(missing_ok=True)
    if session.is_stopping:
        raise Stopped(
            f"stopped as asked; {session.num_finished} of {len(every)} runs are finished, and the"
            " others saved: the same command goes on from here"
        )
    return _failures_as_text(session.failures, len(every))


class _Session:
    """What this process does for a study: hand out runs, keep and show what comes back."""

    def __init__(
        self,
        study: Study,
        reporter: Reporter,
        should_stop: Callable[[], bool],
        task: Task,
        num_finished: int,
        num_runs: int,
    ) -> None:
        self._study, self._reporter, self._task = study, reporter, task
        self._should_stop = should_stop
        self.num_finished, self._num_runs = num_finished, num_runs
        self.failures: dict[str, str] = {}
        self.is_stopping = False

    def run_here(self, runs: Sequence[StudyRun]) -> None:
        """Run one after the other in this process."""
        command = list(sys.argv)
        for run in runs:
            self._ended(run, complete(run, self._task, self._should_stop))
            self._look_for_stop()
        sys.argv = command

    def run_on_ray(self, runs: Sequence[StudyRun]) -> None:
        """Run as tasks, as many at once as there is room for."""
        given = self._study.settings.each_run
        reserved = resources(given.processes)
        remote: Any = ray.remote(
            num_cpus=reserved["CPU"],
            num_gpus=reserved.get("GPU", 0),
            memory=reserved.get("memory", 0),
            max_retries=given.retries,
        )(complete)
        left = list(runs)
        pending: dict[Any, StudyRun] = {}
        while left or pending:
            self._look_for_stop()
            most = max_concurrent(given.processes) or len(runs)
            while left and len(pending) < most:
                run = left.pop(0)
                pending[remote.options(name=run.name).remote(run, self._task)] = run
            ready, _ = ray.wait(list(pending), num_returns=1, timeout=_POLL_S)
            for reference in ready:
                run = pending.pop(reference)
                try:
                    outcome = ray.get(reference)
                # What a task raises is what Ray says of it: killed too often, no memory left.
                except Exception as error:  # noqa: BLE001
                    outcome = _lost(run, error)
                self._ended(run, outcome)

    def _look_for_stop(self) -> None:
        if self._should_stop() and not self.is_stopping:
            self.is_stopping = True
            self._task.stop_file.touch()

    def _ended(self, run: StudyRun, outcome: Outcome) -> None:
        if outcome.state == "interrupted":
            return
        if outcome.state == "failed":
            self.failures[run.name] = outcome.reason
            self._reporter.say(f"{run.name}: failed: {outcome.reason}")
        else:
            self.num_finished += 1
            self._reporter.say(f"{run.name}: {_shown(outcome)} ({outcome.time_s:.0f} s)")
        done = self.num_finished + len(self.failures)
        self._reporter.advance("runs", done, self._num_runs)


def _task(study: Study) -> Task:
    return Task(
        study=study.settings.title,
        evaluate=study.settings.evaluate,
        workers=study.settings.each_run.processes,
        stop_file=study.settings.output_dir / f".stop-{os.getpid()}-{time.time_ns()}",
        command=tuple(sys.argv),
    )


def _lost(run: StudyRun, error: Exception) -> Outcome:
    """Record a run whose processes did not live to say how it ended."""
    outcome = Outcome(state="failed", reason=reason_of(error))
    keep_outcome(run, outcome)
    tell_failure(run, outcome.reason)
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
    named = [f"{name} ({reason})" for name, reason in list(failures.items())[:_TIMES_NAMED]]
    more = "; ..." if len(failures) > _TIMES_NAMED else ""
    return (
        f"{len(failures)} of {num_runs} runs failed: {'; '.join(named)}{more};"
        " the report is of the others, and the same command tries these again"
    )
