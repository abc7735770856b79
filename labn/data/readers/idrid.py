"""IDRiD part B (disease grading), as unpacked from its owners' archive (Porwal et al. 2018)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from labn.data.readers.image_files import IMAGE_SUFFIXES, read_image, read_size
from labn.data.readers.listing import (
    Defect,
    FileIndex,
    existing_folder,
    find_column,
    name_in,
    read_rows,
)
from labn.data.readers.reader import Problem, Record, Scan, SubsetName
from labn.errors import UserError, printable

LAYOUT = (
    'IDRiD as its archive unpacks ("B. Disease Grading" with "1. Original Images/a. Training Set"'
    ' and "2. Groundtruths/a. IDRiD_Disease Grading_Training Labels.csv" in it)'
)
GRADE_COLUMNS = ("Image name", "Retinopathy grade")
NUM_GRADES = 5
CAMERA_SIZE = (4288, 2848)
"""(width, height) of an image from the camera; an image of another size counts as cropped."""
FUNDUS_BOX = (290, 0, 3701, 2848)
"""(left, top, right, bottom) of the crop, as in the authors' release."""

BOXES_FILE = "lesion_boxes.csv"
BOX_COLUMNS = ("image", "class", "x0", "y0", "x1", "y1")
MASKED_LESIONS = ("hard_exudates", "haemorrhage")
OTHER_STRUCTURES = ("optic_disc",)

Box = tuple[str, float, float, float, float]
"""Class, x0, y0, x1, y1, in [0, 1] of the cropped image."""


@dataclass(frozen=True)
class _SubsetFiles:
    subset: SubsetName
    images: str
    table: str


SUBSET_FILES = (
    _SubsetFiles("train", "a. Training Set", "a. IDRiD_Disease Grading_Training Labels.csv"),
    _SubsetFiles("test", "b. Testing Set", "b. IDRiD_Disease Grading_Testing Labels.csv"),
)


class IdridReader:
    """Reader of IDRiD's training subset and, if it exists, its test subset.

    ``root`` is "B. Disease Grading" or the folder that holds it. Grade 0 is negative; with
    ``by_grade`` each of the others is a class of its own, in place of one positive class. A file
    ``lesion_boxes.csv`` in either folder (columns image, class, x0, y0, x1, y1, coordinates in
    [0, 1] of the crop) has the boxes of training images.

    Raises:
        UserError: the root has no such layout.
    """

    num_channels = 3

    def __init__(self, root: Path, *, by_grade: bool = False) -> None:
        self.class_names: tuple[str, ...] = ("negative", "positive")
        if by_grade:
            self.class_names = tuple(f"grade {grade}" for grade in range(NUM_GRADES))
        self.root = existing_folder(root)
        self._grading = _find_grading(self.root)

    @property
    def geometry(self) -> str:
        """The crop, and a digest of the boxes, which change the masks that caches store."""
        digest = hashlib.sha256(repr(self._boxes[0]).encode()).hexdigest()[:16]
        return f"images of {CAMERA_SIZE} cropped to {FUNDUS_BOX}, boxes {digest}"

    def scan(self) -> Scan:
        """List the images of both subsets in the order of their tables, and every defect."""
        scan = Scan([])
        for files in SUBSET_FILES:
            self._scan_subset(files, scan)
        if self._boxes_file is not None:
            scan.others[self._boxes_file] = "table"
            scan.problems.extend(self._boxes[1])
            scan.problems.extend(self._unused_boxes(scan.records))
        return scan

    def read(self, record: Record) -> NDArray[np.uint8]:
        """Decode one image, and crop it to the fundus if it has the camera's size."""
        pixels = read_image(record.path, self.num_channels)
        left, top, right, bottom = fundus_box(pixels.shape[1], pixels.shape[0])
        return np.ascontiguousarray(pixels[top:bottom, left:right])

    def lesion_boxes(self, record: Record) -> list[Box]:
        """Return an image's boxes of every class in the file, including the optic disc."""
        # The test images are numbered from 001 too, but the boxes are of training images.
        return (
            self._boxes[0].get(_box_key(record.path.name), []) if record.subset == "train" else []
        )

    def lesion_mask(self, record: Record) -> NDArray[np.bool_] | None:
        """Return the union of the boxes of hard exudates and haemorrhages, at the crop's size.

        Every pixel that a box touches counts. None where an image has no such box: the boxes are
        incomplete, so that an image without boxes may have lesions.
        """
        boxes = [box for box in self.lesion_boxes(record) if box[0] in MASKED_LESIONS]
        if not boxes:
            return None
        left, top, right, bottom = fundus_box(*read_size(record.path))
        width, height = right - left, bottom - top
        mask = np.zeros((height, width), dtype=np.bool_)
        for _, x0, y0, x1, y1 in boxes:
            rows = slice(math.floor(y0 * height), math.ceil(y1 * height))
            mask[rows, math.floor(x0 * width) : math.ceil(x1 * width)] = True
        return mask

    @cached_property
    def _boxes_file(self) -> Path | None:
        folders = (self.root, self._grading, self._grading.parent)
        return next((f / BOXES_FILE for f in folders if (f / BOXES_FILE).is_file()), None)

    @cached_property
    def _boxes(self) -> tuple[dict[str, list[Box]], list[Problem]]:
        return ({}, []) if self._boxes_file is None else _read_boxes(self._boxes_file)

    def _unused_boxes(self, records: Sequence[Record]) -> Iterator[Problem]:
        """Report the images and classes of the boxes that mark nothing."""
        images = {_box_key(record.path.name) for record in records if record.subset == "train"}
        classes = {box[0] for boxes in self._boxes[0].values() for box in boxes}
        unused = {name: "is no training image" for name in sorted(self._boxes[0].keys() - images)}
        for name in sorted(classes - {*MASKED_LESIONS, *OTHER_STRUCTURES}):
            unused[name] = f"is no class of lesions ({', '.join(MASKED_LESIONS)})"
        for name, reason in unused.items():
            detail = f'{BOXES_FILE}: "{printable(name)}" {reason}; its boxes are left out'
            yield Problem(kind="unlisted_file", name=printable(name), detail=detail)

    def _scan_subset(self, names: _SubsetFiles, scan: Scan) -> None:
        folder = self._grading / "1. Original Images" / names.images
        table = self._grading / "2. Groundtruths" / names.table
        if not folder.is_dir() and not table.is_file():
            return
        try:
            if not folder.is_dir():
                raise Defect("missing_file", names.images, f"{names.table} exists without it")
            rows = _read_grades(table)
        except Defect as defect:
            scan.problems.append(defect.problem)
            return
        scan.others[table] = "table"
        files = FileIndex(folder, IMAGE_SUFFIXES)
        for line, name, grade in rows:
            try:
                where = f"line {line} of {names.table}"
                highest = len(self.class_names) - 1
                scan.records.append(_record(names.subset, name, grade, files, where, highest))
            except Defect as defect:
                scan.problems.append(defect.problem)
        files.add_rest(scan, names.table, lambda path: f"{names.subset}/{name_in(folder, path)}")


