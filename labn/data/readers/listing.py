"""Listing of folders and tables, shared by all readers."""

from __future__ import annotations

import codecs
import csv
import io
import os
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import NamedTuple

from labn.data.readers.reader import Problem, ProblemKind, Scan, SubsetName
from labn.errors import UserError, printable

_SYSTEM_FILES = ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini")
_DOCUMENT_SUFFIXES = (
    *("", ".csv", ".tsv", ".txt", ".md", ".rst", ".json", ".jsonl", ".yaml", ".yml", ".xml"),
    *(".html", ".pdf", ".doc", ".docx", ".xls", ".xlsx", ".ods", ".log", ".py", ".ipynb", ".sh"),
    *(".md5", ".sha1", ".sha256", ".bib", ".toml", ".ini"),
)
"""Files beside images that nobody expects to be images."""

SUBSET_NAMES: dict[str, SubsetName] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


class Defect(Exception):
    """A defect, raised where it is found and collected by the scan."""

    def __init__(self, kind: ProblemKind, name: str, detail: str, path: Path | None = None) -> None:
        super().__init__(detail)
        self.problem = Problem(kind=kind, name=name, detail=detail, path=path)


class Row(NamedTuple):
    """One row of a table: its line in the file, and its cells without surrounding blanks."""

    line: int
    cells: list[str]

    def cell(self, column: int) -> str:
        """Return one cell; a row that is too short has empty ones."""
        return self.cells[column] if column < len(self.cells) else ""


def existing_folder(root: Path) -> Path:
    """Return a data set's folder as an absolute path, valid in any working directory.

    Raises:
        UserError: there is no such folder.
    """
    folder = root.expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"data.root = {root}: no such folder (looked for {folder})")
    return folder


def read_rows(path: Path) -> list[Row]:
    """Return the non-empty rows of a table, as UTF-8 or UTF-16 text.

    Cells are separated by what the first line has most of: commas, semicolons or tabs. Bytes that
    are not UTF-8 become what Python makes of them in file names, so that the two are alike.

    Raises:
        ValueError: the file is absent, is not text, is empty, or has a quote that never ends.
    """
    try:
        content = path.read_bytes()
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            text = content.decode("utf-16")
        else:
            # utf-8-sig also takes files without the byte-order mark that Excel writes.
            text = content.decode("utf-8-sig", errors="surrogateescape")
        if "\0" in text:
            raise ValueError("has bytes of value 0")
        first = next(iter(text.strip().splitlines()), "")
        delimiter = max((",", ";", "\t"), key=first.count)
        # Strict: a quote that never ends would swallow all rows that follow.
        table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        rows = [Row(table.line_num, [cell.strip() for cell in cells]) for cells in table]
    except FileNotFoundError:
        raise ValueError("the table does not exist") from None
    except (OSError, ValueError, csv.Error) as error:
        reason = printable(error)
        raise ValueError(f"cannot be read as comma-separated UTF-8 text ({reason})") from None
    rows = [row for row in rows if any(row.cells)]
    if not rows:
        raise ValueError("the table is empty")
    return rows


def find_column(header: Row, names: Sequence[str]) -> int | None:
    """Return the column of the first of these names in a header, ignoring case, or None."""
    cells = [cell.casefold() for cell in header.cells]
    return next((cells.index(name.casefold()) for name in names if name.casefold() in cells), None)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file below a folder, or what is in its place, with its defect if it cannot be opened."""

    path: Path
    kind: ProblemKind | None = None
    defect: str = ""

    def has_suffix(self, suffixes: Sequence[str]) -> bool:
        """Return whether its extension is one of these, ignoring case."""
        return self.path.suffix.lower() in suffixes


def walk(root: Path) -> list[Entry]:
    """Return all that lies below a folder, also in linked folders, by name.

    Folders are not listed, but those that cannot be entered and links that lead back are.
    """
    found = []
    pending: list[tuple[Path, tuple[str, ...]]] = [(root, (os.path.realpath(root),))]
    while pending:
        folder, reals = pending.pop()
        try:
            with os.scandir(folder) as entries:
                listed = list(entries)
        except OSError as error:
            defect = f"the folder cannot be listed ({error.strerror})"
            found.append(Entry(path=folder, kind="unreadable_file", defect=defect))
            continue
        for entry in listed:
            path = folder / entry.name
            if not entry.is_symlink() and entry.is_dir(follow_symlinks=False):
                pending.append((path, (*reals, f"{reals[-1]}{os.sep}{entry.name}")))
            elif entry.is_symlink() and path.is_dir():
                real = os.path.realpath(path)
                if any(PurePath(above).is_relative_to(real) for above in reals):
                    defect = f"links back to {printable(real)}, a folder that holds it"
                    found.append(Entry(path=path, kind="unread_file", defect=defect))
                else:
                    pending.append((path, (*reals, real)))
            else:
                found.append(_entry(path, entry))
    return sorted(found, key=lambda entry: entry.path)


def _entry(path: Path, entry: os.DirEntry[str]) -> Entry:
    is_link = entry.is_symlink()
    if path.is_file() if is_link else entry.is_file(follow_symlinks=False):
        return Entry(path=path)
    if is_link and not path.exists():
        defect = f"links to {printable(path.readlink())}, which does not exist"
        return Entry(path=path, kind="missing_file", defect=defect)
    return Entry(path=path, kind="unreadable_file", defect="is not a regular file")


def list_folders(folder: Path) -> list[Path]:
    """Return the visible folders of a folder, by name."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and is_visible(p, folder))


