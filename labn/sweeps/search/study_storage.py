"""The storage of a search's study: a file, or a database that may be away for a while."""

from __future__ import annotations

import functools
import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from labn.config.search import SearchConfig
from labn.errors import RunFailed
from labn.tracking import redact
from labn.tracking.store import store_url

logger = logging.getLogger(__name__)

_JOURNAL, _SQLITE = "journal:", "sqlite:///"
_CALLS = re.compile(r"_?(check_and|create|delete|get|record|set)_")
"""The beginning of the names of a storage's methods that ask its database."""
LONGEST_WAIT_S = 600.0
"""How long a database may be away before the search ends."""
_PAUSE_S = 2.0


def storage_url(search: SearchConfig) -> str:
    """Return the URL of the storage of a search's study.

    A journal costs a tenth of SQLite's time, and works on NFS, where SQLite's locks do not. Earlier
    searches that were not on a cluster have a database.
    """
    if search.storage is not None:
        return search.storage
    database = search.output_dir / "study.db"
    if database.is_file():
        return f"{_SQLITE}{database}"
    return f"{_JOURNAL}{search.output_dir}/study.journal"


def open_storage(url: str) -> BaseStorage:
    """Open or create a study's storage: the URL of a database, or ``journal:FILE``.

    A database server that is away later, though not now, is waited for.
    """
    if url.startswith(_JOURNAL):
        file = Path(url.removeprefix(_JOURNAL)).expanduser()
        file.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(file)
        return JournalStorage(JournalFileBackend(str(file)))
    if url.startswith(_SQLITE):
        Path(url.removeprefix(_SQLITE)).parent.mkdir(parents=True, exist_ok=True)
        return RDBStorage(store_url(url))
    # A connection that broke while the server was away is replaced.
    storage = RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    for name in filter(_CALLS.match, dir(storage)):
        method = getattr(storage, name)
        if callable(method):
            setattr(storage, name, _patient(method, redact(url)))
    return storage


def _drop_torn_line(file: Path) -> None:
    """Cut off what a full disk or a power loss left of a journal's last line.

    Optuna would append to it, and never read the journal again. A whole journal is only read.
    """
    if not _is_torn(file):
        return
    lock = JournalFileSymlinkLock(str(file))
    lock.acquire()
    try:
        if _is_torn(file):  # and not being written
            with file.open("rb+") as journal:
                journal.truncate(journal.read().rfind(b"\n") + 1)
    finally:
        lock.release()


def _is_torn(file: Path) -> bool:
    if not file.is_file() or file.stat().st_size == 0:
        return False
    with file.open("rb") as journal:
        journal.seek(-1, os.SEEK_END)
        return journal.read() != b"\n"


def _patient(method: Callable[..., Any], where: str) -> Callable[..., Any]:
    """Return a method that is called again while the database does not answer."""

    @functools.wraps(method)
    def call(*arguments: Any, **named: Any) -> Any:
        deadline_s = None
        while True:
            try:
                return method(*arguments, **named)
            except (DBAPIError, StorageInternalError) as error:
                reason = _unreachable(error)
                if reason is None:
                    raise
                now_s = time.monotonic()
                if deadline_s is None:
                    deadline_s = now_s + LONGEST_WAIT_S
                    logger.warning("storage = %s: does not answer (%s); waiting", where, reason)
                if now_s > deadline_s:
                    raise RunFailed(
                        f"storage = {where}: does not answer ({reason}); run the same command again"
                        " when it does, to resume"
                    ) from error
                time.sleep(_PAUSE_S)

    return call


def _unreachable(error: Exception) -> str | None:
    """Return why a database cannot be reached; None where the error is another one."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if isinstance(cause, (OperationalError, InterfaceError)):
        return redact(" ".join(str(cause.orig).split()))
    is_broken = isinstance(cause, DBAPIError) and cause.connection_invalidated
    return redact(" ".join(str(cause).split())) if is_broken else None
