"""Tables of the flare classes of magnetograms."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path, PurePath

from labn.data.readers.image_files import IMAGE_SUFFIXES
from labn.data.readers.listing import Row, find_column, read_rows

FILE_COLUMNS = ("file", "filename", "image", "name")
CLASS_COLUMNS = ("flag_0123", "class", "label", "flare_class")
SUBSET_COLUMNS = ("partition", "split")
TIME_COLUMNS = (
    *("time_utc", "time", "datetime", "timestamp", "date", "t_rec", "t_obs", "date_obs"),
    *("date-obs", "date__obs", "obs_time", "obstime", "observation_time", "year"),
)
_MISSING = ("nan", "na", "n/a", "none", "null")

_FLARE_CLASS = re.compile(r"(?:([0-3])(?:\.0+)?|([ABCMX])(?:\d+(?:\.\d*)?)?|(O))", re.IGNORECASE)
_GRADES = {"A": 0, "B": 0, "C": 1, "M": 2, "X": 3}

_YEAR = r"(?P<year>(?:19|20)\d\d)"
_MONTH, _DAY = r"(?P<month>0?[1-9]|1[0-2])", r"(?P<day>0?[1-9]|[12]\d|3[01])"
_MONTH_NAMES = "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec"
_ZONE = r"(?:[ _]?(?:[AP]M|Z|TAI|UTC?|[+-]\d\d(?::?\d\d)?))?"
_CLOCK = rf"(?:[T _]+\d{{1,2}}(?::?\d\d){{0,2}}(?:\.\d*)?{_ZONE})?"
_TIMES = [
    re.compile(form + _CLOCK, re.IGNORECASE)
    for form in (
        _YEAR,
        rf"{_YEAR}(?P<mark>[-./_]){_MONTH}(?P=mark){_DAY}",
        rf"{_YEAR}[-./]{_MONTH}",
        rf"{_YEAR}(?P<month>\d\d)(?P<day>\d\d)(?:\d{{4}}(?:\d\d)?)?",
        rf"\d{{1,2}}[- ](?:{_MONTH_NAMES})[a-z]*[- ]{_YEAR}",
        # The day may come first or second; the year does not depend on it.
        rf"(?P<first>\d{{1,2}})(?P<mark>[-./])(?P<second>\d{{1,2}})(?P=mark){_YEAR}",
    )
]
"""Times as written by hand, by spreadsheets, by ISO 8601 and by JSOC (2010.02.10_00:00:00_TAI)."""
_SECONDS = re.compile(r"(\d{10})(?:\.\d*|\d{3}|\d{6}|\d{9})?")
"""Seconds since 1970, or milli-, micro- or nanoseconds."""
_DATES_IN_NAMES = [
    re.compile(r"(?<!\d)" + form)
    for form in (
        rf"{_YEAR}(?P<month>0[1-9]|1[0-2])(?P<day>0[1-9]|[12]\d|3[01])",
        rf"{_YEAR}(?P<mark>[-._/]){_MONTH}(?P=mark){_DAY}(?!\d)",
        rf"(?P<first>\d\d)(?P<mark>[-._])(?P<second>\d\d)(?P=mark){_YEAR}(?!\d)",
    )
]


@dataclass(frozen=True, kw_only=True)
class FlareRow:
    """One row of a table, with the class, the subset and the time as written.

    ``subset`` and ``time`` are None where the table has no such column.
    """

    line: int
    file: str
    flare_class: str
    subset: str | None
    time: str | None

    @property
    def grade(self) -> int | None:
        """The class 0 to 3 (O, A or B; C; M; X, also as in M1.5), or None if it is not one."""
        found = _FLARE_CLASS.fullmatch(self.flare_class)
        if found is None:
            return None
        return int(found[1]) if found[1] else _GRADES.get((found[2] or "").upper(), 0)

    @property
    def year(self) -> int | None:
        """The year of the time or, where there is none, of a date in the name; None without either.

        Raises:
            ValueError: the time cannot be read.
        """
        return year_of_time(self.time) if self.time else year_in_name(self.file)


def year_of_time(time: str) -> int:
    """Return the year of a time: a date, with or without a clock time, or seconds since 1970.

    Raises:
        ValueError: it cannot be read.
    """
    for form in _TIMES:
        if (found := form.fullmatch(time)) and _is_date(found.groupdict()):
            return int(found["year"])
    if found := _SECONDS.fullmatch(time):
        return datetime.fromtimestamp(int(found[1]), UTC).year
    raise ValueError("write it as 2012-03-06T14:24, 2012.03.06_14:24_TAI, 6/3/2012 or as Unix time")


def year_in_name(name: str) -> int | None:
    """Return the year of the first date in a file's name, such as 20120306 or 2012-03-06."""
    for form in _DATES_IN_NAMES:
        for found in form.finditer(name):
            if _is_date(found.groupdict()):
                return int(found["year"])
    return None


def _is_date(parts: dict[str, str | None]) -> bool:
    year, month, day = (int(parts.get(key) or 1) for key in ("year", "month", "day"))
    if parts.get("first"):
        first, second = int(parts["first"] or 0), int(parts["second"] or 0)
        day, month = (first, second) if second <= 12 else (second, first)
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True


def is_flare_table(path: Path) -> bool:
    """Return whether a file is a table of flare classes."""
    try:
        return path.is_file() and bool(read_flare_table(path))
    except ValueError:
        return False


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
    if _is_header(rows[0], file_column, class_column):
        rows = rows[1:]
    parsed = [
        FlareRow(
            line=row.line,
            file=row.cell(file_column),
            flare_class=row.cell(class_column),
            subset=None if subset_column is None else row.cell(subset_column),
            time=None if time_column is None else row.cell(time_column),
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


def _is_header(row: Row, file_column: int, class_column: int) -> bool:
    """Return whether the first row names columns; else it is an image's, even if defective."""
    if any(find_column(row, names) is not None for names in (FILE_COLUMNS, CLASS_COLUMNS)):
        return True
    text = row.cell(class_column)
    is_word = any(map(str.isalpha, text)) and not any(map(str.isdigit, text))
    is_value = FlareRow(line=0, file="", flare_class=text, subset=None, time=None).grade is not None
    is_image = PurePath(row.cell(file_column)).suffix.lower() in IMAGE_SUFFIXES
    return is_word and not (is_value or is_image or text.casefold() in _MISSING)
