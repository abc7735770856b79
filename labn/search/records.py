"""What a search leaves behind: its entry in the tracker, figures, summary, best settings."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from labn.config import Config, dump_config
from labn.config.search import SearchConfig
from labn.errors import UserError
from labn.runs.folder import RunFolder
from labn.runs.tracked import closing_entry, log_settings, open_entry, tag_entry
from labn.search.board import Watcher
from labn.search.figures import draw_figures
from labn.search.pruning import list_rungs
from labn.search.space import Point, Space
from labn.search.study import Outcome, Study, metrics_of, storage_url
from labn.search.summary import Summary, as_markdown, summarise
from labn.search.trial import run_folders, trial_folder
from labn.storage.files import write_atomically, write_json
from labn.storage.remote import absolute, below
from labn.tracking import Status, environment_tags, redact, resolve_uri

logger = logging.getLogger(__name__)

_STATUS: dict[str, Status] = {"finished": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}


class Records:
    """The tracker's run of a search, with a child a trial, and the files in its folder.

    Opened before any trial runs, it makes a tracker's SQLite store before they share it.

    Raises:
        UserError: the tracker cannot be reached.
    """

    def __init__(self, search: SearchConfig, space: Space, study: Study, watcher: Watcher) -> None:
        self._search, self._space, self._study, self._watcher = search, space, study, watcher
        folder, tracking = RunFolder(search.output_dir), space.base.tracking
        self._tracker = open_entry(space.base, folder, name=search.output_dir.name)
        self._trials_tracking = tracking.model_copy(
            update={
                "uri": resolve_uri(tracking.uri),
                "parent_run_id": self._tracker.run_id,
                "log_model": search.trial.log_model,
            }
        )
        self._tracker.log_params(
            {
                "sampler": search.sampler.name,
                "trials": search.trials,
                "maximise": ",".join(search.objective.maximise),
                "storage": redact(storage_url(search)),
            }
            | {f"space.{key}": domain.model_dump_json() for key, domain in search.space.items()}
        )
        self._tracker.set_tags(environment_tags())

    def trial_config(self, point: Point, number: int, folder: Path) -> Config:
        """Give the run of a trial, with paths that mean the same wherever it trains."""
        base = self._space.base
        config = self._space.config(point)
        data = config.data.model_copy(
            update={
                "root": absolute(base.data.root),
                "cache_dir": absolute(base.data.cache_dir),
            }
        )
        model = config.model.model_copy(update={"pretrained": absolute(config.model.pretrained)})
        name = f"{self._search.output_dir.name}-{number}"
        tracking = self._trials_tracking.model_copy(update={"run_name": name})
        train = config.train.model_copy(
            update={"storage": below(absolute(base.train.storage), "trials", str(number))}
        )
        changes = {
            "data": data,
            "model": model,
            "train": train,
            "tracking": tracking,
            "output_dir": folder,
        }
        return config.model_copy(update=changes | self._growing_curves(config))

    def _growing_curves(self, config: Config) -> dict[str, Any]:
        """Have a trial's early epochs, whose PID decides less, measured on fewer points."""
        if self._search.pruning is None:
            return {}
        # From the epoch after a rung on: at each rung, trials are measured alike.
        epochs = tuple(rung + 1 for rung in list_rungs(self._search.pruning, config.train.epochs))
        return {"validation": config.validation.model_copy(update={"pid_growth_epochs": epochs})}

    def trial_ended(self, number: int, outcome: Outcome) -> None:
        """Tell the tracker how a trial ended, on the trial's run and on the search's."""
        tags = {"trial": str(number), "trial_state": outcome.state}
        if outcome.reason:
            tags["trial_reason"] = outcome.reason
        for folder in self._run_folders(number):
            place = {"checkpoint": str(folder.best_file)} if folder.best_file.is_file() else {}
            self._close_run(folder, tags | place, _STATUS[outcome.state])
        scores = {name: outcome.metrics[name] for name in self._study.objectives
                  if name in outcome.metrics}  # fmt: skip
        best = self._study.best()
        if best is not None:
            scores |= {f"best_{name}": metrics_of(best)[name] for name in self._study.objectives}
        self._tracker.log_metrics(scores, step=number)

    def draw(self) -> list[Path]:
        """Draw the figures of what is known so far."""
        figures = draw_figures(self._study, self._search.output_dir / "figures")
        for path in figures:
            self._tracker.log_artifact(path, "figures")
        return figures

    def conclude(self) -> Summary:
        """Write and log figures, summary and the best settings."""
        output_dir = self._search.output_dir
        figures = self.draw()
        summary = summarise(self._search, self._study, figures)
        write_json(output_dir / "summary.json", dict(summary))
        write_atomically(output_dir / "summary.md", as_markdown(summary))
        files = [output_dir / "summary.json", output_dir / "summary.md"]
        best = self._study.best()
        if best is not None:
            config = self._space.config(
                self._study.point(best), output_dir=str(output_dir / "best")
            )
            write_atomically(output_dir / "best.yaml", dump_config(config))
            log_settings(self._tracker, output_dir / "best.yaml")
            self._tracker.set_tags({"best_trial": str(best.number)})
        for path in files:
            self._tracker.log_artifact(path, None)
        return summary

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Close the search's entry after the block, and those of trials that it left running."""
        with closing_entry(self._tracker):
            try:
                yield
            finally:
                self._close_running()

    def _close_running(self) -> None:
        for trial in self._study.trials:
            if trial.state == TrialState.RUNNING:
                for folder in self._run_folders(trial.number):
                    self._close_run(folder, {"trial_state": "interrupted"}, "KILLED")

    def _run_folders(self, number: int) -> list[RunFolder]:
        folder = trial_folder(self._search.output_dir, number)
        return [RunFolder(place) for place in run_folders(folder, self._search.trial.seeds)]

    def _close_run(self, folder: RunFolder, tags: dict[str, str], status: Status) -> None:
        if folder.tracker_run_id is None:
            return
        config = self._space.base.model_copy(update={"tracking": self._trials_tracking})
        try:
            tag_entry(config, folder, tags, status)
        except UserError as error:
            logger.warning("trial %s: %s", folder.path.name, error)
