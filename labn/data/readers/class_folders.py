"""Plain trees of images with one folder per class."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labn.data.readers.flare_table import is_flare_table
from labn.data.readers.image_files import (
    IMAGE_SUFFIXES,
    is_greyscale,
    read_image,
    read_mask,
    read_size,
)
from labn.data.readers.listing import (
    SUBSET_NAMES,
    Entry,
    existing_folder,
    is_document,
    list_folders,
    name_in,
    unread_problem,
    visible,
)
from labn.data.readers.reader import Problem, Record, Scan, SubsetName
from labn.errors import UserError, did_you_mean, printable

LAYOUT = (
    "a tree of at least two class folders ({class}/*.png, or {train,val,test}/{class}/*.png;"
    " png, jpg, tif, webp and what else Pillow reads)"
)
MASKS = "masks"
MASK_ENDINGS = ("_mask", "_segmentation")
"""What a mask's name may have after its image's."""

NEGATIVE_NAME = re.compile(r"(?i:negative|neg|normal|healthy|none|no|0|no[ _-].+)|No[A-Z].*")
"""Names of class folders taken as negative, also such as no_flare or NoDR."""


class FolderReader:
    """Reader of the files in ROOT/CLASS or ROOT/SUBSET/CLASS, with optional masks.

    SUBSET is train, val (or validation) or test. Class 0 is ``negative_class`` or, if None, the
    first class whose name matches ``NEGATIVE_NAME``; the others are numbered by name. ROOT/masks/
    mirrors the tree with images that ``read_mask`` reads; an image without one has unknown
    lesions. All images are read as greyscale if all of them are, else as RGB.
    With ``has_group_folders`` the files are one level deeper, in CLASS/GROUP.

    Raises:
        UserError: the root has no such layout, or no class is called ``negative_class``.
    """

    def __init__(
        self, root: Path, negative_class: str | None = None, *, has_group_folders: bool = False
    ) -> None:
        self.root = existing_folder(root)
        self._entries = visible(self.root)
        holders = {e.path.parent for e in self._entries if e.has_suffix(IMAGE_SUFFIXES)}
        if has_group_folders:
            holders = {holder.parent for holder in holders}
        self._has_group_folders = has_group_folders
        self._folders = _class_folders(self.root, holders)
        classes = {printable(f.name) for folders in self._folders.values() for f in folders}
        if len(classes) < 2:
            found = ", ".join(sorted(classes)) or "none"
            raise UserError(f"data.root = {root}: expected {LAYOUT}; class folders found: {found}")
        self.class_names = _order(classes, negative_class)
        self._subset_of = {
            folder: subset for subset, folders in self._folders.items() for folder in folders
        }

    @cached_property
    def num_channels(self) -> int:
        """1 if all images are greyscale by their headers, else 3."""
        kinds = (_is_greyscale(entry.path) for entry in self._images if not entry.defect)
        found = False
        for kind in kinds:
            if kind is False:
                return 3
            found = found or kind is True
        return 1 if found else 3

    @property
    def geometry(self) -> str:
        """A description of the pixels, and a digest of the mask files, which caches store too."""
        states = [
            (str(mask), mask.stat().st_mtime_ns) for masks in self._masks.values() for mask in masks
        ]
        if not states:
            return f"as stored, masks {hashlib.sha256(b'[]').hexdigest()[:16]}"
        return f"as stored, masks not 0 {hashlib.sha256(repr(states).encode()).hexdigest()[:16]}"

    def scan(self) -> Scan:
        """List the images by subset, class and name, and every defect."""
        scan = Scan([])
        names = Counter(name_in(self.root, entry.path) for entry in self._images)
        for entry in self._images:
            path = entry.path
            name = name_in(self.root, path)
            folder = self._class_folder(path)
            grade = self.class_names.index(printable(folder.name))
            subset = self._subset_of[folder]
            if entry.kind is not None:
                detail = entry.defect
                scan.problems.append(Problem(kind=entry.kind, name=name, detail=detail, path=path))
            elif names[name] > 1:
                detail = "several files are shown by this name, which is not UTF-8; rename them"
                scan.problems.append(
                    Problem(kind="duplicate_row", name=name, detail=detail, path=path)
                )
            else:
                record = Record(name=name, path=path, grade=grade, label=grade, subset=subset)
                scan.records.append(record)
        scan.problems.extend(
            [*self._class_problems(), *self._mask_problems(scan), *self._stray_problems()]
        )
        return scan

    def read(self, record: Record) -> NDArray[np.uint8]:
        """Decode one image, as it is stored."""
        return read_image(record.path, self.num_channels)

    def lesion_mask(self, record: Record) -> NDArray[np.bool_] | None:
        """Return the image's mask, or None if it has none.

        Raises:
            OSError or ValueError: the mask cannot be decoded, or is not of the image's size.
        """
        masks = self._masks_of(record.path)
        if not masks:
            return None
        mask = read_mask(masks[0])
        width, height = read_size(record.path)
        if mask.shape != (height, width):
            raise ValueError(f"{masks[0]}: {mask.shape[::-1]} pixels, its image {(width, height)}")
        return mask

    @cached_property
    def _images(self) -> list[Entry]:
        """The images in the class folders, by subset, class and name."""
        order = {folder: position for position, folder in enumerate(self._used_folders())}
        images = [
            entry
            for entry in self._entries
            if entry.has_suffix(IMAGE_SUFFIXES) and self._class_folder(entry.path) in order
        ]
        return sorted(images, key=lambda entry: order[self._class_folder(entry.path)])

    @cached_property
    def _masks(self) -> dict[Path, list[Path]]:
        """The masks by the path that their image would have, without extension."""
        masks: dict[Path, list[Path]] = {}
        for entry in self._entries:
            if entry.kind is None and self._is_mask(entry):
                key = entry.path.relative_to(self.root / MASKS).with_suffix("")
                masks.setdefault(key, []).append(entry.path)
        return masks

    def _is_mask(self, entry: Entry) -> bool:
        parents = entry.path.relative_to(self.root).parts[:-1]
        return parents[:1] == (MASKS,) and entry.has_suffix(IMAGE_SUFFIXES)

    def _masks_of(self, image: Path) -> list[Path]:
        key = image.relative_to(self.root).with_suffix("")
        keys = (key, *(key.with_name(key.name + ending) for ending in MASK_ENDINGS))
        return [mask for name in keys for mask in self._masks.get(name, [])]

    def _class_folder(self, path: Path) -> Path:
        return path.parent.parent if self._has_group_folders else path.parent

    def _used_folders(self) -> list[Path]:
        """Return the class folders, by subset, then by class."""
        return [
            folder
            for folders in self._folders.values()
            for folder in sorted(
                folders, key=lambda folder: self.class_names.index(printable(folder.name))
            )
        ]

    def _class_problems(self) -> Iterator[Problem]:
        """Report classes that only validation or test has, as by a misspelt folder."""
        trained = {folder.name for folder in self._folders.get("train", self._used_folders())}
        for folder in self._used_folders():
            name = name_in(self.root, folder)
            if folder.name not in trained:
                detail = f"the training subset has no class {printable(folder.name)}"
                yield Problem(kind="bad_table", name=name, detail=detail)
            table = folder / "labels.csv"
            if is_flare_table(table):
                detail = f"a table of flare classes: {name} is a data set of its own, check that"
                yield Problem(
                    kind="bad_table", name=f"{name}/labels.csv", detail=detail, path=table
                )

    def _mask_problems(self, scan: Scan) -> Iterator[Problem]:
        """Report images with several masks and masks without an image; add the others to a scan."""
        for image in self._images:
            masks = self._masks_of(image.path)
            scan.others.update(dict.fromkeys(masks, "mask"))
            if len(masks) > 1:
                names = ", ".join(name_in(self.root, mask) for mask in masks)
                detail = f"has several masks, of which only one can be right: {names}"
                name = name_in(self.root, image.path)
                yield Problem(kind="unreadable_mask", name=name, detail=detail)
        for entry in self._entries:
            if entry.kind is not None and self._is_mask(entry):
                name, detail = name_in(self.root, entry.path), entry.defect
                yield Problem(kind=entry.kind, name=name, detail=detail, path=entry.path)
        folders = {folder.relative_to(self.root) for folder in self._used_folders()}
        for key, masks in self._masks.items():
            # The others are reported by folder.
            if self._class_folder(key) in folders and masks[0] not in scan.others:
                for mask in masks:
                    name = name_in(self.root, mask)
                    detail = "no image has this mask"
                    yield Problem(kind="unlisted_file", name=name, detail=detail, path=mask)

    def _stray_problems(self) -> Iterator[Problem]:
        """Report images outside the class folders, by folder, and other files beside images."""
        used = {*self._used_folders()}
        levels = {self.root, *(folder.parent for folder in used)}
        used |= {self.root / MASKS / folder.relative_to(self.root) for folder in used}
        strays = Counter[Path]()
        for entry in self._entries:
            folder = self._class_folder(entry.path)
            is_image = entry.has_suffix(IMAGE_SUFFIXES) and not entry.path.is_dir()
            if is_image and folder not in used:
                strays[entry.path.parent] += 1
            elif entry.kind == "missing_file" and entry.path.parent in levels and not is_image:
                yield from _missing_folder(self.root, entry)
            elif not is_image and (
                entry.path.is_dir() or folder in used or folder.parent in levels - {folder}
            ):
                problem = unread_problem(name_in(self.root, entry.path), entry)
                if problem is not None:
                    yield problem
        for folder, number in strays.items():
            name, detail = (
                name_in(self.root, folder),
                f"images that are in no class folder: {number}",
            )
            yield Problem(kind="unlisted_file", name=name, detail=detail, path=folder)
        filled = {parent for entry in self._entries for parent in entry.path.parents}
        for folder in (folder for level in levels for folder in list_folders(level)):
            if folder not in filled and folder.name != MASKS:
                detail = "holds no file, so that it stands for no class"
                yield Problem(kind="unread_file", name=name_in(self.root, folder), detail=detail)


def _missing_folder(root: Path, entry: Entry) -> Iterator[Problem]:
    """Report a link to nowhere in the place of a class folder."""
    if not entry.path.suffix or not is_document(entry.path):
        name = name_in(root, entry.path)
        yield Problem(kind="missing_file", name=name, detail=entry.defect, path=entry.path)


def _class_folders(root: Path, holders: set[Path]) -> dict[SubsetName | None, list[Path]]:
    """Return the class folders by subset, those of ``holders``; the key is None without subsets."""
    subsets: dict[SubsetName | None, list[Path]] = {}
    for folder in list_folders(root):
        subset = SUBSET_NAMES.get(folder.name.lower())
        if subset is not None and (classes := _holding(folder, holders)):
            subsets.setdefault(subset, []).extend(classes)
    return subsets or {None: _holding(root, holders)}


def _holding(folder: Path, holders: set[Path]) -> list[Path]:
    return [sub for sub in list_folders(folder) if sub.name != MASKS and sub in holders]


def _order(classes: set[str], negative_class: str | None) -> tuple[str, ...]:
    """Return the classes by name, but the negative one first."""
    names = sorted(classes)
    if negative_class is None:
        first = next((name for name in names if NEGATIVE_NAME.fullmatch(name)), names[0])
    elif negative_class in classes:
        first = negative_class
    else:
        raise UserError(
            f"negative_class = {negative_class}: must be one of the class folders"
            f" {', '.join(names)}.{did_you_mean(negative_class, names)}"
        )
    return (first, *(name for name in names if name != first))


def _is_greyscale(path: Path) -> bool | None:
    try:
        return is_greyscale(path)
    except (OSError, ValueError):
        return None  # decoding will report it
