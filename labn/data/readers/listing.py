"""Listing of folders and tables, shared by all readers."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from labn.data.readers.reader import Problem, ProblemKind, SubsetName
from labn.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")

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

    def __init__(self, kind: ProblemKind, name: str, detail: str) -> None:
        super().__init__(detail)
        self.problem = Problem(kind=kind, name=name, detail=detail)


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
    """Return the non-empty rows of a comma-separated UTF-8 file.

    Raises:
        ValueError: the file is absent, is not text, or is empty.
    """
    try:
        # utf-8-sig also takes files without the byte-order mark that Excel writes.
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.reader(file)
            rows = [Row(table.line_num, [cell.strip() for cell in cells]) for cells in table]
    except FileNotFoundError:
        raise ValueError("the table does not exist") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"cannot be read as comma-separated UTF-8 text ({error})") from None
    rows = [row for row in rows if any(row.cells)]
    if not rows:
        raise ValueError("the table is empty")
    return rows


def find_column(header: Row, names: Sequence[str]) -> int | None:
    """Return the column of the first of these names in a header, ignoring case, or None."""
    cells = [cell.casefold() for cell in header.cells]
    return next((cells.index(name.casefold()) for name in names if name.casefold() in cells), None)


def list_folders(folder: Path) -> list[Path]:
    """Return the visible folders of a folder, by name."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and _is_visible(p, folder))


def list_files(folder: Path, pattern: str = "*") -> list[Path]:
    """Return the visible files of a folder, by name."""
    return sorted(p for p in folder.glob(pattern) if _is_visible(p, folder) and p.is_file())


def list_images(
    folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES, pattern: str = "*"
) -> list[Path]:
    """Return the visible files with one of these extensions, ignoring case, by name."""
    return [path for path in list_files(folder, pattern) if path.suffix.lower() in suffixes]


def _is_visible(path: Path, folder: Path) -> bool:
    # Also excludes the "._name.jpg" files that macOS adds.
    parts = path.relative_to(folder).parts
    return "__MACOSX" not in parts and not any(part.startswith(".") for part in parts)


class FileIndex:
    """The image files under a folder, taken one by one by their names in a table.

    A name is a path relative to the folder, with or without its extension. It must match exactly,
    except for the case of the extension. If a name matches files of several formats, the first of
    ``suffixes`` is taken, and the others count as the same image.
    """

    def __init__(self, folder: Path, suffixes: Sequence[str], pattern: str = "*") -> None:
        self._folder = folder
        self._suffixes = suffixes
        self._named: set[str] = set()
        self._files: dict[str, list[Path]] = {}
        for path in list_images(folder, suffixes, pattern):
            stem = path.relative_to(folder).with_suffix("").as_posix()
            self._files.setdefault(stem, []).append(path)
        for files in self._files.values():
            files.sort(key=lambda path: suffixes.index(path.suffix.lower()))

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
        if stem in self._named:
            raise Defect("duplicate_row", shown, f"{where} names an image that was named before")
        self._named.add(stem)
        for path in self._files.get(stem, []):
            if suffix not in self._suffixes or suffix == path.suffix.lower():
                return path
        raise Defect("missing_file", shown, f"{where} names it, but it is not in {self._folder}")

    def unnamed(self) -> list[Path]:
        """Return one file for each image that no row has named so far."""
        return [files[0] for stem, files in self._files.items() if stem not in self._named]
