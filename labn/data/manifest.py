"""Tables of which image belongs to which subset, by name and content.

A run's ``data.csv`` and the file that `labn data split` writes are such tables. Where there is one,
nothing is drawn: the images that it names stay where they are, whatever else lies beside them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast

import pandas as pd

from labn.data.readers.reader import SUBSETS, Record, SubsetName
from labn.errors import UserError

_NUM_NAMES_SHOWN = 5
_REQUIRED = ("name", "sha256", "partition")


@dataclass(frozen=True)
class Entry:
    """The place of one image: its subset (None: unused), or the fold that it validates."""

    sha256: str
    subset: SubsetName | None
    label: int | None = None
    fold: int | None = None

    @property
    def place(self) -> str:
        """The subset or the fold, as text."""
        return (self.subset or "no subset") if self.fold is None else f"fold {self.fold}"


class PlacedImages(NamedTuple):
    """Each record's subset by a table, the positions of unknown records, notes for the user."""

    subsets: list[SubsetName | None]
    new: list[int]
    notes: list[str]


@dataclass(frozen=True)
class SubsetTable:
    """The place of each image, by name; ``source`` is the file, for messages."""

    source: Path
    entries: Mapping[str, Entry]

    @classmethod
    def read(cls, path: Path) -> SubsetTable:
        """Read a table in CSV.

        Raises:
            UserError: it cannot be read, lacks a column, or has a value that is none.
        """
        try:
            # As text, so that names such as 007 are preserved.
            rows = pd.read_csv(path, dtype=str, keep_default_na=False)
        except FileNotFoundError:
            raise UserError(f"{path}: no such table; make it with `labn data split`") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
        if lacking := [name for name in _REQUIRED if name not in rows.columns]:
            raise UserError(
                f"{path}: must have the columns {', '.join(_REQUIRED)} in its first line, but has"
                f" no {lacking[0]}; make it with `labn data split`"
            )
        entries: dict[str, Entry] = {}
        for line, row in enumerate(cast(list[dict[str, str]], rows.to_dict("records")), start=2):
            if row["name"] in entries:
                raise UserError(f"{path}: line {line}: {row['name']} is listed twice; keep one")
            entries[row["name"]] = _entry(path, line, row)
        return cls(path, entries)

    @property
    def digest(self) -> str:
        """The SHA-256 of what the table says, whatever the order of its lines."""
        rows = [
            (name, entry.sha256, entry.subset, entry.fold)
            for name, entry in sorted(self.entries.items())
        ]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def of_fold(self, folds: int | None, fold: int) -> SubsetTable:
        """Return the table in which the training images of one fold validate.

        Raises:
            UserError: the table has folds where there are to be none, or other ones.
        """
        numbers = {entry.fold for entry in self.entries.values()} - {None}
        if len(numbers) != (folds or 0) or not numbers <= set(range(folds or 0)):
            has = f"has {len(numbers)} folds" if numbers else "has no folds"
            raise UserError(
                f"data.folds = {folds or 'null'}: {self.source} {has}; set"
                f" data.folds={len(numbers) or 'null'}, or make the table anew with `labn data"
                " split`"
            )
        entries = {
            name: replace(
                entry, fold=None, subset="validation" if entry.fold == fold else entry.subset
            )
            if entry.fold is not None
            else entry
            for name, entry in self.entries.items()
        }
        return SubsetTable(self.source, entries)

    def check_agrees(self, other: SubsetTable, place: str) -> None:
        """Check that two tables have the same place for each image that both name.

        ``place`` is the folder whose table this is, as in the settings.

        Raises:
            UserError: one of them does not.
        """
        moved = [
            f"{name} is in {entry.place} there, in {there.place} now"
            for name, entry in self.entries.items()
            if (there := other.entries.get(name)) is not None and there.place != entry.place
        ]
        if moved:
            raise UserError(
                f"{place}: {self.source.name} has other subsets than {other.source}:"
                f" {len(moved)} images differ ({'; '.join(moved[:2])}); give another output_dir"
            )

    def extended_by(self, other: SubsetTable) -> SubsetTable:
        """Return this table with the images that only the other one names."""
        return SubsetTable(self.source, {**other.entries, **self.entries})

    def apply(
        self,
        root: Path | None,
        records: Sequence[Record],
        sha256: Sequence[str],
        *,
        allow_changed: bool,
    ) -> PlacedImages:
        """Place the records of a data set.

        Unknown records have no subset. With ``allow_changed`` missing images are left out, and
        those of another content or label are used as they are. Painted images (no ``root``) have
        no content of their own to compare: it follows from the settings.

        Raises:
            UserError: images have changed or are missing.
        """
        found = [self.entries.get(record.name) for record in records]
        names = {record.name for record in records}
        missing = [name for name in self.entries if name not in names]
        changed = [
            record.name
            for record, digest, entry in zip(records, sha256, found, strict=True)
            if entry is not None
            and (
                (root is not None and entry.sha256 != digest)
                or entry.label not in (None, record.label)
            )
        ]
        notes = self._notes_on_changes(root, missing, changed, allow_changed=allow_changed)
        subsets = [None if entry is None else entry.subset for entry in found]
        new = [i for i, entry in enumerate(found) if entry is None]
        return PlacedImages(subsets, new, notes)

    def _notes_on_changes(
        self, root: Path | None, missing: list[str], changed: list[str], *, allow_changed: bool
    ) -> list[str]:
        if not missing and not changed:
            return []
        total = len(self.entries)
        if not allow_changed and len(missing) + len(changed) == total:
            raise UserError(
                f"data.root = {root}: is another data set: none of the {total} images of"
                f" {self.source} is there as it was; give that data, or another output_dir; only"
                " --allow-changed-data with data.new_images=assign uses this one"
            )
        parts = [
            f"{len(names)} {verb} ({listing(names)})"
            for names, verb in ((changed, "changed"), (missing, "missing"))
            if names
        ]
        text = f"of the {total} images of {self.source}, {' and '.join(parts)}"
        if not allow_changed:
            raise UserError(
                f"data.root = {root}: {text}; restore them, or pass --allow-changed-data"
                " (data.allow_changed=true), which leaves missing images out and uses changed ones"
                " as they are now"
            )
        return [
            f"data.allow_changed = true: {text}; missing ones are left out, changed ones used as"
            " they are now"
        ]


