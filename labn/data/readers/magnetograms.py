"""Solar magnetograms labelled with the class of the next flare: yearly arrays, or a folder."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, label

from labn.data.readers.flare_table import FlareRow, read_flare_table
from labn.data.readers.image_files import IMAGE_SUFFIXES, decoding, read_image
from labn.data.readers.listing import (
    SUBSET_NAMES,
    Defect,
    FileIndex,
    existing_folder,
    is_document,
    name_in,
    visible,
)
from labn.data.readers.reader import SUBSETS, Problem, Record, Scan, SubsetName
from labn.errors import UserError, printable

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
SUFFIXES = (".png", *FITS_SUFFIXES, ".npz", *(s for s in IMAGE_SUFFIXES if s != ".png"))
_LIMB_PIXELS = 2
ANGLE_TOLERANCE = 2.0
"""Largest angle in degrees that is left as it is, as in HMI's own images, turned by about 180."""


class MagnetogramReader:
    """Reader of yearly arrays, or of a folder of images with its ``labels.csv``.

    The classes 0 to 3 are O, C, M, X (digits or letters in the tables); M and X are positive.
    Yearly arrays: 2010-2015 are for training, 2016 for validation, 2017 for test. In a folder,
    a column ``partition`` or ``split`` assigns the subset, else the year (of a time column, or of
    a date in the name), provided that every image is of 2010-2017. A time that cannot be read is
    a defect, since a random split would divide series of frames; so is one of another year, where
    the other images have all three subsets.

    Raises:
        UserError: the root has no such layout.
    """

    class_names = ("<M", ">=M")
    num_channels = 1

    def __init__(self, root: Path) -> None:
        self.root = existing_folder(root)
        self._years = sorted(
            {
                path.stem
                for path in self.root.iterdir()
                if path.suffix.lower() in (".npy", ".csv") and re.fullmatch(r"\d{4}", path.stem)
            }
        )
        if not self._years and not (self.root / "labels.csv").is_file():
            raise UserError(f"data.root = {root}: expected {LAYOUT}")

    @property
    def geometry(self) -> str:
        """The scale of the field, and how FITS images are turned."""
        rows = "rows as stored" if self._years else "FITS turned by their headers"
        return f"gauss B to 127.5 + B * 127.5 / 500, unknown to 0, {rows}"

    def scan(self) -> Scan:
        """List the images in the order of their tables, year by year, and every defect."""
        scan = Scan([])
        if not self._years:
            _scan_folder(self.root, scan)
            return scan
        for year in self._years:
            _scan_year(self.root / f"{year}.npy", scan)
        used = {*scan.others, *scan.unused, *(record.path for record in scan.records)}
        for entry in visible(self.root):
            if entry.path not in used and not is_document(entry.path):
                name, detail = name_in(self.root, entry.path), "only yearly arrays are read"
                problem = Problem(kind="unread_file", name=name, detail=detail, path=entry.path)
                scan.problems.append(problem)
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
    ``gauss``), are scaled to 8 bits; pixels off the disk (NaN) become 0. FITS images are turned
    and mirrored as their headers say (CROTA2, PCi_j or CDi_j, CDELTi), so that columns run to solar
    west and rows to the north, as in an image of CROTA2 = 0.

    Raises:
        OSError or ValueError: the file cannot be decoded.
    """
    suffix = path.suffix.lower()
    if suffix in FITS_SUFFIXES:
        return _gauss_to_8_bit(_read_fits(path))
    if suffix == ".npz":
        return _gauss_to_8_bit(_read_npz(path))
    return read_image(path, MagnetogramReader.num_channels)


def field_strength(pixels: UInt8[np.ndarray, "h w"]) -> Float64[np.ndarray, "h w"]:
    """Return the field in gauss, without its sign, of a decoded image; NaN off the disk.

    The image may have been resized. The field is right to 2 gauss, and at most 500. The value 0
    stands for what is unknown and for fields below -496 gauss: it is unknown where such pixels
    reach the image's border, and for two pixels around these, into which resizing mixes the limb.
    """
    labels, _ = label(pixels == 0)
    border = np.concatenate([labels[[0, -1]].ravel(), labels[:, [0, -1]].ravel()])
    outside = np.isin(labels, border[border > 0])
    unknown = binary_dilation(outside, iterations=_LIMB_PIXELS)
    # The middle of the fields that are rounded down to one value.
    field = (pixels.astype(np.float64) + 0.5 - 127.5) * (GAUSS_RANGE / 127.5)
    return np.where(unknown, math.nan, np.minimum(np.abs(field), GAUSS_RANGE))


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
                return _upright(np.asarray(unit.data, dtype=np.float64), unit.header, path)
    raise ValueError(f"{path.name}: has no two-dimensional image")


def _upright(
    field: NDArray[np.float64], header: Mapping[str, Any], path: Path
) -> NDArray[np.float64]:
    """Turn and mirror an image so that its pixel axes run along its world axes.

    Raises:
        ValueError: they differ by another angle than 0, 90, 180 or 270 degrees.
    """
    axes = _pixel_axes(header)
    lengths = np.linalg.norm(axes, axis=0)
    if not (np.isfinite(axes).all() and lengths.all()):
        raise ValueError(f"{path.name}: the header's CDELT, PC or CD is no orientation")
    directions = axes / lengths
    turned = np.rint(directions)
    if np.abs(directions - turned).max() > math.sin(math.radians(ANGLE_TOLERANCE)):
        angle = math.degrees(math.atan2(directions[1, 0], directions[0, 0]))
        raise ValueError(
            f"{path.name}: is turned by {angle:.1f} degrees (CROTA2, PC or CD of its header), which"
            " is no multiple of 90; rotate it north up"
        )
    if turned[0, 0] == 0:
        field, turned = field.T, turned[:, ::-1]
    upright: NDArray[np.float64] = field[:: int(turned[1, 1]), :: int(turned[0, 0])]
    return upright


def _pixel_axes(header: Mapping[str, Any]) -> NDArray[np.float64]:
    """Return the world directions (2, 2) of a step along columns and of one along rows."""
    if any(f"CD{i}_{j}" in header for i in (1, 2) for j in (1, 2)):
        given = [[header.get(f"CD{i}_{j}", 0.0) for j in (1, 2)] for i in (1, 2)]
        return np.array(given, np.float64)
    if any(f"PC{i}_{j}" in header for i in (1, 2) for j in (1, 2)):
        turn = [[header.get(f"PC{i}_{j}", float(i == j)) for j in (1, 2)] for i in (1, 2)]
    else:
        angle = math.radians(float(header.get("CROTA2", 0.0)))
        turn = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    steps = [math.copysign(1.0, float(header.get(f"CDELT{i}", 1.0))) for i in (1, 2)]
    axes: NDArray[np.float64] = np.diag(steps) @ np.array(turn, np.float64)
    return axes


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
        scan.unused.update(dict.fromkeys((array, table), defect.problem.detail))
        return
    seen: set[str] = set()
    scan.others[table] = "table"
    for index, row in enumerate(rows):
        name = printable(f"{array.stem}/{row.file}")
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
        raise Defect("unreadable_file", array.name, str(error), array) from None
    rows = _read_table(table)
    if len(rows) != num_images:
        detail = f"{len(rows)} rows (from line {rows[0].line}), but {num_images} images"
        raise Defect("bad_table", table.name, detail, table)
    return rows


def _read_table(table: Path) -> list[FlareRow]:
    try:
        return read_flare_table(table)
    except ValueError as error:
        raise Defect("bad_table", table.name, f"{table}: {error}", table) from None


def _scan_folder(root: Path, scan: Scan) -> None:
    """Add the images that a folder's ``labels.csv`` names."""
    table = root / "labels.csv"
    try:
        rows = _read_table(table)
    except Defect as defect:
        scan.problems.append(defect.problem)
        return
    scan.others[table] = "table"
    years, undated = _years(rows)
    known = [year in YEAR_SUBSETS for year in years.values()]
    by_year = {YEAR_SUBSETS.get(year) for year in years.values()}
    has_known_years = by_year.issuperset(SUBSETS) or (bool(known) and all(known))
    files = FileIndex(root, SUFFIXES, is_deep=True)
    for row in rows:
        where = f"line {row.line} of {table.name}"
        try:
            path = files.take(row.file, shown=printable(row.file), where=where)
            if row.line in undated:
                raise Defect(
                    "bad_table", printable(row.file), f"{where}: {undated[row.line]}", path
                )
            subset = _row_subset(row, where)
            if has_known_years and row.line in years:
                subset = YEAR_SUBSETS.get(years[row.line])
                if subset is None:
                    detail = f"{where} is of {years[row.line]}, the others of 2010 to 2017, which"
                    detail += " are assigned by year; take it out, or add a column split for all"
                    raise Defect("bad_table", printable(row.file), detail, path)
            scan.records.append(_record(row, name_in(root, path), where, path, None, subset))
        except Defect as defect:
            scan.problems.append(defect.problem)
    scan.problems.extend(_random_subsets(rows, years, has_known_years))
    scan.problems.extend(_mixed_rows(scan.records))
    files.add_rest(scan, table.name, lambda path: name_in(root, path))


