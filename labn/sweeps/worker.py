"""Training and scoring of one run of a sweep, and its outcome."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from labn.config import Config
from labn.config.ablation import EvaluateConfig
from labn.config.workers import Workers
from labn.errors import Interrupted, OutOfMemory, RunFailed, UserError
from labn.runs.evaluation.evaluate_run import evaluate_run
from labn.runs.evaluation.options import without_absent_methods
from labn.runs.folder import TAKE_OVER_S, RunFolder, locked
from labn.runs.out_of_memory import release_memory
from labn.runs.reporter import Reporter, StoppingReporter
from labn.runs.tracked import tag_entry
from labn.runs.train import train_run
from labn.storage.files import write_json
from labn.tracking import redact

_OUTCOME = "outcome.json"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a run, or of a trial of one or several runs.

    ``metrics`` are those that the sweep requires, or those of the last epoch before a trial was
    pruned; ``spread`` is their standard deviation over a trial's runs; ``terms`` are the evaluation
    settings. ``reason`` explains a missing result; failures with one cause share their ``kind``.
    """

    state: Literal["finished", "pruned", "failed", "interrupted"]
    metrics: dict[str, float] = field(default_factory=dict)
    spread: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    kind: str = ""
    time_s: float | None = None
    """Seconds since the last start."""
    terms: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_failure(cls, error: BaseException, **details: Any) -> Outcome:
        """Return the outcome of a run that ended with an error."""
        kind, reason = type(error).__name__, describe_error(error)
        return cls(state="failed", reason=reason, kind=kind, **details)

    @classmethod
    def read(cls, folder: Path) -> Outcome | None:
        """Return the outcome stored in a run's folder, or None if there is none."""
        file = folder / _OUTCOME
        return cls(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None

    @property
    def is_out_of_memory(self) -> bool:
        """Whether the run failed for lack of an accelerator's memory."""
        return self.kind == OutOfMemory.__name__

    def write(self, folder: Path) -> None:
        """Write the outcome into a run's folder."""
        write_json(folder / _OUTCOME, asdict(self))


def describe_error(error: BaseException) -> str:
    """Return an error's message on one line, without passwords."""
    text = redact(" ".join(str(error).split())) or type(error).__name__
    return text if isinstance(error, (RunFailed, UserError)) else f"{type(error).__name__}: {text}"


def validation_metrics(run: Path) -> dict[str, float]:
    """Return the metrics of a finished run's best epoch over the validation subset."""
    summary = json.loads(RunFolder(run).summary_file.read_text(encoding="utf-8"))
    metrics: dict[str, float] = summary["metrics"]
    return metrics


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A worker that trains and scores runs, each in ``processes``.

    Without ``evaluate``, the metrics of a run are those of its training. ``command`` is the command
    line of the process that made the worker, which every run's entry in the tracker shows.
    """

    processes: Workers
    evaluate: EvaluateConfig | None = None
    command: tuple[str, ...] = field(default_factory=lambda: tuple(sys.argv))

    @property
    def terms(self) -> dict[str, Any]:
        """The evaluation settings, as stored in an outcome."""
        return self.evaluate.model_dump(mode="json") if self.evaluate else {}

    def complete(
        self,
        config: Config,
        reporter: Reporter,
        should_stop: Callable[[], bool],
        tags: Mapping[str, str] | None = None,
    ) -> Outcome:
        """Train and score a run, resuming earlier work, and return its outcome.

        ``tags`` are set in the tracker before training starts. A failure is an outcome too: the
        other runs of the sweep continue.
        """
        start_s, folder = time.monotonic(), config.output_dir
        sys.argv = list(self.command)
        try:
            # The processes of a killed sweep may still be exiting.
            with locked(folder, "works on this run", wait_s=TAKE_OVER_S, name=".worker.lock"):
                if should_stop():
                    raise Interrupted
                if tags:
                    tag_entry(config, RunFolder(folder), tags)
                metrics = self._train_and_score(config, reporter, should_stop)
        except Interrupted:
            return Outcome(state="interrupted")
        except Exception as error:  # noqa: BLE001
            return Outcome.of_failure(error, time_s=_since(start_s))
        finally:
            release_memory()  # the process may serve another run
        time_s = _since(start_s)
        return Outcome(state="finished", metrics=metrics, time_s=time_s, terms=self.terms)

    def _train_and_score(
        self, config: Config, reporter: Reporter, should_stop: Callable[[], bool]
    ) -> dict[str, float]:
        torch.set_num_threads(max(1, int(self.processes.cpus)))
        if self.processes.num == 1:
            summary = train_run(config, reporter, should_stop, take_over_s=TAKE_OVER_S)
        else:
            from labn.distributed.train_driver import train_distributed  # loads Ray Train

            summary = train_distributed(config, self.processes, reporter, should_stop)
        if self.evaluate is None:
            return summary.metrics
        subset = self.evaluate.split
        choices = without_absent_methods(self.evaluate.choices(), config.model)
        stopping = StoppingReporter(reporter, should_stop)
        return evaluate_run(config.output_dir, subset, [], stopping, choices).metrics


def _since(start_s: float) -> float:
    return round(time.monotonic() - start_s, 1)
