"""A tracker's database that outlives its machine: a SQLite file here, copied to shared storage.

SQLite must not be written over a network, whose locks it cannot trust; so it lies on the head's own
disk, and a whole copy of it is kept on the storage that all nodes share.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from labn.storage.files import replacing


class KeptDatabase:
    """A SQLite file with a copy elsewhere.

    Each opening counts up a number in both. Where they differ, another head went on with the copy
    in the meantime, and the copy is what counts; where they do not, the file is as new or newer.
    """

    def __init__(self, file: Path, copy: Path) -> None:
        self.file, self._copy = file, copy
        self._seen: tuple[int, ...] | None = None

    def open(self) -> str:
        """Choose between the file and its copy, and say which it was; then keep the copy."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._copy.parent.mkdir(parents=True, exist_ok=True)
        here, there = _openings(self.file), _openings(self._copy)
        if there is not None and here != there:
            _remove(self.file)
            _copy(self._copy, self.file)
        with closing(sqlite3.connect(self.file)) as database:
            database.execute(f"PRAGMA user_version = {(there or here or 0) + 1}")
            database.commit()
        self.keep()
        if there is not None and here != there:
            return f"restored from {self._copy}"
        return "new" if here is None else "as it was left here"

    def keep(self) -> bool:
        """Copy the file if it changed since the last time; the copy is whole at any moment."""
        state = self._state()
        if state == self._seen:
            return False
        snapshot = self.file.with_suffix(".snapshot")
        with (
            closing(sqlite3.connect(self.file)) as database,
            closing(sqlite3.connect(snapshot)) as into,
        ):
            database.backup(into)
        _copy(snapshot, self._copy)
        self._seen = state
        return True

    def _state(self) -> tuple[int, ...]:
        states = []
        for suffix in ("", "-wal"):
            place = self.file.with_name(self.file.name + suffix)
            if place.exists():
                found = place.stat()
                states += [found.st_mtime_ns, found.st_size]
        return tuple(states)


def _openings(file: Path) -> int | None:
    if not file.is_file():
        return None
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
        return int(database.execute("PRAGMA user_version").fetchone()[0])


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as content, replacing(target) as copy:
        shutil.copyfileobj(content, copy)


def _remove(file: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        file.with_name(file.name + suffix).unlink(missing_ok=True)
