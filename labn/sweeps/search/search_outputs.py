"""The outputs of a search: its entry in the tracker, figures, summary and best settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna.trial import TrialState

from labn.config import dump_config
from labn.config.search import SearchConfig
from labn.runs.folder import RunFolder
from labn.runs.tracked import close_entry, closing_entry, deliver_kept, log_settings
from labn.storage.files import write_atomically, write_json
from labn.sweeps.entry import open_sweep_entry
from labn.sweeps.search.optuna_study import STATES, SearchStudy, metrics_of
from labn.sweeps.search.search_figures import draw_figures
from labn.sweeps.search.search_results import SearchResults, as_markdown, summarise
from labn.sweeps.search.space import Space
from labn.sweeps.search.study_storage import storage_url
from labn.sweeps.search.trial import run_folders
from labn.sweeps.worker import Outcome
from labn.tracking import Status, image_in_description, redact

_LONGEST_TABLE = 6000
"""In characters: with the pictures' links, what every tracker accepts."""
_NUM_SHOWN = 2
_STATUS: dict[str, Status] = {"finished": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}


class SearchOutputs:
    """The tracker entries of a search and its trials, and the files in the search's folder.

    Raises:
        UserError: the tracker cannot be reached.
    """

    def __init__(self, search: SearchConfig, space: Space, study: SearchStudy) -> None:
        self._search, self._space, self._study = search, space, study
        settings = {
            "sampler": search.sampler.name,
            "trials": search.trials,
            "maximise": ",".join(search.objective.maximise),
            "storage": redact(storage_url(search)),
        }
        domains = {f"space.{key}": one.model_dump_json() for key, one in search.space.items()}
        self.entry = open_sweep_entry(space.base, search.output_dir.name, settings | domains)
        listed = space.base.tracking.model_copy(update={"parent_run_id": self.entry.run_id})
        self._run_base = space.base.model_copy(update={"tracking": listed})

    def trial_ended(self, number: int, outcome: Outcome) -> None:
        """Log how a trial ended, in the trial's entry and in the search's."""
        tags = {"trial": str(number), "trial_state": outcome.state}
        if outcome.reason:
            tags["trial_reason"] = outcome.reason
        self._close_runs(number, tags, _STATUS[outcome.state])
        scores = {name: outcome.metrics[name] for name in self._study.objectives
                  if name in outcome.metrics}  # fmt: skip
        best = self._study.best()
        if best is not None:
            scores |= {f"best_{name}": metrics_of(best)[name] for name in self._study.objectives}
        self.entry.log_metrics(scores, step=number)

    def draw(self) -> list[Path]:
        """Draw and log the figures of the trials so far; return their files."""
        figures = draw_figures(self._study, self._search.output_dir / "figures")
        for path in figures:
            self.entry.log_artifact(path, "figures")
        return figures

    def conclude(self) -> SearchResults:
        """Write and log figures, summary and best settings; return the summary."""
        output_dir = self._search.output_dir
        figures = self.draw()
        summary = summarise(self._search, self._study, figures)
        write_json(output_dir / "summary.json", dict(summary))
        write_atomically(output_dir / "summary.md", as_markdown(summary))
        files = [output_dir / "summary.json", output_dir / "summary.md"]
        best = self._study.best()
        if best is not None:
            config = self._space.config(
                self._study.parameters(best), output_dir=str(output_dir / "best")
            )
            write_atomically(output_dir / "best.yaml", dump_config(config))
            log_settings(self.entry, output_dir / "best.yaml")
            self.entry.set_tags({"best_trial": str(best.number)})
        for path in files:
            self.entry.log_artifact(path, None)
        pictures = [
            image_in_description(path.stem, self.entry.run_id or "", f"figures/{path.name}")
            for path in figures[:_NUM_SHOWN]
        ]
        table = "\n".join(as_markdown(summary).splitlines()[2:])  # the page has the name
        note = "\n\n".join([table[:_LONGEST_TABLE], *pictures])
        self.entry.set_tags({"mlflow.note.content": note})
        return summary

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Close the search's entry after the block, and those of its trials that are still open."""
        with closing_entry(self.entry):
            try:
                yield
            finally:
                self._close_trials()

    def _close_trials(self) -> None:
        for trial in self._study.trials:
            if trial.state == TrialState.RUNNING:
                self._close_runs(trial.number, {"trial_state": "interrupted"}, "KILLED")
        deliver_kept(
            (self._run_base, RunFolder(folder), _STATUS[STATES[trial.state]])
            for trial in self._study.trials
            if trial.state != TrialState.RUNNING
            for folder in run_folders(self._search, trial.number)
        )

    def _close_runs(self, number: int, tags: dict[str, str], status: Status) -> None:
        """Tag and close the entries of a trial's runs."""
        for folder in map(RunFolder, run_folders(self._search, number)):
            if folder.tracker_run_id is not None:
                best = {"checkpoint": str(folder.best_file)} if folder.best_file.is_file() else {}
                close_entry(self._run_base, folder, tags | best, status)