def _entry(path: Path, line: int, row: Mapping[str, str]) -> Entry:
    subset = row["partition"]
    if subset not in ("", *SUBSETS):
        raise UserError(
            f"{path}: line {line}: partition = {subset}: must be {', '.join(SUBSETS)}, or empty for"
            " an image that is not used"
        )
    return Entry(
        sha256=row["sha256"].strip().lower(),
        subset=cast(SubsetName, subset) if subset else None,
        label=_number(path, line, row, "label"),
        fold=_number(path, line, row, "fold"),
    )


def _number(path: Path, line: int, row: Mapping[str, str], column: str) -> int | None:
    text = row.get(column, "")
    if not text:
        return None
    if not text.isdecimal():
        raise UserError(f"{path}: line {line}: {column} = {text}: must be a whole number, or empty")
    return int(text)


def split_table(manifests: Sequence[pd.DataFrame], *, has_folds: bool) -> str:
    """Return a table of subsets in CSV, from the manifest of each fold, or the only one."""
    table = manifests[0][["name", "sha256", "partition", "label"]].copy()
    if has_folds:
        number_of = {
            name: str(fold)
            for fold, manifest in enumerate(manifests)
            for name in manifest["name"][manifest["partition"] == "validation"]
        }
        table["fold"] = [number_of.get(name, "") for name in table["name"]]
        table.loc[table["fold"] != "", "partition"] = "train"
    text: str = table.to_csv(index=False)
    return text


def listing(names: Iterable[str]) -> str:
    """Return the first names, and how many there are besides."""
    names = list(names)
    more = len(names) - _NUM_NAMES_SHOWN
    return ", ".join(names[:_NUM_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
