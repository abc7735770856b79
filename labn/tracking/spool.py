"""A queue on disk of records that could not be delivered."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from labn.storage.files import append, replacing

logger = logging.getLogger(__name__)

Deliver = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class _Record:
    """One call of one run: its plain arguments, and those saved as files in ``folder``."""

    run_id: str | None
    call: str
    plain: dict[str, Any]
    files: dict[str, str]
    tables: dict[str, str]
    folder: str


class Spool:
    """A queue of calls in ``folder``: ``untracked.jsonl``, and ``untracked/`` for their files.

    A record is on the disk when ``append`` returns. After a crash in the middle of ``drain`` the
    records that had been delivered may be delivered again.
    """

    def __init__(self, folder: Path) -> None:
        self.log = folder / "untracked.jsonl"
        self._files = folder / "untracked"

    def __len__(self) -> int:
        return len(self._read())

    def __bool__(self) -> bool:
        return self.log.exists()

    @property
    def run_id(self) -> str | None:
        """Run of the records; None if there are none."""
        return next((record.run_id for record in self._read()), None)

    def append(self, run_id: str | None, call: str, arguments: Mapping[str, Any]) -> None:
        """Append a call; files and folders among its arguments are copied.

        Raises:
            OSError: nothing can be written, so the call is not saved.
        """
        folder = self._files / str(time.time_ns())
        plain: dict[str, Any] = {}
        files: dict[str, str] = {}
        tables: dict[str, str] = {}
        for name, value in arguments.items():
            if isinstance(value, Path):
                files[name] = value.name
                _copy(value, folder / value.name)
            elif isinstance(value, pd.DataFrame):
                tables[name] = f"{name}.json"
                with replacing(folder / tables[name]) as file:
                    file.write(value.to_json(orient="table").encode())
            else:
                plain[name] = value
        record = _Record(run_id, call, plain, files, tables, folder.name)
        append(self.log, json.dumps(asdict(record)) + "\n")

    def drain(self, deliver: Deliver) -> int:
        """Deliver the records in order; return their number.

        If ``deliver`` raises, the error is passed on, and its record and all after it stay.
        """
        records = self._read()
        delivered = 0
        try:
            for record in records:
                deliver(record.call, self._arguments(record))
                delivered += 1
        finally:
            self._keep(records[delivered:])
            for record in records[:delivered]:
                shutil.rmtree(self._files / record.folder, ignore_errors=True)
        return delivered

    def _arguments(self, record: _Record) -> dict[str, Any]:
        folder = self._files / record.folder
        return (
            record.plain
            | {name: folder / file for name, file in record.files.items()}
            | {
                name: pd.read_json(folder / file, orient="table")
                for name, file in record.tables.items()
            }
        )

    def _keep(self, records: list[_Record]) -> None:
        """Replace the log atomically, before the files of delivered records are deleted."""
        if not records:
            self.log.unlink(missing_ok=True)
            shutil.rmtree(self._files, ignore_errors=True)
            return
        with replacing(self.log) as fresh:
            for record in records:
                fresh.write(json.dumps(asdict(record)).encode() + b"\n")

    def _read(self) -> list[_Record]:
        if not self.log.exists():
            return []
        records = []
        for number, line in enumerate(self.log.read_text("utf-8").splitlines(), start=1):
            try:
                records.append(_Record(**json.loads(line)))
            except (json.JSONDecodeError, TypeError):
                logger.warning("%s: line %d is incomplete and left out", self.log, number)
        return records


def _copy(source: Path, target: Path) -> None:
    for path in source.rglob("*") if source.is_dir() else (source,):
        if path.is_file():
            with path.open("rb") as file, replacing(target / path.relative_to(source)) as copy:
                shutil.copyfileobj(file, copy)
