"""Solar magnetograms labelled with the class of the next flare: yearly arrays, or a folder."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labn.data.readers.flare_table import FlareRow, read_flare_table
from labn.data.readers.image_files import decoding, read_image
from labn.data.readers.listing import SUBSET_NAMES, Defect, FileIndex, existing_folder
from labn.data.readers.reader import Problem, Record, Scan, SubsetName
from labn.errors import UserError

LAYOUT = (
    "magnetograms ({year}.npy of uint8 (n, h, w) with {year}.csv; or PNG, FITS or npz files with"
    " a labels.csv)"
)
GAUSS_RANGE = 500.0
"""Field strengths of -500 to 500 gauss fill the 8 bits."""
FIRST_POSITIVE_CLASS = 2
YEAR_SUBSETS: dict[int, SubsetName] = {
    **dict.fromkeys(range(2010, 2016), "train"),
    2016: "validation",
    2017: "test",
}

FITS_SUFFIXES = (".fits", ".fit", ".fts")
SUFFIXES = (".png", *FITS_SUFFIXES, ".npz")


class MagnetogramReader:
    """Reader of yearly arrays, or of a folder of images with its ``labels.csv``.

    The classes 0 to 3 are O, C, M, X (digits or letters in the tables); M and X are positive.
    Yearly arrays: 2010-2015 are for training, 2016 for validation, 2017 for test. In a folder,
    a column ``partition`` or ``split`` assigns the subset, else the year (of a time column, or of
    a date YYYYMMDD in the name), provided that every image is of 2010-2017.

    Raises:
        UserError: the root has no such layout.
    """

    class_names = ("<M", ">=M")
    num_channels = 1
    geometry = "gauss B to 127.5 + B * 127.5 / 500, unknown to 0, rows as stored"

    def __init__(self, root: Path) -> None:
        self.root = existing_folder(root)
        self._years = sorted(
            {
                path.stem
                for path in self.root.iterdir()
                if path.suffix in (".npy", ".csv") and re.fullmatch(r"\d{4}", path.stem)
            }
        )
        if not self._years and not (self.root / "labels.csv").is_file():
            raise UserError(f"data.root = {root}: expected {LAYOUT}")

    def scan(self) -> Scan:
        """List the images in the order of their tables, year by year, and every defect."""
        scan = Scan([])
        for year in self._years:
            _scan_year(self.root / f"{year}.npy", scan)
        if not self._years:
            _scan_folder(self.root, scan)
        return scan

    def read(self, record: Record) -> NDArray[np.uint8]:
        """Decode one image to (height, width, 1); see ``read_magnetogram``."""
        if record.path.suffix.lower() == ".npy":
            return np.array(_open_year(record.path)[record.index])[..., None]
        return read_magnetogram(record.path)

    def lesion_mask(self, record: Record) -> None:
        """Return None: the position of the next flare is not annotated."""


def read_magnetogram(path: Path) -> NDArray[np.uint8]:
    """Decode a file of one image to (height, width, 1).

    Field strengths in gauss, of FITS (first two-dimensional image) and npz files (array
    ``gauss``), are scaled to 8 bits; pixels off the disk (NaN) become 0.

    Raises:
        OSError or ValueError: the file cannot be decoded.
    """
    suffix = path.suffix.lower()
    if suffix in FITS_SUFFIXES:
        return _gauss_to_8_bit(_read_fits(path))
    if suffix == ".npz":
        return _gauss_to_8_bit(_read_npz(path))
    return read_image(path, MagnetogramReader.num_channels)


def _open_year(path: Path) -> NDArray[np.uint8]:
    with decoding(path):
        array: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim != 3 or array.dtype != np.uint8:
        raise ValueError(f"must be uint8 (n, h, w), but is {array.dtype} {array.shape}")
    return array


def _read_fits(path: Path) -> NDArray[np.floating]:
    # Imported where it is used: other data sets do without it.
    from astropy.io import fits

    with decoding(path), fits.open(path, memmap=False) as units:
        for unit in units:
            if unit.is_image and unit.header["NAXIS"] == 2:
                return np.asarray(unit.data, dtype=np.float64)
    raise ValueError(f"{path.name}: has no two-dimensional image")


def _read_npz(path: Path) -> NDArray[np.generic]:
    with decoding(path), np.load(path, allow_pickle=False) as arrays:
        field: NDArray[np.generic] = arrays["gauss"]
    if field.ndim != 2:
        raise ValueError(f"{path.name}: gauss must have two dimensions, but is {field.shape}")
    return field


def _gauss_to_8_bit(field: NDArray[np.generic]) -> NDArray[np.uint8]:
    scaled = 127.5 + field.astype(np.float64) * (127.5 / GAUSS_RANGE)
    clipped = np.nan_to_num(np.clip(scaled, 0, 255), nan=0.0)
    return clipped.astype(np.uint8)[..., None]


def _scan_year(array: Path, scan: Scan) -> None:
    """Add one year's images; an array and a table that do not match add no record."""
    table = array.with_suffix(".csv")
    try:
        subset = _year_subset(array, table)
        rows = _year_rows(array, table)
    except Defect as defect:
        scan.problems.append(defect.problem)
        return
    seen: set[str] = set()
    for index, row in enumerate(rows):
        name = f"{array.stem}/{row.file}"
        where = f"line {row.line} of {table.name}"
        try:
            if not row.file:
                raise Defect("bad_table", name, f"{where} names no image")
            if row.file in seen:
                raise Defect("duplicate_row", name, f"{where} names an image that was named before")
            seen.add(row.file)
            scan.records.append(_record(row, name, where, array, index, subset))
        except Defect as defect:
            scan.problems.append(defect.problem)


