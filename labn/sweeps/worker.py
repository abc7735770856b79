"""One run of a sweep: its training and scoring by one process or several, and how it ended."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from labn.config import Config
from labn.config.ablation import EvaluateConfig
from labn.config.workers import Workers
from labn.errors import Interrupted, RunFailed, UserError
from labn.runs.evaluation.evaluate_run import evaluate_run
from labn.runs.folder import TAKE_OVER_S, RunFolder, locked
from labn.runs.reporter import Reporter, StoppingReporter
from labn.runs.tracked import tag_entry
from labn.runs.train import train_run
from labn.storage.files import write_json
from labn.tracking import redact

_OUTCOME = "outcome.json"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended, or a trial that is one run or several.

    ``metrics`` are those that the sweep asks for, or the last epoch's before a trial was pruned;
    ``spread`` is their standard deviation over a trial's runs, ``terms`` the settings they were
    scored with. ``reason`` says why there is no result; ``kind`` is the same for like failures.
    """

    state: Literal["finished", "pruned", "failed", "interrupted"]
    metrics: dict[str, float] = field(default_factory=dict)
    spread: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    kind: str = ""
    time_s: float | None = None
    """The time that it took since its last start."""
    terms: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_failure(cls, error: BaseException, **details: Any) -> Outcome:
        """Return the outcome of a run that ended with an error."""
        kind, reason = type(error).__name__, describe_error(error)
        return cls(state="failed", reason=reason, kind=kind, **details)

    @classmethod
    def read(cls, folder: Path) -> Outcome | None:
        """Return the outcome that was written into a run's folder; None if there is none."""
        place = folder / _OUTCOME
        return cls(**json.loads(place.read_text(encoding="utf-8"))) if place.is_file() else None

    def write(self, folder: Path) -> None:
        """Write the outcome into a run's folder."""
        write_json(folder / _OUTCOME, asdict(self))


def describe_error(error: BaseException) -> str:
    """Return the message of an error on one line, without passwords."""
    text = redact(" ".join(str(error).split())) or type(error).__name__
    return text if isinstance(error, (RunFailed, UserError)) else f"{type(error).__name__}: {text}"


def validation_metrics(run: Path) -> dict[str, float]:
    """Return the metrics of a finished run's best epoch over the validation subset."""
    summary = json.loads(RunFolder(run).summary_file.read_text(encoding="utf-8"))
    metrics: dict[str, float] = summary["metrics"]
    return metrics


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Trains and scores runs, each by ``processes``.

    Without ``evaluate``, the metrics of a run are those of its training.
    """

    processes: Workers
    evaluate: EvaluateConfig | None = None

    @property
    def terms(self) -> dict[str, Any]:
        """The settings that runs are scored with, as an outcome keeps them."""
        return self.evaluate.model_dump(mode="json") if self.evaluate else {}

    def complete(
        self,
        config: Config,
        reporter: Reporter,
        should_stop: Callable[[], bool],
        tags: Mapping[str, str] | None = None,
    ) -> Outcome:
        """Train and score a run, from where an earlier process left it; return how it ended.

        ``tags`` are set in the tracker before there is anything else to show. A failure is an
        outcome too: the other runs of the sweep continue.
        """
        start_s, folder = time.monotonic(), config.output_dir
        try:
            # The processes of a sweep that was killed may still be ending.
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
        time_s = _since(start_s)
        return Outcome(state="finished", metrics=metrics, time_s=time_s, terms=self.terms)

    def _train_and_score(
        self, config: Config, reporter: Reporter, should_stop: Callable[[], bool]
    ) -> dict[str, float]:
        torch.set_num_threads(max(1, int(self.processes.cpus)))
        if self.processes.num == 1:
            summary = train_run(config, reporter, should_stop, take_over_s=TAKE_OVER_S)
        else:
            from labn.distributed.train_driver import train_distributed  # which loads Ray Train

            summary = train_distributed(config, self.processes, reporter, should_stop)
        if self.evaluate is None:
            return summary.metrics
        subset, choices = self.evaluate.split, self.evaluate.choices()
        stopping = StoppingReporter(reporter, should_stop)
        return evaluate_run(config.output_dir, subset, [], stopping, choices).metrics


def _since(start_s: float) -> float:
    return round(time.monotonic() - start_s, 1)
