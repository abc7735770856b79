"""A study's own entry in the tracker, under which its runs' are listed."""

from __future__ import annotations

from pathlib import Path

from labn.ablation.study import Study, settings_as_text
from labn.runs.folder import RunFolder
from labn.runs.tracked import log_settings, open_entry
from labn.tracking import environment_tags

_LONGEST_NOTE = 7500
"""Letters that a tracker surely takes of a note."""


class Records:
    """The entry of a study; its runs' are made by whoever works on them.

    Opened before any run, it makes a tracker's SQLite store before the runs share it.

    Raises:
        UserError: the tracker cannot be reached.
    """

    def __init__(self, study: Study) -> None:
        folder, title = RunFolder(study.settings.output_dir), study.settings.title
        self.entry = open_entry(study.base, folder, name=title)
        self.entry.set_tags(environment_tags() | {"study": title})
        self.entry.log_params(
            {
                f"conditions.{name}": settings_as_text(settings)
                for name, settings in study.differing().items()
            }
            | {"seeds": study.settings.seeds, "evaluate": study.settings.evaluate.model_dump_json()}
        )
        log_settings(self.entry, study.save())

    def keep(self, means: dict[str, dict[str, float]], note: str, files: list[Path]) -> None:
        """Log means by condition and metric, a note in Markdown, and the report's files."""
        metrics = {
            f"{condition}/{name}": value
            for condition, row in means.items()
            for name, value in row.items()
        }
        self.entry.log_metrics(metrics, step=0)
        self.entry.set_tags({"mlflow.note.content": note[:_LONGEST_NOTE]})
        for path in files:
            self.entry.log_artifact(path, "report")
