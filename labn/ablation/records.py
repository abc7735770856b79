"""A study's own entry in the tracker, under which its runs' are listed."""

from __future__ import annotations

from pathlib import Path

from labn.ablation.study import Study, settings_as_text
from labn.runs.folder import RunFolder
from labn.tracking import Status, Tracker, environment_tags, open_tracker, resolve_uri

_LONGEST_NOTE = 7500
"""Letters that a tracker surely takes of a note."""


class Records:
    """The entry of a study; its runs' are made by whoever works on them.

    Opened before any run, it makes a tracker's SQLite store before the runs share it.

    Raises:
        UserError: the tracker cannot be reached.
    """

    def __init__(self, study: Study) -> None:
        folder, tracking = RunFolder(study.settings.output_dir), study.base.tracking
        uri = tracking.uri if tracking.uri == "none" else resolve_uri(tracking.uri)
        self._tracker: Tracker = open_tracker(
            uri,
            experiment=tracking.experiment or f"labn/{study.base.data.name}",
            run_name=study.settings.title,
            run_id=folder.tracker_run_id,
            spool_dir=folder.spool,
        )
        self.run_id = self._tracker.run_id
        if self.run_id is not None:
            folder.keep_tracker_run_id(uri, self.run_id)
        self._tracker.set_tags(environment_tags() | {"study": study.settings.title})
        self._tracker.log_params(
            {
                f"conditions.{name}": settings_as_text(settings)
                for name, settings in study.differing().items()
            }
            | {"seeds": study.settings.seeds, "evaluate": study.settings.evaluate.model_dump_json()}
        )
        self._tracker.log_artifact(study.save(), None)

    def keep(self, means: dict[str, dict[str, float]], note: str, files: list[Path]) -> None:
        """Log means by condition and metric, a note in Markdown, and the report's files."""
        metrics = {
            f"{condition}/{name}": value
            for condition, row in means.items()
            for name, value in row.items()
        }
        self._tracker.log_metrics(metrics, step=0)
        self._tracker.set_tags({"mlflow.note.content": note[:_LONGEST_NOTE]})
        for path in files:
            self._tracker.log_artifact(path, "report")

    def close(self, status: Status) -> None:
        """Close the entry."""
        self._tracker.finish(status)
