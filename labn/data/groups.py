"""Groups of images that belong together, such as one patient's, which no split separates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from PIL import ExifTags, Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from labn.data.readers.idrid import IdridReader
from labn.data.readers.listing import find_column, read_rows
from labn.data.readers.reader import Reader, Record
from labn.errors import UserError

TIMES_FILE = "provenance.csv"
"""A table beside the images with the capture times that their files have lost."""
_TIME_COLUMN = "exif_datetime"
_NAME_COLUMNS = ("image", "name", "file", "image name")
_TIME_FORMATS = ("%Y:%m:%d %H:%M:%S", "%Y-%m-%d %H:%M:%S")

Groups = tuple[str, ...]
"""The name of each image's group, in the order of the records."""


def find_groups(
    reader: Reader, records: Sequence[Record], group_by: str | None, gap_s: float
) -> Groups | None:
    """Return the group of each image, or None where images are not grouped.

    ``time`` groups images in a series without a gap of over ``gap_s`` seconds between captures, by
    EXIF or by ``provenance.csv`` at the data's root; ``folder`` those in one folder;
    ``FILE:COLUMN`` those with one value in a table. An image without a time or a value is a group
    of its own. ``auto`` is ``time`` for IDRiD if times are known, else no groups.

    Raises:
        UserError: there is no such table or column, or no image has a time or a value.
    """
    if group_by is None or (group_by == "auto" and not isinstance(reader, IdridReader)):
        return None
    if group_by == "folder":
        return tuple(str(record.path.parent) for record in records)
    if group_by in ("auto", "time"):
        times = capture_times(reader, records)
        if group_by == "auto" and not any(times):
            return None
        values = _series(times, gap_s)
    else:
        file, _, column = group_by.rpartition(":")
        values = _column(_beside(reader.root, file), column, records, f"data.group_by = {group_by}")
    if not any(values):
        raise UserError(
            f"data.group_by = {group_by}: no image has one; set data.group_by=null, or add"
            f" {TIMES_FILE} with the columns {_NAME_COLUMNS[0]}, {_TIME_COLUMN} at the data's root"
        )
    return tuple(
        record.name if value is None else f"{group_by} {value}"
        for record, value in zip(records, values, strict=True)
    )


def capture_times(reader: Reader, records: Sequence[Record]) -> list[datetime | None]:
    """Return when each image was taken, by the table at the root if there is one, else by EXIF."""
    table = _beside(reader.root, TIMES_FILE)
    if table.is_file():
        texts = _column(table, _TIME_COLUMN, records, str(table))
    else:
        texts = [_exif_time(record.path) for record in records]
    return [None if text is None else _parse(text) for text in texts]


def group_tables(reader: Reader, group_by: str | None) -> list[Path]:
    """Return the table that ``find_groups`` reads groups from, if there is one."""
    if group_by is None or group_by == "folder":
        return []
    file = TIMES_FILE if group_by in ("auto", "time") else group_by.rpartition(":")[0]
    return [_beside(reader.root, file)]


def merge_groups(*groupings: Sequence[str]) -> Int64[np.ndarray, " n"]:
    """Return the number of each image's group, where images of one group in any grouping are one.

    All have one entry per image.
    """
    num_images, edges, start = len(groupings[0]), [], len(groupings[0])
    for names in groupings:
        distinct, numbers = np.unique(np.array(names), return_inverse=True)
        edges.append(numbers + start)
        start += len(distinct)
    rows, columns = np.tile(np.arange(num_images), len(groupings)), np.concatenate(edges)
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(start, start))
    numbers_n: Int64[np.ndarray, " n"] = connected_components(graph)[1][:num_images].astype(
        np.int64
    )
    return numbers_n


def _beside(root: Path | None, file: str) -> Path:
    """Return the place of a table: below the data's root or its parent, else as it is given."""
    places = [] if root is None else [root / file, root.parent / file]
    return next((place for place in places if place.is_file()), Path(file).expanduser())


def _column(table: Path, name: str, records: Sequence[Record], source: str) -> list[str | None]:
    """Return each image's value in a column; a bare name in the table is a training image's."""
    try:
        header, *rows = read_rows(table)
    except ValueError as error:
        raise UserError(f"{source}: {table}: {error}") from None
    images, column = find_column(header, _NAME_COLUMNS), find_column(header, [name])
    if images is None or column is None:
        raise UserError(
            f"{source}: {table} must have the columns {_NAME_COLUMNS[0]} and {name} in its first"
            f" line, but has {', '.join(header.cells)}"
        )
    values: dict[str, str] = {}
    for row in rows:
        image, value = row.cell(images), row.cell(column)
        if value and values.setdefault(image, value) != value:
            raise UserError(
                f"{source}: {table}: {image} has {values[image]} in one row and {value} in another;"
                " keep one"
            )
    return [
        next((values[key] for key in _keys_of(record) if values.get(key)), None)
        for record in records
    ]


def _keys_of(record: Record) -> Iterator[str]:
    yield record.name
    if record.subset in (None, "train"):  # other subsets may use the same names again
        yield from (record.path.name, record.path.stem)


def _exif_time(path: Path) -> str | None:
    try:
        with Image.open(path) as image:
            exif = image.getexif()
            taken = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.DateTimeOriginal)
            return taken or exif.get(ExifTags.Base.DateTime)
    except (OSError, ValueError, SyntaxError):
        return None  # decoding will report it


def _parse(text: str) -> datetime | None:
    for form in _TIME_FORMATS:
        try:
            return datetime.strptime(text.strip("\0 "), form)
        except ValueError:
            continue
    return None


def _series(times: Sequence[datetime | None], gap_s: float) -> list[str | None]:
    """Return the first time of each image's series; times are in the camera's own clock."""
    starts: dict[datetime, datetime] = {}
    start = before = None
    for time in sorted(time for time in times if time is not None):
        if start is None or before is None or (time - before).total_seconds() > gap_s:
            start = time
        starts[time], before = start, time
    return [None if time is None else starts[time].isoformat(sep=" ") for time in times]
