"""SQLite files as MLflow stores: their paths, and their creation by concurrent processes."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from labn.storage.files import locked
from labn.tracking.quiet import quiet

_SQLITE = "sqlite:///"
_LOCK_TIMEOUT_S = 120
_OPTIONS = re.compile(r"\?\w+=")
"""The beginning of options of SQLAlchemy's behind a file, such as ``?timeout=20``."""


def resolve_uri(uri: str) -> str:
    """Return a URI with an absolute path, if it is a SQLite file's."""
    path = sqlite_path(uri)
    return uri if path is None else f"{_SQLITE}{path}"


def store_url(uri: str) -> str:
    """Return the URL by which SQLAlchemy opens a store, whose path may contain ``%`` or ``?``.

    Everywhere else the part of a SQLite file's URI behind the slashes is its path, as it is.
    """
    from sqlalchemy.engine import URL

    path = sqlite_path(uri)
    if path is None or _OPTIONS.search(path.name):
        return uri
    return str(URL.create("sqlite", database=str(path)))


def artifact_root(uri: str) -> str | None:
    """Return a new experiment's folder, beside a SQLite store; None for MLflow's default."""
    path = sqlite_path(uri)
    return None if path is None else (path.parent / "mlruns").as_uri()


@contextlib.contextmanager
def opening(uri: str) -> Iterator[None]:
    """Lock a SQLite store while this process opens, and maybe creates, it.

    MLflow creates its tables without a lock, so that two processes at once would break the store.

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
    """Return the file of a SQLite store; None for another kind of store."""
    if not uri.startswith(_SQLITE):
        return None
    return Path(uri.removeprefix(_SQLITE)).expanduser().absolute()
