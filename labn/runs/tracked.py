"""Tracker entries of runs, studies and searches: opening, extending and closing them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from labn.config import Config
from labn.errors import Interrupted, UserError
from labn.runs.folder import RunFolder
from labn.tracking import Status, Tracker, open_tracker, redact, resolve_uri
from labn.tracking.store import sqlite_path


def experiment_name(config: Config) -> str:
    """Return the tracker's experiment for a configuration."""
    return config.tracking.experiment or f"labn/{config.data.name}"


def open_entry(
    config: Config, folder: RunFolder, *, name: str | None = None, log_system_metrics: bool = True
) -> Tracker:
    """Open the tracker entry of a folder, or create it and store its id in the folder.

    ``name`` is for a new entry; the default is ``tracking.run_name``, or the folder's name.

    Raises:
        UserError: the tracker cannot be reached, or does not have the folder's entry.
    """
    tracking = config.tracking
    uri, parent = resolve_uri(tracking.uri), tracking.parent_run_id
    run_id, store = folder.tracker_run_id, sqlite_path(uri)
    if run_id is not None and store is not None and not store.is_file():
        raise UserError(
            f"tracking.uri = {uri}: no such file, but {folder.tracker_file} names a run there; if"
            " it was moved, give tracking.uri=sqlite:///PATH, or tracking.uri=none to track nothing"
        )
    tracker = open_tracker(
        uri,
        experiment=experiment_name(config),
        run_name=name or tracking.run_name or folder.path.name,
        run_id=run_id,
        tags={"mlflow.parentRunId": parent} if parent else {},
        spool_dir=folder.spool,
        log_system_metrics=log_system_metrics,
    )
    if tracker.run_id is not None:
        folder.keep_tracker_run_id(uri, tracker.run_id)
    return tracker


@contextmanager
def closing_entry(tracker: Tracker) -> Iterator[Tracker]:
    """Close an entry at the end of the block: KILLED if interrupted, FAILED after an error."""
    status: Status = "KILLED"
    try:
        yield tracker
        status = "FINISHED"
    except Interrupted:
        raise
    except Exception:
        status = "FAILED"
        raise
    finally:
        tracker.finish(status)


@contextmanager
def reopened_entry(
    config: Config, folder: RunFolder, *, log_system_metrics: bool = True
) -> Iterator[Tracker]:
    """Reopen the entry of a trained run to extend it, and close it as FINISHED again.

    Raises:
        UserError: the tracker cannot be reached, or does not have the folder's entry.
    """
    tracker = open_entry(config, folder, log_system_metrics=log_system_metrics)
    try:
        yield tracker
    finally:
        tracker.finish("FINISHED")


def tag_entry(
    config: Config, folder: RunFolder, tags: Mapping[str, str], status: Status | None = None
) -> None:
    """Set tags of an entry, and close it if there is a status.

    Raises:
        UserError: the tracker cannot be reached, or does not have the folder's entry.
    """
    tracker = open_entry(config, folder, log_system_metrics=False)
    tracker.set_tags(tags)
    if status is not None:
        tracker.finish(status)


def log_settings(tracker: Tracker, file: Path) -> None:
    """Log a copy of a settings file, without the passwords in its addresses."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch, file.name)
        copy.write_text(redact(file.read_text(encoding="utf-8")), encoding="utf-8")
        tracker.log_artifact(copy, None)
