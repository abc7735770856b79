"""Tracker entries of runs, studies and searches: opening, extending and closing them."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from labn.config import Config
from labn.errors import Interrupted, UserError
from labn.runs.folder import RunFolder
from labn.tracking import Spool, Status, Tracker, open_tracker, redact, resolve_uri
from labn.tracking.store import sqlite_path

logger = logging.getLogger(__name__)


def experiment_name(config: Config) -> str:
    """Return the tracker's experiment for a configuration."""
    return config.tracking.experiment or f"labn/{config.data.name}"


def open_entry(
    config: Config, folder: RunFolder, *, name: str | None = None, resumes: bool = True
) -> Tracker:
    """Open the tracker entry of a folder, or create it and store its id in the folder.

    ``name`` is for a new entry; the default is ``tracking.run_name``, or the folder's name. Unless
    ``resumes`` is False, an earlier entry becomes RUNNING again, and gets the system's metrics.

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
    return open_tracker(
        uri,
        experiment=experiment_name(config),
        run_name=name or tracking.run_name or folder.path.name,
        run_id=run_id,
        tags={"mlflow.parentRunId": parent} if parent else {},
        spool_dir=folder.spool,
        resumes=resumes,
        # At once: of a process that ends before, the entry would be an orphan that runs for ever.
        on_open=partial(folder.keep_tracker_run_id, uri),
    )


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
def reopened_entry(config: Config, folder: RunFolder) -> Iterator[Tracker]:
    """Open the entry of a trained run to extend it; its status stays as it is.

    Raises:
        UserError: the tracker cannot be reached, or does not have the folder's entry.
    """
    tracker = open_entry(config, folder, resumes=False)
    try:
        yield tracker
    finally:
        tracker.finish(None)


def tag_entry(
    config: Config, folder: RunFolder, tags: Mapping[str, str], status: Status | None = None
) -> None:
    """Set tags of an entry, and close it if there is a status.

    Raises:
        UserError: the tracker cannot be reached, or does not have the folder's entry.
    """
    tracker = open_entry(config, folder, resumes=False)
    if tags:
        tracker.set_tags(tags)
    if status is not None:
        tracker.finish(status)


def close_entry(config: Config, folder: RunFolder, tags: Mapping[str, str], status: Status) -> bool:
    """Tag and close the entry of a run that has ended; return whether the tracker was reached."""
    try:
        tag_entry(config, folder, tags, status)
    except UserError as error:
        logger.warning("%s: %s", folder.path, error)
        return False
    return True


def deliver_kept(runs: Iterable[tuple[Config, RunFolder, Status]]) -> None:
    """Deliver the records of ended runs that the tracker has not received, and close the entries.

    A run that has ended is not resumed, which would deliver them. Runs after one whose tracker
    cannot be reached are left as they are.
    """
    for config, folder, status in runs:
        is_kept = folder.tracker_run_id is not None and Spool(folder.spool)
        if is_kept and not close_entry(config, folder, {}, status):
            return


def log_settings(tracker: Tracker, file: Path) -> None:
    """Log a copy of a settings file, without the passwords in its addresses."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch, file.name)
        copy.write_text(redact(file.read_text(encoding="utf-8")), encoding="utf-8")
        tracker.log_artifact(copy, None)
