"""Atomic, durable writes of files, and locks between processes."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path
from typing import Any

from filelock import FileLock

from labn.errors import UserError

logger = logging.getLogger(__name__)

_QUIET_WAIT_S = 3.0


def write_atomically(path: Path, content: str | bytes | Callable[[BufferedWriter], object]) -> None:
    """Write a file atomically, and make its folder; on failure the old file remains.

    ``content`` is text, bytes, or a function that writes to an open binary file.

    Raises:
        UserError: the disk is full or the folder is not writable; the old file is intact.
    """
    try:
        with replacing(path) as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); free some space or make the"
            " folder writable, then run the same command again; the old file is intact"
        ) from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")


@contextmanager
def replacing(path: Path) -> Iterator[BufferedWriter]:
    """Open a temporary file that replaces ``path`` once all of it is on the disk.

    Raises:
        OSError: it cannot be written; the old file is intact.
    """
    make_folder(path.parent)
    # A name of fixed length, since the file's own may be as long as the file system allows.
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
        put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def put_in_place(made: Path, path: Path) -> None:
    """Rename a finished file, or a folder of files, to ``path`` once all of it is on the disk.

    Raises:
        OSError: it cannot be written, or ``path`` is a folder that exists.
    """
    for written in (*made.rglob("*"), made):
        _sync(written)
    made.replace(path)
    _sync(path.parent)


def append(path: Path, text: str) -> None:
    """Append text to a file; it is on the disk when this returns.

    Raises:
        OSError: it cannot be written; after a crash, the file may end with part of the text.
    """
    make_folder(path.parent)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
    _sync(path)
    _sync(path.parent)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(path: Path) -> None:
    """Make a folder and its parents, durably, unless it exists.

    Raises:
        OSError: it cannot be made.
    """
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        _sync(path.parent)


def expanded(path: Path | str) -> Path | None:
    """Return a path with its ``~`` replaced, or None if there is no such home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return None


def cache_folder(given: Path) -> Path:
    """Return a folder for what can be made again; ``~`` is the home folder.

    Where there is none, or it cannot be written, it is a folder of the user's in the system's
    temporary one.
    """
    folder = expanded(given)
    if folder is not None and (given.parts[:1] != ("~",) or _exists(folder) or can_make(folder)):
        return folder
    return Path(tempfile.gettempdir(), f"labn-{os.getuid()}", *given.parts[1:])


def can_make(folder: Path) -> bool:
    """Return whether a folder could be made below the nearest that exists above it."""
    while not _exists(folder):
        folder = folder.parent
    return os.access(folder, os.W_OK | os.X_OK)


def _exists(folder: Path) -> bool:
    try:
        return folder.is_dir()
    except PermissionError:  # a folder above it cannot be searched
        return False


@contextmanager
def locked(path: Path, waiting: str = "", *, timeout_s: float = math.inf) -> Iterator[None]:
    """Hold a lock between processes; the system releases it when its holder dies.

    ``waiting`` is logged when the wait exceeds a few seconds.

    Raises:
        TimeoutError: another process holds it for longer than ``timeout_s``.
        OSError: its file cannot be made.
    """
    make_folder(path.parent)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=min(timeout_s, _QUIET_WAIT_S))
    except TimeoutError:
        if timeout_s <= _QUIET_WAIT_S:
            raise
        # A wait without a limit is for work that another process does for all, which ends.
        logger.log(logging.INFO if math.isinf(timeout_s) else logging.WARNING, "%s", waiting)
        lock.acquire(timeout=timeout_s - _QUIET_WAIT_S)
    try:
        yield
    finally:
        lock.release()


def _sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