def _years(rows: Sequence[FlareRow]) -> tuple[dict[int, int], dict[int, str]]:
    """Return the year of each row, and why others have none, by line; none if no row needs one.

    A row needs one if others have one and no column names its subset.
    """
    years, undated = {}, {}
    for row in rows:
        if row.subset is not None:
            continue
        try:
            year = row.year
            if year is None:
                undated[row.line] = "no date in its name or a column time, which other images have"
            else:
                years[row.line] = year
        except ValueError as error:
            undated[row.line] = f'the time "{printable(row.time)}" cannot be read; {error}'
    is_needed = bool(years) or any(row.time for row in rows if row.line in undated)
    return years, undated if is_needed else {}


def _random_subsets(
    rows: Sequence[FlareRow], years: Mapping[int, int], has_known_years: bool
) -> Iterable[Problem]:
    """Report images whose subsets are drawn, so that frames of one series may be divided."""
    if rows[0].subset is not None or has_known_years:
        return
    reason = "no image has a time: name it by a date or add a column time"
    if years:
        other = next(line for line, year in years.items() if year not in YEAR_SUBSETS)
        reason = f"line {other} is of {years[other]}, and only 2010 to 2017 are assigned by year"
    detail = f"{reason}. All subsets are drawn at random; a column split would assign them"
    yield Problem(kind="random_subsets", name="labels.csv", detail=detail)


