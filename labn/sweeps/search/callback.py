"""What happens to trials, told to the study, the tracker and whoever watches."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from optuna.trial import TrialState
from ray.tune import Callback, Stopper

from labn.config.search import SearchConfig
from labn.distributed.capacity import demand, supply
from labn.errors import RunFailed, Stopped
from labn.sweeps.search.optuna_study import STATES, SearchStudy, metrics_of
from labn.sweeps.search.search_outputs import SearchRecords
from labn.sweeps.search.space import Space
from labn.sweeps.search.status import (
    RunningTrial,
    SearchReporter,
    SearchStatus,
    point_as_text,
    scores_as_text,
)
from labn.sweeps.search.trial import OUTCOME
from labn.sweeps.search.unpickled import Unpickled
from labn.sweeps.worker import Outcome

_NUM_ALIKE = 3
_WAIT_S = 30


class TuneCallback(Unpickled, Callback):
    """Hears from Tune what becomes of trials.

    ``problem`` says what ended the search before its time.
    """

    def __init__(
        self,
        search: SearchConfig,
        space: Space,
        study: SearchStudy,
        records: SearchRecords,
        board: SearchStatus,
        watcher: SearchReporter,
        should_stop: Callable[[], bool],
    ) -> None:
        self._search, self._space, self._study = search, space, study
        self._records, self._board, self._watcher = records, board, watcher
        self._should_stop = should_stop
        self._failures_alike: list[str] = []
        self._last_run_s = time.monotonic()
        self.problem: RunFailed | None = None
        self.stopper = _Stop(self)
        for trial in study.trials:
            if trial.state != TrialState.RUNNING:
                board.ended[STATES[trial.state]] += 1
        self._find_best()

    def must_stop(self) -> bool:
        """Tell whether the search shall end before its time."""
        if self.problem is None and self._should_stop():
            self.problem = Stopped("stopped as asked; the same command goes on from here")
        return self.problem is not None

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note that a trial has its process."""
        number = int(trial.config["number"])
        if number in self._board.running:
            return
        frozen = self._study.optuna.trials[number]
        point = self._study.point(frozen)
        num_epochs = self._space.base.train.epochs
        self._board.running[number] = RunningTrial(number, point, num_epochs)
        verb = "goes on" if number in self._study.interrupted else "started"
        self._say(f"trial {number} {verb}: {point_as_text(point)}")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Keep an epoch, or the end of a trial."""
        number = int(trial.config["number"])
        if OUTCOME in result:
            self._conclude(number, Outcome(**result[OUTCOME]))
            return
        metrics = {key: value for key, value in result.items() if isinstance(value, float)}
        metrics["epoch"] = float(result["epoch"])
        self._study.record_epoch(number, metrics)
        running = self._board.running.get(number)
        if running is not None:
            running.epoch, running.metrics = int(metrics["epoch"]), metrics
        self._watcher.show(self._board)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that a trial's process was lost; Tune starts another."""
        self._say(f"trial {trial.config['number']} lost its process; it goes on in another")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Give a trial up whose process was lost too often."""
        lines = str(trial.get_error() or "its process was lost").strip().splitlines()
        outcome = Outcome(state="failed", reason=lines[-1].strip(), kind="lost process")
        self._conclude(int(trial.config["number"]), outcome)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Refresh the board, and do not wait in silence."""
        now_s = time.monotonic()
        if any(trial.status == "RUNNING" for trial in trials):
            self._last_run_s = now_s
        elif trials and now_s - self._last_run_s > _WAIT_S:
            self._last_run_s = now_s
            self._say(
                f"waiting for room: a trial {demand(self._search.trial.processes)}; the cluster has"
                f" {supply(self._search.trial.processes)}, some of it in use"
            )
        self._watcher.show(self._board)

    def _conclude(self, number: int, outcome: Outcome) -> None:
        running = self._board.running.pop(number, None)
        if running is not None:
            outcome = replace(outcome, time_s=time.monotonic() - running.start_s)
        self._study.conclude(number, outcome)
        self._board.ended[outcome.state] += 1
        self._board.num_ended_here += 1
        self._find_best()
        took = "" if outcome.time_s is None else f" in {outcome.time_s:.0f} s"
        if outcome.state == "finished":
            is_best = self._board.best is not None and self._board.best[0] == number
            best = ", the best so far" if is_best else ""
            self._say(f"trial {number} finished{took}: {scores_as_text(outcome.metrics)}{best}")
        else:
            self._say(f"trial {number} {outcome.state}{took}: {outcome.reason}")
        self._count_failures(outcome)
        self._records.trial_ended(number, outcome)
        if self._board.num_ended % 10 == 0:
            self._records.draw()

    def _count_failures(self, outcome: Outcome) -> None:
        if outcome.state != "failed":
            self._failures_alike.clear()
            return
        if outcome.kind not in self._failures_alike:
            self._failures_alike.clear()
        self._failures_alike.append(outcome.kind)
        if len(self._failures_alike) >= _NUM_ALIKE:
            self.problem = RunFailed(
                f"{_NUM_ALIKE} trials in a row failed alike ({outcome.reason}); mend the cause,"
                " then the same command goes on from here"
            )

    def _find_best(self) -> None:
        best = self._study.best()
        self._board.best = None if best is None else (best.number, metrics_of(best))

    def _say(self, text: str) -> None:
        self._watcher.message(text)
        self._watcher.show(self._board)


class _Stop(Unpickled, Stopper):
    """Ends all trials at once where the search must end."""

    def __init__(self, events: TuneCallback) -> None:
        self._events = events

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Stop no trial for itself."""
        return False

    def stop_all(self) -> bool:
        """Tell whether the search must end."""
        return self._events.must_stop()
