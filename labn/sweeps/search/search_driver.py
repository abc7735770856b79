"""The driver of a search: the study chooses and stores trials, Ray Tune runs them.

Tune's own state is discarded with the process. A search resumes from the study and from the trials'
folders.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from ray import tune
from ray.tune.error import TuneError

from labn.config.ablation import EvaluateConfig
from labn.config.search import SearchConfig
from labn.distributed.capacity import check_capacity, max_concurrent, num_slots, resources
from labn.distributed.checks.nodes import Requirements, check_nodes
from labn.distributed.session import connected
from labn.errors import Interrupted, RunFailed
from labn.runs.folder import locked
from labn.runs.reporter import Reporter, StoppingReporter
from labn.sweeps.search.asha import AshaByEpoch
from labn.sweeps.search.callback import MAX_RESTARTS, TuneCallback
from labn.sweeps.search.optuna_study import (
    SearchStudy,
    epochs_of,
    is_new_search,
    reason_of,
)
from labn.sweeps.search.search_outputs import SearchOutputs
from labn.sweeps.search.search_results import SearchResults
from labn.sweeps.search.searcher import StudySearcher
from labn.sweeps.search.space import Space
from labn.sweeps.search.status import SearchReporter, SearchStatus
from labn.sweeps.search.trial import prune, run_trial, trial_folder
from labn.sweeps.worker import Worker

_TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "86400",  # the callback reports it
    "RAY_AIR_NEW_OUTPUT": "0",
}


def run_search(
    search: SearchConfig,
    path: Path,
    reporter: SearchReporter,
    should_stop: Callable[[], bool] = lambda: False,
) -> SearchResults:
    """Run or resume a search until its budget is used up, and return the summary.

    ``path`` is the search's file, for messages. Uses the Ray that this process is connected to,
    else that of ``RAY_ADDRESS``, else a local one.

    Raises:
        UserError: the settings contradict each other, or there is no capacity for a trial.
        RunFailed: trials in a row failed alike, or ``should_stop`` returned True.
    """
    space = Space(search, path)
    with locked(search.output_dir, "runs this search", name=".search.lock"), ExitStack() as stack:
        cluster: AbstractContextManager[None] = _cluster(search, space, reporter)
        if is_new_search(search.output_dir):
            # Before the data are read: what a node lacks is reported first.
            stack.enter_context(cluster)
            cluster = nullcontext()
        table = space.share_split(StoppingReporter(_Messages(reporter), should_stop))
        study = SearchStudy(search, space, table.digest)
        outputs = SearchOutputs(search, space, study)
        with outputs.closing():
            problem = _search(search, space, study, outputs, reporter, should_stop, cluster)
            summary = outputs.conclude()
            problem = problem or _all_failed(study)
            if problem:
                raise problem
    return summary


def _all_failed(study: SearchStudy) -> RunFailed | None:
    """Return the failure of a search whose trials all failed, too few to have ended it early."""
    trials = study.trials
    if not trials or any(trial.state != TrialState.FAIL for trial in trials):
        return None
    return RunFailed(
        f"all {len(trials)} trials failed ({reason_of(trials[-1])}); fix the cause, then run the"
        " same command again to resume"
    )


class _Messages(Reporter):
    """A reporter of a run that forwards its messages to the search's."""

    def __init__(self, reporter: SearchReporter) -> None:
        self._reporter = reporter

    def message(self, text: str) -> None:
        """Forward one line of text."""
        self._reporter.message(text)


