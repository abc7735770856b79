"""Files that are whole or absent whenever the power fails, and locks between processes."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
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
    """Write a file that is either the old one or the whole new one, and make its folder.

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
            " folder writable, then give the same command again: what was there is intact"
        ) from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON that is either the old or the whole new."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")


@contextmanager
def replacing(path: Path) -> Iterator[BufferedWriter]:
    """Open a file that takes its name, and an old one's place, once all of it is on the disk.

    Raises:
        OSError: it cannot be written; the old file is intact.
    """
    make_folder(path.parent)
    # Of fixed length: the file's own name may be as long as the file system allows.
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
        put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def put_in_place(made: Path, path: Path) -> None:
    """Give a finished file, or a folder of files, its name, once all of it is on the disk.

    Raises:
        OSError: it cannot be kept, or a folder stands there already.
    """
    for written in (*made.rglob("*"), made):
        _sync(written)
    made.replace(path)
    _sync(path.parent)


def append(path: Path, text: str) -> None:
    """Add text to a file's end; it is on the disk when this returns.

    Raises:
        OSError: it cannot be written; after a crash, a part of the text may stand there.
    """
    make_folder(path.parent)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
    _sync(path)
    _sync(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder with those that it lies in, unless it is there, so that it stays.

    Raises:
        OSError: it cannot be made.
    """
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        _sync(path.parent)


@contextmanager
def locked(path: Path, waiting: str = "", *, timeout_s: float = math.inf) -> Iterator[None]:
    """Hold a lock against other processes; the system frees it when its holder dies.

    ``waiting`` is logged when the wait is no longer a short one.

    Raises:
        TimeoutError: another process still holds it after so long.
        OSError: its file cannot be made.
    """
    make_folder(path.parent)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=min(timeout_s, _QUIET_WAIT_S))
    except TimeoutError:
        if timeout_s <= _QUIET_WAIT_S:
            raise
        # A wait without a limit is for work that is shared, which ends.
        logger.log(logging.INFO if math.isinf(timeout_s) else logging.WARNING, "%s", waiting)
        lock.acquire(timeout=timeout_s - _QUIET_WAIT_S)
    try:
        yield
    finally:
        lock.release()


def _sync(path: Path) -> None:
    """Have the disk hold what was written to a file, or which files a folder has."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems over a network cannot do so for a folder.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
