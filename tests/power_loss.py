"""What a disk would have kept after a power loss, derived from the system calls that were made.

`python power_loss.py RECORD FOLDER train config.yaml` runs a command in this process and writes
what happened below the folder as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Disk:
    """A record of the files that are synced and renamed below a folder.

    ``faults`` has one line for each rename of content that the disk did not hold in full, and
    ``placed`` has the renamed names.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).resolve()
        self.faults: list[str] = []
        self.placed: list[str] = []
        self._synced: dict[int, tuple[int, int]] = {}
        self._unkept: dict[int, list[str]] = {}
        self._fsync, self._rename, self._replace = os.fsync, os.rename, os.replace

    def calls(self) -> dict[str, Callable[..., None]]:
        """Return replacements for the calls of ``os``, by name."""
        return {
            "fsync": self.fsync,
            "rename": lambda source, target: self.move(self._rename, source, target),
            "replace": lambda source, target: self.move(self._replace, source, target),
        }

    def fsync(self, descriptor: int) -> None:
        """Sync, and record what the disk holds now."""
        self._fsync(descriptor)
        state = os.fstat(descriptor)
        self._synced[state.st_ino] = _content(state)
        self._unkept.pop(state.st_ino, None)

    def move(self, real: Callable[..., None], old: Any, new: Any) -> None:
        """Rename, after a check whether the disk holds all of the content."""
        source, target = Path(old), Path(new)
        if target.resolve().is_relative_to(self.folder):
            name = str(target.resolve().relative_to(self.folder))
            for path in (source, *source.rglob("*")):
                state = path.stat()
                if path.is_file() and self._synced.get(state.st_ino) != _content(state):
                    self.faults.append(f"{name} took its name before the disk held {path.name}")
            self.placed.append(name)
            self._unkept.setdefault(target.parent.stat().st_ino, []).append(name)
        real(source, target)

    def unkept(self) -> list[str]:
        """Return the renames whose folder was not synced afterwards: a power loss undoes them."""
        return [name for names in self._unkept.values() for name in names]

    def in_place(self) -> list[str]:
        """Return the files that were never renamed, nor lie in a folder that was."""
        names = [path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file()]
        placed = {Path(name) for name in self.placed}
        return sorted(str(name) for name in names if not placed & {name, *name.parents})


def _content(state: os.stat_result) -> tuple[int, int]:
    return state.st_size, state.st_mtime_ns


def main() -> None:
    """Run a command as the command line does; write the record even if it fails."""
    record, folder, *arguments = sys.argv[1:]
    disk = Disk(folder)
    for name, call in disk.calls().items():
        setattr(os, name, call)
    from labn.cli import main as labn

    sys.argv = ["labn", *arguments]
    try:
        labn()
    finally:
        found = {"faults": disk.faults, "placed": disk.placed, "unkept": disk.unkept()}
        Path(record).write_text(json.dumps(found | {"in_place": disk.in_place()}))


if __name__ == "__main__":
    main()
