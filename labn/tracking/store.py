"""SQLite files as MLflow stores: where they lie, and how several processes may create one."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from labn.storage.files import locked
from labn.tracking.quiet import quiet

_SQLITE = "sqlite:///"
_LOCK_TIMEOUT_S = 120


def resolve_uri(uri: str) -> str:
    """Make the path of a SQLite URI absolute, so that it means the same in every process."""
    path = sqlite_path(uri)
    return uri if path is None else f"{_SQLITE}{path}"


def artifact_root(uri: str) -> str | None:
    """Say where a new experiment keeps its files: beside a SQLite store; None: as MLflow likes."""
    path = sqlite_path(uri)
    return None if path is None else (path.parent / "mlruns").as_uri()


@contextlib.contextmanager
def opening(uri: str) -> Iterator[None]:
    """Hold every other process off a SQLite store while this one opens, and may create, it.

    MLflow creates its tables without a lock, and leaves a store broken that two processes
    create together.

    Raises:
        sqlite3.Error or OSError: the file cannot be used (MLflow itself would retry for minutes).
    """
    path = sqlite_path(uri)
    with contextlib.ExitStack() as stack:
        if path is not None:
            lock, waiting = Path(f"{path}.lock"), f"{path}: waiting for another process to open it"
            stack.enter_context(locked(lock, waiting, timeout_s=_LOCK_TIMEOUT_S))
            with contextlib.closing(sqlite3.connect(path)) as connection:
                connection.execute("PRAGMA schema_version")
            stack.enter_context(quiet())
        yield


def sqlite_path(uri: str) -> Path | None:
    """Give the file of a SQLite store; None for a store of another kind."""
    if not uri.startswith(_SQLITE):
        return None
    return Path(uri.removeprefix(_SQLITE)).expanduser().absolute()
