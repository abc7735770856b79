"""The callback that passes Tune's events to the study, the tracker and the reporter."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from ray.tune import Callback, Stopper

from labn.config.search import SearchConfig
from labn.distributed.capacity import (
    demand,
    max_concurrent,
    node_name,
    num_lost,
    num_slots,
    supply,
)
from labn.errors import Interrupted, RunFailed
from labn.sweeps.search.optuna_study import MAX_FAILURES, STATES, SearchStudy, epochs_of, metrics_of
from labn.sweeps.search.search_figures import importances
from labn.sweeps.search.search_outputs import SearchOutputs
from labn.sweeps.search.space import Space
from labn.sweeps.search.status import (
    SearchReporter,
    SearchStatus,
    TrialStatus,
    scores_as_text,
)
from labn.sweeps.search.trial import NODE, OUTCOME
from labn.sweeps.search.unpickled import Unpickled
from labn.sweeps.worker import Outcome

MAX_RESTARTS = 3
"""How often a trial's process may be lost on nodes that stay."""
_WAIT_S = 30
_CHECK_S = 2
"""How often the nodes are looked at."""


class TuneCallback(Unpickled, Callback):
    """Tune's callback for a search; ``problem`` is what ended the search early, if anything did."""

    def __init__(
        self,
        search: SearchConfig,
        space: Space,
        study: SearchStudy,
        outputs: SearchOutputs,
        status: SearchStatus,
        reporter: SearchReporter,
        should_stop: Callable[[], bool],
    ) -> None:
        self._search, self._space, self._study = search, space, study
        self._outputs, self._status, self._reporter = outputs, status, reporter
        self._should_stop = should_stop
        self._failure_kinds: list[str] = []
        self._last_run_s = time.monotonic()
        self._nodes: dict[int, set[str]] = {}
        self._next_check_s, self._next_count_s, self._num_fitting = 0.0, 0.0, -1
        self._next_write_s = 0.0
        self._most_at_once: int | None = None
        self.problem: RunFailed | Interrupted | None = None
        self.stopper = _Stop(self)
        for trial in study.trials:
            if trial.state != TrialState.RUNNING:
                ended = self._status_of(trial.number, STATES[trial.state])
                ended.epoch, ended.metrics = max(epochs_of(trial), default=0), metrics_of(trial)
                status.past[trial.number] = ended
        self._find_best()

    def must_stop(self) -> bool:
        """Return whether the search must end early."""
        if self.problem is None and self._should_stop():
            self.problem = Interrupted()
        return self.problem is not None

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Mark a trial as running."""
        number = int(trial.config["number"])
        if number in self._status.running:
            return
        self._status.running[number] = self._status_of(number, "running")
        verb = "resumed" if number in self._study.interrupted else "started"
        self._message(f"trial {number} {verb}")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Record an epoch, or the outcome of a trial."""
        number = int(trial.config["number"])
        if OUTCOME in result:
            self._conclude(number, Outcome(**result[OUTCOME]))
            return
        running = self._status.running.get(number)
        if NODE in result:
            self._nodes.setdefault(number, set()).add(result[NODE])
            if running is not None:
                running.node = node_name(result[NODE])
            return
        metrics = {key: value for key, value in result.items() if isinstance(value, float)}
        metrics["epoch"] = float(result["epoch"])
        self._study.record_epoch(number, metrics)
        if running is not None:
            running.epoch, running.metrics = int(metrics["epoch"]), metrics
        self._show()

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Report that a trial's process has ended; Tune starts another."""
        if Outcome.read(Path(trial.config["folder"])) is not None:
            text = "ran out of memory; replacing its process"
        else:
            text = "lost its process; resuming in another"
        self._message(f"trial {trial.config['number']} {text}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record as failed a trial whose process was lost too often."""
        lines = str(trial.get_error() or "its process was lost").strip().splitlines()
        lost = Outcome(state="failed", reason=lines[-1].strip(), kind="lost process")
        outcome = Outcome.read(Path(trial.config["folder"])) or lost
        self._conclude(int(trial.config["number"]), outcome)

    def _forgive_lost_nodes(self, trials: list[Any]) -> None:
        """Allow a trial one more loss of its process for each of its nodes that was lost.

        Ray notices the loss of a node later than that of a process, so not when Tune decides.
        """
        for trial in trials:
            if trial.num_failures:
                nodes = self._nodes.get(int(trial.config["number"]), set())
                trial.max_failures = MAX_RESTARTS + num_lost(nodes)

    def most_at_once(self) -> int | None:
        """Return how many trials may run at once now; report when more or fewer fit."""
        now_s = time.monotonic()
        if now_s < self._next_count_s:
            return self._most_at_once
        self._next_count_s = now_s + _CHECK_S
        processes = self._search.trial.processes
        self._most_at_once = max_concurrent(processes, self._search.trial.max_concurrent)
        fitting = num_slots(processes) // processes.num
        if fitting != self._num_fitting and processes.num > 1:
            self._num_fitting = fitting
            self._message(
                f"trials that fit at once: {fitting} (a trial {demand(processes)}; the cluster has"
                f" {supply(processes)})"
            )
        return self._most_at_once

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Refresh the status; forgive lost nodes; report a long wait for capacity."""
        now_s = time.monotonic()
        if now_s > self._next_check_s:
            self._next_check_s = now_s + _CHECK_S
            self._forgive_lost_nodes(trials)
        if any(trial.status == "RUNNING" for trial in trials):
            self._last_run_s = now_s
        elif trials and now_s - self._last_run_s > _WAIT_S:
            self._last_run_s, processes = now_s, self._search.trial.processes
            self._message(
                f"waiting for capacity: a trial {demand(processes)}; the cluster has"
                f" {supply(processes)}, some of it in use"
            )
        self._show()

    def _status_of(self, number: int, state: str) -> TrialStatus:
        parameters = self._study.parameters(self._study.optuna.trials[number])
        return TrialStatus(number, parameters, self._space.base.train.epochs, state)

    def _conclude(self, number: int, outcome: Outcome) -> None:
        running = self._status.running.pop(number, None)
        if running is not None:
            outcome = replace(outcome, time_s=time.monotonic() - running.start_s)
        ended = running or self._status_of(number, outcome.state)
        ended.state, ended.metrics = outcome.state, outcome.metrics or ended.metrics
        self._study.conclude(number, outcome)
        self._status.past[number] = ended
        self._status.num_ended_here += 1
        self._find_best()
        took = "" if outcome.time_s is None else f" in {outcome.time_s:.0f} s"
        if outcome.state == "finished":
            is_best = self._status.best is not None and self._status.best[0] == number
            best = ", the best so far" if is_best else ""
            self._message(f"trial {number} finished{took}: {scores_as_text(outcome.metrics)}{best}")
        else:
            self._message(f"trial {number} {outcome.state}{took}: {outcome.reason}")
        self._count_failures(outcome)
        self._outputs.trial_ended(number, outcome)
        if self._status.num_ended % 10 == 0:
            self._outputs.draw()
            self._status.importances = importances(self._study)

    def _count_failures(self, outcome: Outcome) -> None:
        if outcome.state != "failed":
            self._failure_kinds.clear()
            return
        if outcome.kind not in self._failure_kinds:
            self._failure_kinds.clear()
        self._failure_kinds.append(outcome.kind)
        if len(self._failure_kinds) >= MAX_FAILURES:
            self.problem = RunFailed(
                f"{MAX_FAILURES} trials in a row failed alike ({outcome.reason}); fix the cause,"
                " then run the same command again to resume"
            )

    def _find_best(self) -> None:
        best = self._study.best()
        self._status.best = None if best is None else (best.number, metrics_of(best))

    def _message(self, text: str) -> None:
        self._reporter.message(text)
        self._show()

    def _show(self) -> None:
        """Show the status here, and to those who watch the folder."""
        self._reporter.show(self._status)
        now_s = time.monotonic()
        if now_s >= self._next_write_s:
            self._next_write_s = now_s + _CHECK_S
            self._status.write(self._search.output_dir)

    def end(self) -> None:
        """Write the last status."""
        self._status.has_ended = True
        self._status.write(self._search.output_dir)


class _Stop(Unpickled, Stopper):
    """Tune's stopper, which ends all trials when the search must end."""

    def __init__(self, callback: TuneCallback) -> None:
        self._callback = callback

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: trials are not stopped one by one."""
        return False

    def stop_all(self) -> bool:
        """Return whether the search must end."""
        return self._callback.must_stop()