def _mixed_rows(records: Sequence[Record]) -> Iterable[Problem]:
    """Report pictures beside FITS images, whose rows start at the other pole as a rule."""
    pictures = [one.name for one in records if one.path.suffix.lower() in IMAGE_SUFFIXES]
    num_fits = sum(one.path.suffix.lower() in FITS_SUFFIXES for one in records)
    if pictures and num_fits:
        detail = (
            f"{num_fits} FITS images are read south first, as stored, beside {len(pictures)}"
            f" pictures, such as {pictures[0]}, which are drawn north first as a rule"
        )
        yield Problem(kind="mixed_orientation", name="labels.csv", detail=detail)


def _row_subset(row: FlareRow, where: str) -> SubsetName | None:
    if row.subset is None:
        return None
    if row.subset.casefold() not in SUBSET_NAMES:
        detail = f'{where}: the subset "{row.subset}" must be train, validation or test'
        raise Defect("bad_table", row.file, detail)
    return SUBSET_NAMES[row.subset.casefold()]


def _record(
    row: FlareRow, name: str, where: str, path: Path, index: int | None, subset: SubsetName | None
) -> Record:
    if row.grade is None:
        detail = f'{where}: the class "{row.flare_class}" must be 0 to 3, or O, C, M, X'
        raise Defect("label_out_of_range", name, printable(detail), path if index is None else None)
    return Record(
        name=name,
        path=path,
        index=index,
        grade=row.grade,
        label=int(row.grade >= FIRST_POSITIVE_CLASS),
        subset=subset,
    )
