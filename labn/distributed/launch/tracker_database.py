"""The tracker's database: a SQLite file on the head's disk, mirrored to shared storage.

SQLite must not be written over a network file system, whose locks are unreliable. The copy on the
storage that all nodes share lets the database outlive its machine.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from labn.storage.files import replacing


class MirroredDatabase:
    """A SQLite file with a copy elsewhere.

    Each opening increments a number in both. Where the numbers differ, another head has used the
    copy in the meantime, so the copy is newer; where they are equal, the file is at least as new.
    """

    def __init__(self, file: Path, copy: Path) -> None:
        self.file, self._copy = file, copy
        self._seen: tuple[int, ...] | None = None

    def open(self) -> str:
        """Open the newer of the file and its copy, update the copy, and return which was used."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._copy.parent.mkdir(parents=True, exist_ok=True)
        here, there = _openings(self.file), _openings(self._copy)
        if there is not None and here != there:
            _remove(self.file)
            _copy(self._copy, self.file)
        with closing(sqlite3.connect(self.file)) as database:
            database.execute(f"PRAGMA user_version = {(there or here or 0) + 1}")
            database.commit()
        self.save_copy()
        if there is not None and here != there:
            return f"restored from {self._copy}"
        return "new" if here is None else "unchanged"

    def save_copy(self) -> bool:
        """Copy the file atomically if it changed since the last copy; return whether it did."""
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