def _search(
    search: SearchConfig,
    space: Space,
    study: SearchStudy,
    outputs: SearchOutputs,
    reporter: SearchReporter,
    should_stop: Callable[[], bool],
    cluster: AbstractContextManager[None],
) -> RunFailed | Interrupted | None:
    """Run the rest of the budget on a cluster; return what ended it early, if anything did."""
    num_done = study.num_counted - len(study.interrupted)
    if num_done or study.uncounted:
        reporter.message(
            f"{search.output_dir}: {num_done} of {search.trials} trials are done already"
            + (f", {len(study.interrupted)} to resume" if study.interrupted else "")
            + (f", {len(study.uncounted)} that failed are replaced" if study.uncounted else "")
        )
    if num_done >= search.trials:
        return None
    if search.sampler.name == "gp" and search.pruning is not None:
        reporter.message(
            "sampler.name = gp: learns from finished trials alone, and pruning leaves few, so"
            " that it draws nearly at random; set pruning=null, or sampler.name=tpe"
        )
    with cluster:
        status = SearchStatus(search.trials + len(study.uncounted))
        callback = TuneCallback(search, space, study, outputs, status, reporter, should_stop)
        try:
            _tuner(search, study, space, callback, outputs).fit()
        except TuneError as error:
            lines = str(error).strip().splitlines() or ["Ray Tune failed"]
            raise RunFailed(
                f"the search failed ({lines[-1]}); run the same command again to resume"
            ) from error
        finally:
            callback.end()
    return callback.problem


@contextmanager
def _cluster(search: SearchConfig, space: Space, reporter: SearchReporter) -> Iterator[None]:
    """Connect to Ray for the block, and check that every node has what a trial needs."""
    os.environ.update(_TUNE_ENVIRONMENT)
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    processes = search.trial.processes
    keys = ("trial.workers", "trial.cpus", "trial.gpus")
    with connected(reporter.message, lambda: check_capacity(processes, keys)):
        check_nodes(Requirements.of(space.base, processes), reporter.message)
        # Tune asks for further trials only while fewer than these wait, which makes a cluster grow.
        at_once = max_concurrent(processes, search.trial.max_concurrent) or num_slots(processes)
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(max(at_once, 1))
        yield


def _tuner(
    search: SearchConfig,
    study: SearchStudy,
    space: Space,
    callback: TuneCallback,
    outputs: SearchOutputs,
) -> tune.Tuner:
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, worker=_worker(search, space), required=_required(search)),
        resources(search.trial.processes),
    )
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric=search.objective.maximise[0],
            mode="max",
            search_alg=StudySearcher(search, space, study, callback, outputs),
            scheduler=_scheduler(search, space, study, callback),
            num_samples=-1,  # the study ends the search; the searcher limits concurrent trials
            reuse_actors=search.trial.workers == 1,  # saves most trials the import of torch
            trial_dirname_creator=lambda trial: str(trial.config["number"]),
        ),
        run_config=tune.RunConfig(
            name=f"session-{time.time_ns()}",
            storage_path=str(search.output_dir / "ray"),
            failure_config=tune.FailureConfig(max_failures=MAX_RESTARTS),
            callbacks=[callback],
            stop=callback.stopper,
            verbose=0,
        ),
    )


def _scheduler(
    search: SearchConfig, space: Space, study: SearchStudy, callback: TuneCallback
) -> Any:
    if search.pruning is None:
        return None
    metric = search.objective.maximise[0]
    scheduler = AshaByEpoch(
        search.pruning,
        metric=metric,
        num_epochs=space.base.train.epochs,
        on_prune=lambda number, reason: prune(trial_folder(search, number), reason),
    )
    for trial in study.trials:
        is_over = trial.state != TrialState.RUNNING
        scheduler.remember(trial.number, epochs_of(trial), is_over=is_over)
    return scheduler


def _worker(search: SearchConfig, space: Space) -> Worker:
    sizes, processes = search.objective.patch_sizes, search.trial.processes
    if sizes is None:
        return Worker(processes=processes)
    methods = ("LABN", "centre") if space.base.validation.pid_centre else ("LABN",)
    evaluate = EvaluateConfig(split="validation", methods=methods, patch_sizes=sizes)
    return Worker(processes=processes, evaluate=evaluate)


def _required(search: SearchConfig) -> tuple[str, ...]:
    constraint = search.objective.constraint
    names = [*search.objective.maximise, *([constraint.metric] if constraint else [])]
    return tuple(dict.fromkeys(names))