def fundus_box(width: int, height: int) -> tuple[int, int, int, int]:
    """Return the crop (left, top, right, bottom) of an image of this size."""
    return FUNDUS_BOX if (width, height) == CAMERA_SIZE else (0, 0, width, height)


def _find_grading(root: Path) -> Path:
    name = "B. Disease Grading"
    # Some tools unpack an archive into a folder of the archive's name.
    for folder in (root, root / name, root / name / name):
        images = folder / "1. Original Images"
        if any((images / names.images).is_dir() for names in SUBSET_FILES):
            return folder
    raise UserError(f"data.root = {root}: expected {LAYOUT}")


def _read_grades(table: Path) -> list[tuple[int, str, str]]:
    """Return each row's line, image name and grade."""
    try:
        header, *rows = read_rows(table)
    except ValueError as error:
        raise Defect("bad_table", table.name, f"{table}: {error}", table) from None
    image, grade = (find_column(header, [name]) for name in GRADE_COLUMNS)
    if image is None or grade is None:
        detail = f"{table}: must have the columns {', '.join(GRADE_COLUMNS)} in its first line"
        raise Defect("bad_table", table.name, detail, table)
    return [(row.line, row.cell(image), row.cell(grade)) for row in rows]


def _record(
    subset: SubsetName, name: str, grade: str, files: FileIndex, where: str, highest_label: int
) -> Record:
    shown = printable(f"{subset}/{name}")
    path = files.take(name, shown=shown, where=where)
    grade = grade.removesuffix(".0")  # as tables with an empty grade are saved again
    if grade not in map(str, range(NUM_GRADES)):
        detail = f'{where}: the grade "{printable(grade)}" must be 0 to {NUM_GRADES - 1}'
        raise Defect("label_out_of_range", shown, detail, path)
    return Record(
        name=printable(f"{subset}/{path.name}"),
        path=path,
        grade=int(grade),
        label=min(int(grade), highest_label),
        subset=subset,
    )


def _box_key(name: str) -> str:
    """Return an image's name without its extension, if it has one."""
    pure = PurePath(name)
    return pure.stem if pure.suffix.lower() in IMAGE_SUFFIXES else name


def _read_boxes(table: Path) -> tuple[dict[str, list[Box]], list[Problem]]:
    boxes: dict[str, list[Box]] = {}
    problems = []
    try:
        header, *rows = read_rows(table)
        columns = [find_column(header, [name]) for name in BOX_COLUMNS]
        if None in columns:
            raise ValueError(f"must have the columns {', '.join(BOX_COLUMNS)}")
    except ValueError as error:
        return {}, [Problem(kind="bad_table", name=table.name, detail=f"{table}: {error}")]
    for row in rows:
        image, kind, *corners = (row.cell(column) for column in columns if column is not None)
        try:
            x0, y0, x1, y1 = map(float, corners)
        except ValueError:
            x0 = y0 = x1 = y1 = math.nan
        if 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1:
            boxes.setdefault(_box_key(image), []).append((kind, x0, y0, x1, y1))
        else:
            detail = "corners must be numbers with 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1"
            where = f"{table.name} line {row.line}"
            problems.append(Problem(kind="bad_table", name=where, detail=detail))
    return boxes, problems
