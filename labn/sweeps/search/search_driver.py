"""The search itself: Ray Tune runs the trials, the study says which, and keeps what they give.

Tune's own state is thrown away with the process. All that must outlive it lies in the study and in
the trials' folders; so whoever starts the search again, goes on from there.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from ray import tune
from ray.tune.error import TuneError

from labn.config.ablation import EvaluateConfig
from labn.config.search import SearchConfig
from labn.distributed.capacity import check_capacity, max_concurrent, resources
from labn.distributed.checks.nodes import Requirements, check_nodes
from labn.distributed.session import connected
from labn.errors import RunFailed, UserError
from labn.runs.folder import locked
from labn.sweeps.search.asha import AshaByEpoch
from labn.sweeps.search.callback import TuneCallback
from labn.sweeps.search.optuna_study import SearchStudy, epochs_of
from labn.sweeps.search.search_outputs import SearchRecords
from labn.sweeps.search.search_results import SearchResults
from labn.sweeps.search.searcher import StudySearcher
from labn.sweeps.search.space import Space
from labn.sweeps.search.status import SearchReporter, SearchStatus
from labn.sweeps.search.trial import prune, run_trial, trial_folder
from labn.sweeps.worker import Worker

_MAX_RESTARTS = 3
_TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "86400",  # the search says it itself
    "RAY_AIR_NEW_OUTPUT": "0",
}


def run_search(
    search: SearchConfig,
    path: Path,
    watcher: SearchReporter,
    should_stop: Callable[[], bool] = lambda: False,
) -> SearchResults:
    """Search to the end of the budget, on from where an earlier process was; give the summary.

    ``path`` is the search's file, for messages. Uses the Ray that this process is connected to,
    else that of ``RAY_ADDRESS``, else one of its own on this machine.

    Raises:
        UserError: the settings do not hold together, or there is no room for a trial.
        RunFailed: trials failed alike, one after the other, or the search was asked to stop.
    """
    space = Space(search, path)
    with locked(search.output_dir, "runs this search", name=".search.lock"):
        study = SearchStudy(search, space)
        records = SearchRecords(search, space, study)
        with records.closing():
            problem = _search(search, space, study, records, watcher, should_stop)
            summary = records.conclude()
            if problem:
                raise problem
    return summary


def _search(
    search: SearchConfig,
    space: Space,
    study: SearchStudy,
    records: SearchRecords,
    watcher: SearchReporter,
    should_stop: Callable[[], bool],
) -> RunFailed | None:
    """Run what is left of the budget; return what ended it early, if anything did."""
    num_done = len(study.trials) - len(study.interrupted)
    if num_done:
        watcher.message(
            f"{search.output_dir}: {num_done} of {search.trials} trials are done already"
            + (f", {len(study.interrupted)} go on" if len(study.interrupted) else "")
        )
    if num_done >= search.trials:
        return None
    os.environ.update(_TUNE_ENVIRONMENT)
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with connected(watcher.message, lambda: check_capacity(search.trial.processes, "trial")):
        check_nodes(Requirements.of(space.base, search.trial.processes), watcher.message)
        board = SearchStatus(search.trials)
        events = TuneCallback(search, space, study, records, board, watcher, should_stop)
        try:
            _tuner(search, study, space, events, records).fit()
        except TuneError as error:
            lines = str(error).strip().splitlines() or ["Ray Tune failed"]
            raise RunFailed(
                f"the search broke off ({lines[-1]}); the same command goes on from here"
            ) from error
    return events.problem


def _tuner(
    search: SearchConfig,
    study: SearchStudy,
    space: Space,
    events: TuneCallback,
    records: SearchRecords,
) -> tune.Tuner:
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, worker=_worker(search), required=_required(search)),
        resources(search.trial.processes),
    )
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric=search.objective.maximise[0],
            mode="max",
            search_alg=StudySearcher(search, space, study, events, records),
            scheduler=_scheduler(search, space, study, events),
            num_samples=-1,  # the study ends the search
            max_concurrent_trials=max_concurrent(
                search.trial.processes, search.trial.max_concurrent
            ),
            reuse_actors=search.trial.workers == 1,  # spares most trials the import of torch
            trial_dirname_creator=lambda trial: str(trial.config["number"]),
        ),
        run_config=tune.RunConfig(
            name=f"session-{time.time_ns()}",
            storage_path=str(search.output_dir / "ray"),
            failure_config=tune.FailureConfig(max_failures=_MAX_RESTARTS),
            callbacks=[events],
            stop=events.stopper,
            verbose=0,
        ),
    )


def _scheduler(search: SearchConfig, space: Space, study: SearchStudy, events: TuneCallback) -> Any:
    if search.pruning is None:
        return None
    metric = search.objective.maximise[0]
    rungs = AshaByEpoch(
        search.pruning,
        metric=metric,
        num_epochs=space.base.train.epochs,
        on_prune=lambda number, reason: prune(trial_folder(search, number), reason),
    )
    for trial in study.trials:
        # What earlier processes measured counts as if it had been measured now.
        rungs.remember(trial.number, epochs_of(trial), is_over=trial.state != TrialState.RUNNING)
    return rungs


def _worker(search: SearchConfig) -> Worker:
    sizes, processes = search.objective.patch_sizes, search.trial.processes
    if sizes is None:
        return Worker(processes=processes)
    evaluate = EvaluateConfig(split="validation", methods=("LABN",), patch_sizes=sizes)
    return Worker(processes=processes, evaluate=evaluate)


def _required(search: SearchConfig) -> tuple[str, ...]:
    constraint = search.objective.constraint
    names = [*search.objective.maximise, *([constraint.metric] if constraint else [])]
    return tuple(dict.fromkeys(names))


def export_study(folder: Path) -> SearchResults:
    """Read the summary that a search left in its folder.

    Raises:
        UserError: there is none.
    """
    place = folder / "summary.json"
    if not place.is_file():
        raise UserError(f"{folder}: holds no search (no summary.json); give a search's output_dir")
    content: SearchResults = json.loads(place.read_text(encoding="utf-8"))
    return content