def visible(root: Path) -> list[Entry]:
    """Return the visible entries below a folder, at any depth, by name."""
    return [entry for entry in walk(root) if is_visible(entry.path, root)]


def is_visible(path: Path, folder: Path) -> bool:
    """Return whether a path below a folder is none of the files that systems hide."""
    # Also excludes the "._name.jpg" files that macOS adds.
    parts = path.relative_to(folder).parts
    return not any(part.startswith(".") or part.casefold() in _SYSTEM_FILES for part in parts)


def name_in(root: Path, path: Path) -> str:
    """Return a file's name in messages and tables: its path below a folder, as valid text."""
    return printable(path.relative_to(root).as_posix())


def is_document(path: Path) -> bool:
    """Return whether nobody expects an image in a file of this extension."""
    return path.suffix.lower() in _DOCUMENT_SUFFIXES


def unread_problem(name: str, entry: Entry) -> Problem | None:
    """Return the problem of what lies beside images and is none, if it is one.

    That is a folder that cannot be listed, a link that leads back, or a file of a format in which
    images may be, but which is not read.
    """
    is_folder = entry.path.is_dir()
    if is_document(entry.path) and not is_folder:
        return None
    kind = (entry.kind if is_folder else None) or "unread_file"
    detail = entry.defect or f"{printable(entry.path.suffix)} is not a format that is read"
    return Problem(kind=kind, name=name, detail=detail, path=entry.path)


class FileIndex:
    """The image files under a folder, taken one by one by their names in a table.

    A name is a path relative to the folder, with or without its extension. It must match exactly,
    except for the case of the extension and for the form in which accents are coded. If a name
    matches files of several formats, the first of ``suffixes`` is taken, and the others count as
    the same image. ``is_deep`` includes the files in folders of the folder.
    """

    def __init__(self, folder: Path, suffixes: Sequence[str], *, is_deep: bool = False) -> None:
        self._folder = folder
        self._suffixes = suffixes
        self._taken: dict[str, Path] = {}
        self._entries = [
            entry for entry in visible(folder) if is_deep or entry.path.parent == folder
        ]
        self._files: dict[str, list[Entry]] = {}
        for entry in self._entries:
            if entry.has_suffix(suffixes) and not entry.path.is_dir():
                stem = entry.path.relative_to(folder).with_suffix("").as_posix()
                self._files.setdefault(stem, []).append(entry)
        for files in self._files.values():
            files.sort(key=lambda entry: suffixes.index(entry.path.suffix.lower()))
        self._stems = {unicodedata.normalize("NFC", stem): stem for stem in self._files}

    def take(self, name: str, *, shown: str, where: str) -> Path:
        """Return the file of a row's image.

        ``shown`` is the image's name in messages, ``where`` the row's place in its table.

        Raises:
            Defect: the row names no image, a missing one, or one named before.
        """
        if not name:
            raise Defect("bad_table", shown, f"{where} names no image")
        pure = PurePath(name)
        suffix = pure.suffix.lower()
        stem = (pure.with_suffix("") if suffix in self._suffixes else pure).as_posix()
        if stem not in self._files:
            stem = self._stems.get(unicodedata.normalize("NFC", stem), stem)
        if stem in self._taken:
            raise Defect("duplicate_row", shown, f"{where} names an image that was named before")
        self._taken[stem] = self._folder / name
        for entry in self._files.get(stem, []):
            if suffix not in self._suffixes or entry.has_suffix((suffix,)):
                self._taken[stem] = entry.path
                if entry.defect:
                    kind = entry.kind or "missing_file"
                    raise Defect(kind, shown, f"{where}: {entry.defect}", entry.path)
                return entry.path
        if (self._folder / name).is_file():
            detail = (
                f"{where} names it, but {suffix or 'no extension'} is not a format that is read"
            )
            raise Defect("unreadable_file", shown, detail, self._folder / name)
        raise Defect("missing_file", shown, f"{where} names it, but it is not in {self._folder}")

    def add_rest(self, scan: Scan, table: str, name_of: Callable[[Path], str]) -> None:
        """Add why each file that no row has named so far is left out, one problem per image."""
        for entry in self._entries:
            path = entry.path
            if not entry.has_suffix(self._suffixes) or path.is_dir():
                if problem := unread_problem(name_of(path), entry):
                    scan.problems.append(problem)
                continue
            stem = path.relative_to(self._folder).with_suffix("").as_posix()
            first = self._taken.get(stem, self._files[stem][0].path)
            if path != first:
                scan.unused[path] = "another format of an image that is read, or reported"
            elif stem not in self._taken:
                detail = entry.defect or f"no line of {table} names it"
                name = name_of(path)
                scan.problems.append(
                    Problem(kind="unlisted_file", name=name, detail=detail, path=path)
                )
