"""What is done for one run of a study, wherever that is: train it, score it, say how it ended."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from labn.ablation.study import StudyRun
from labn.config.ablation import EvaluateConfig
from labn.config.workers import Workers
from labn.errors import Interrupted, RunFailed, UserError
from labn.runs.folder import RunFolder, locked
from labn.runs.reporting import Reporter
from labn.runs.scoring import evaluate_run
from labn.runs.tracked import tag_entry
from labn.runs.training import train_run
from labn.storage.files import write_json
from labn.tracking import redact

logger = logging.getLogger(__name__)

_OUTCOME = "outcome.json"
_TAKE_OVER_S = 120  # NFS frees the locks of a lost node after its lease, 90 s as a rule
"""How long processes of a study that was killed may take to end."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all runs of a study share. Once ``stop_file`` is there, work is saved and ended."""

    study: str
    evaluate: EvaluateConfig
    workers: Workers
    stop_file: Path
    command: tuple[str, ...]
    """How the study was called, which its runs' entries in the tracker tell."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended. ``metrics`` are the scored part's; ``terms`` say how they were taken."""

    state: Literal["finished", "failed", "interrupted"]
    metrics: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    time_s: float = 0.0
    terms: dict[str, Any] = field(default_factory=dict)


def read_outcome(run: StudyRun) -> Outcome | None:
    """Tell how a run ended before, if it did."""
    place = run.config.output_dir / _OUTCOME
    return Outcome(**json.loads(place.read_text())) if place.is_file() else None


def is_finished(run: StudyRun, evaluate: EvaluateConfig) -> bool:
    """Tell whether a run is trained, and scored as is asked for."""
    outcome = read_outcome(run)
    terms = evaluate.model_dump(mode="json")
    return outcome is not None and outcome.state == "finished" and outcome.terms == terms


def keep_outcome(run: StudyRun, outcome: Outcome) -> None:
    """Write how a run ended into its folder."""
    write_json(run.config.output_dir / _OUTCOME, asdict(outcome))


def complete(run: StudyRun, task: Task, should_stop: Callable[[], bool] | None = None) -> Outcome:
    """Train and score a run, on from where an earlier process was; a failure is an outcome too.

    Without ``should_stop``, the stop file says so.
    """
    is_stopped = should_stop or task.stop_file.exists
    if is_stopped():
        return Outcome(state="interrupted")
    sys.argv = list(task.command)
    torch.set_num_threads(max(1, int(task.workers.cpus)))
    start_s = time.monotonic()
    try:
        folder, wait_s = run.config.output_dir, _TAKE_OVER_S
        with locked(folder, "works on this run", wait_s=wait_s, name=".study.lock"):
            metrics = _train_and_score(run, task, is_stopped)
    except Interrupted:
        return Outcome(state="interrupted")
    # Whatever befalls a run is its own affair; the others go on.
    except Exception as error:  # noqa: BLE001
        outcome = Outcome(state="failed", reason=reason_of(error), time_s=_since(start_s))
        tell_failure(run, outcome.reason)
    else:
        terms = task.evaluate.model_dump(mode="json")
        time_s = _since(start_s)
        outcome = Outcome(state="finished", metrics=metrics, time_s=time_s, terms=terms)
    keep_outcome(run, outcome)
    return outcome


def reason_of(error: BaseException) -> str:
    """Say on one line what went wrong."""
    text = redact(" ".join(str(error).split())) or type(error).__name__
    return text if isinstance(error, (RunFailed, UserError)) else f"{type(error).__name__}: {text}"


def tell_failure(run: StudyRun, reason: str) -> None:
    """Tell the tracker why a run failed, if it can be reached."""
    try:
        tag_entry(run.config, RunFolder(run.config.output_dir), {"failure": reason}, "FAILED")
    except UserError as error:
        logger.warning("%s: %s", run.name, error)


def _train_and_score(run: StudyRun, task: Task, is_stopped: Callable[[], bool]) -> dict[str, float]:
    tags = {"study": task.study, "condition": run.condition, "seed": str(run.seed)}
    # Before there is anything to show: what fails at once is to be found under its condition.
    tag_entry(run.config, RunFolder(run.config.output_dir), tags)
    reporter = _Reporter(is_stopped)
    if task.workers.num == 1:
        train_run(run.config, reporter, is_stopped)
    else:
        from labn.distributed import train_distributed  # which loads Ray Train

        train_distributed(run.config, task.workers, reporter, is_stopped)
    reporter.is_scoring = True
    evaluate = task.evaluate
    folder = run.config.output_dir
    return evaluate_run(folder, evaluate.split, [], reporter, evaluate.choices()).metrics


def _since(start_s: float) -> float:
    return round(time.monotonic() - start_s, 1)


class _Reporter(Reporter):
    """Keeps quiet, for many runs go on at once; ends the scoring when asked to."""

    def __init__(self, is_stopped: Callable[[], bool]) -> None:
        self._is_stopped, self.is_scoring = is_stopped, False

    def say(self, text: str) -> None:
        """Ignore the line."""

    def advance(self, task: str, done: int, total: int) -> None:
        """Stop here if asked to: scores so far are kept. Training looks for itself."""
        if self.is_scoring and self._is_stopped():
            raise Interrupted

    def epoch(self, metrics: Mapping[str, float], num_epochs: int, time_s: float) -> None:
        """Ignore the epoch."""