def _year_subset(array: Path, table: Path) -> SubsetName:
    subset = YEAR_SUBSETS.get(int(array.stem))
    if subset is None:
        detail = "must be a year from 2010 to 2017; move its files elsewhere"
        raise Defect("bad_table", array.stem, detail)
    if not array.is_file():
        raise Defect("missing_file", array.name, f"{table.name} exists without it")
    return subset


def _year_rows(array: Path, table: Path) -> list[FlareRow]:
    try:
        num_images = len(_open_year(array))
    except (OSError, ValueError) as error:
        raise Defect("unreadable_file", array.name, str(error)) from None
    rows = _read_table(table)
    if len(rows) != num_images:
        detail = f"{len(rows)} rows (from line {rows[0].line}), but {num_images} images"
        raise Defect("bad_table", table.name, detail)
    return rows


def _read_table(table: Path) -> list[FlareRow]:
    try:
        return read_flare_table(table)
    except ValueError as error:
        raise Defect("bad_table", table.name, f"{table}: {error}") from None


def _scan_folder(root: Path, scan: Scan) -> None:
    """Add the images that a folder's ``labels.csv`` names."""
    table = root / "labels.csv"
    try:
        rows = _read_table(table)
    except Defect as defect:
        scan.problems.append(defect.problem)
        return
    files = FileIndex(root, SUFFIXES, "**/*")
    has_known_years = all(row.year in YEAR_SUBSETS for row in rows)
    for row in rows:
        where = f"line {row.line} of {table.name}"
        try:
            path = files.take(row.file, shown=row.file, where=where)
            name = path.relative_to(root).as_posix()
            subset = _row_subset(row, where, has_known_years)
            scan.records.append(_record(row, name, where, path, None, subset))
        except Defect as defect:
            scan.problems.append(defect.problem)
    for path in files.unnamed():
        name = path.relative_to(root).as_posix()
        detail = f"no line of {table.name} names it"
        scan.problems.append(Problem(kind="unlisted_file", name=name, detail=detail))


def _row_subset(row: FlareRow, where: str, has_known_years: bool) -> SubsetName | None:
    if row.subset is not None:
        if row.subset.casefold() not in SUBSET_NAMES:
            detail = f'{where}: the subset "{row.subset}" must be train, validation or test'
            raise Defect("bad_table", row.file, detail)
        return SUBSET_NAMES[row.subset.casefold()]
    return YEAR_SUBSETS[row.year] if has_known_years and row.year is not None else None


def _record(
    row: FlareRow, name: str, where: str, path: Path, index: int | None, subset: SubsetName | None
) -> Record:
    if row.grade is None:
        detail = f'{where}: the class "{row.flare_class}" must be 0 to 3, or O, C, M, X'
        raise Defect("label_out_of_range", name, detail)
    return Record(
        name=name,
        path=path,
        index=index,
        grade=row.grade,
        label=int(row.grade >= FIRST_POSITIVE_CLASS),
        subset=subset,
    )
