"""Tables of the flare classes of magnetograms."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from labn.data.readers.listing import Row, find_column, read_rows

FILE_COLUMNS = ("file", "filename", "image", "name")
CLASS_COLUMNS = ("flag_0123", "class", "label", "flare_class")
SUBSET_COLUMNS = ("partition", "split")
TIME_COLUMNS = ("time_utc", "time", "datetime", "timestamp", "date", "t_rec")
FLARE_CLASSES = {"0": 0, "O": 0, "1": 1, "C": 1, "2": 2, "M": 2, "3": 3, "X": 3}

_DATE_IN_NAME = re.compile(r"(?<!\d)((?:19|20)\d{2})(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])")


@dataclass(frozen=True, kw_only=True)
class FlareRow:
    """One row of a table, with the class and the subset as written.

    ``subset`` is None where the table has no such column; ``year`` is None where neither a time
    column nor the image's name contains a date.
    """

    line: int
    file: str
    flare_class: str
    subset: str | None
    year: int | None

    @property
    def grade(self) -> int | None:
        """The class 0 to 3 (O, C, M, X), or None if it is not one of these."""
        return FLARE_CLASSES.get(self.flare_class.upper())


def read_flare_table(path: Path) -> list[FlareRow]:
    """Return the rows of a table with or without a header.

    Columns are found by the header's ``FILE_COLUMNS`` and ``CLASS_COLUMNS``; without such names,
    the first is the image and the second the class.

    Raises:
        ValueError: the table is absent, is not text, or no row of it has a flare class.
    """
    rows = read_rows(path)
    file_column, class_column = _main_columns(rows[0])
    subset_column = find_column(rows[0], SUBSET_COLUMNS)
    time_column = find_column(rows[0], TIME_COLUMNS)
    if rows[0].cell(class_column).upper() not in FLARE_CLASSES:
        rows = rows[1:]
    parsed = [
        FlareRow(
            line=row.line,
            file=row.cell(file_column),
            flare_class=row.cell(class_column),
            subset=None if subset_column is None else row.cell(subset_column),
            year=_year(row.cell(file_column), "" if time_column is None else row.cell(time_column)),
        )
        for row in rows
    ]
    if all(row.grade is None for row in parsed):
        raise ValueError(
            f"no row has a flare class (0 to 3, or O, C, M, X) in column {class_column + 1}; name"
            f" the right column {CLASS_COLUMNS[0]}"
        )
    return parsed


def _main_columns(header: Row) -> tuple[int, int]:
    named_file = find_column(header, FILE_COLUMNS)
    named_class = find_column(header, CLASS_COLUMNS)
    file_column = named_file if named_file is not None else int(named_class == 0)
    class_column = named_class if named_class is not None else int(file_column != 1)
    return file_column, class_column


def _year(name: str, time: str) -> int | None:
    found = re.match(r"\d{4}", time) or _DATE_IN_NAME.search(name)
    return int(found[0][:4]) if found else None
