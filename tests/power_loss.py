"""What a disk would have kept had the power failed, told from the system calls that were made.

`python power_loss.py RECORD FOLDER train config.yaml` runs a command in this process, and writes
what it saw below the folder as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


class Disk:
    """Watches files being synced and renamed below a folder.

    ``faults`` has a line for each rename of something that the disk did not hold in full, and
    ``placed`` what was renamed; ``unkept`` gives the names that a power loss would have undone.
    """

    def __init__(self, folder):
        self.folder = Path(folder).resolve()
        self.faults, self.placed = [], []
        self._synced, self._unkept = {}, {}
        self._fsync, self._rename, self._replace = os.fsync, os.rename, os.replace

    def calls(self):
        """Give stand-ins for the calls of ``os``, by name."""
        return {
            "fsync": self.fsync,
            "rename": lambda source, target: self.move(self._rename, source, target),
            "replace": lambda source, target: self.move(self._replace, source, target),
        }

    def fsync(self, descriptor):
        """Sync, and remember what the disk holds since."""
        self._fsync(descriptor)
        state = os.fstat(descriptor)
        self._synced[state.st_ino] = _content(state)
        self._unkept.pop(state.st_ino, None)

    def move(self, real, source, target):
        """Rename, once it is known whether the disk holds all of that."""
        source, target = Path(source), Path(target)
        if target.resolve().is_relative_to(self.folder):
            name = str(target.resolve().relative_to(self.folder))
            for path in (source, *source.rglob("*")):
                state = path.stat()
                if path.is_file() and self._synced.get(state.st_ino) != _content(state):
                    self.faults.append(f"{name} took its name before the disk held {path.name}")
            self.placed.append(name)
            self._unkept.setdefault(target.parent.stat().st_ino, []).append(name)
        real(source, target)

    def unkept(self):
        """List the renames whose folder was not synced after them."""
        return [name for names in self._unkept.values() for name in names]

    def in_place(self):
        """List the files that were never renamed, nor lie in a folder that was."""
        names = [path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file()]
        placed = {Path(name) for name in self.placed}
        return sorted(str(name) for name in names if not placed & {name, *name.parents})


def _content(state):
    return state.st_size, state.st_mtime_ns


def main():
    """Run a command as the command line does, and keep the record whatever becomes of it."""
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
