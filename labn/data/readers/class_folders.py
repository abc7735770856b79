"""Plain trees of images with one folder per class."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labn.data.readers.image_files import is_greyscale, read_image, read_size
from labn.data.readers.listing import SUBSET_NAMES, existing_folder, list_folders, list_images
from labn.data.readers.reader import Problem, Record, Scan, SubsetName
from labn.errors import UserError, did_you_mean

LAYOUT = (
    "a tree of at least two class folders ({class}/*.png, or {train,val,test}/{class}/*.png;"
    " png, jpg, tif or bmp)"
)
MASKS = "masks"

NEGATIVE_NAME = re.compile(r"(?i:negative|neg|normal|healthy|none|no|0|no[ _-].+)|No[A-Z].*")
"""Names of class folders taken as negative, also such as no_flare or NoDR."""


class FolderReader:
    """Reader of the files in ROOT/CLASS or ROOT/SUBSET/CLASS, with optional masks.

    SUBSET is train, val (or validation) or test. Class 0 is ``negative_class`` or, if None, the
    first class whose name matches ``NEGATIVE_NAME``; the others are numbered by name. ROOT/masks/
    mirrors the tree with PNG files, not zero where a lesion is; an image without one has unknown
    lesions. All images are read as greyscale if the first one is, else as RGB.
    With ``has_group_folders`` the files are one level deeper, in CLASS/GROUP.

    Raises:
        UserError: the root has no such layout, or no class is called ``negative_class``.
    """

    def __init__(
        self, root: Path, negative_class: str | None = None, *, has_group_folders: bool = False
    ) -> None:
        self.root = existing_folder(root)
        self._has_group_folders = has_group_folders
        self._folders = _class_folders(self.root, "*/*" if has_group_folders else "*")
        classes = {folder.name for folders in self._folders.values() for folder in folders}
        if len(classes) < 2:
            found = ", ".join(sorted(classes)) or "none"
            raise UserError(f"data.root = {root}: expected {LAYOUT}; class folders found: {found}")
        self.class_names = _order(classes, negative_class)
        self._images = [path for folder in self._image_folders() for path in list_images(folder)]
        self._masks = {
            mask.relative_to(self.root / MASKS).with_suffix(""): mask
            for folder in self._image_folders()
            for mask in list_images(self._mask_folder(folder), (".png",))
        }
        self.num_channels = _num_channels(self._images)

    @property
    def geometry(self) -> str:
        """A description of the pixels, and a digest of the mask files, which caches store too."""
        states = [(str(mask), mask.stat().st_mtime_ns) for mask in self._masks.values()]
        return f"as stored, masks {hashlib.sha256(repr(states).encode()).hexdigest()[:16]}"

    def scan(self) -> Scan:
        """List the images by subset, class and name, and every defect."""
        subsets = {
            folder: subset for subset, folders in self._folders.items() for folder in folders
        }
        records = []
        for path in self._images:
            folder = path.parent.parent if self._has_group_folders else path.parent
            grade = self.class_names.index(folder.name)
            records.append(
                Record(
                    name=path.relative_to(self.root).as_posix(),
                    path=path,
                    grade=grade,
                    label=grade,
                    subset=subsets[folder],
                )
            )
        return Scan(records, self._class_problems() + self._stray_problems())

    def read(self, record: Record) -> NDArray[np.uint8]:
        """Decode one image, as it is stored."""
        return read_image(record.path, self.num_channels)

    def lesion_mask(self, record: Record) -> NDArray[np.bool_] | None:
        """Return the image's mask, or None if it has none.

        Raises:
            OSError or ValueError: the mask cannot be decoded, or is not of the image's size.
        """
        path = self._masks.get(record.path.relative_to(self.root).with_suffix(""))
        if path is None:
            return None
        mask = read_image(path, 3).any(axis=-1)
        width, height = read_size(record.path)
        if mask.shape != (height, width):
            raise ValueError(f"{path}: {mask.shape[::-1]} pixels, its image {(width, height)}")
        return mask

    def _used_folders(self) -> list[Path]:
        """Return the class folders, by subset, then by class."""
        return [
            folder
            for folders in self._folders.values()
            for folder in sorted(folders, key=lambda folder: self.class_names.index(folder.name))
        ]

    def _image_folders(self) -> list[Path]:
        """Return the folders that directly hold images: the classes', or their groups'."""
        if not self._has_group_folders:
            return self._used_folders()
        return [group for folder in self._used_folders() for group in list_folders(folder)]

    def _mask_folder(self, folder: Path) -> Path:
        return self.root / MASKS / folder.relative_to(self.root)

    def _class_problems(self) -> list[Problem]:
        """Report classes that only validation or test has, as by a misspelt folder."""
        trained = {folder.name for folder in self._folders.get("train", self._used_folders())}
        return [
            Problem(
                kind="bad_table",
                name=folder.relative_to(self.root).as_posix(),
                detail=f"the training subset has no class {folder.name}",
            )
            for folder in self._used_folders()
            if folder.name not in trained
        ]

    def _stray_problems(self) -> list[Problem]:
        """Report images outside the class folders, once per folder, and masks without an image."""
        used = {*self._image_folders(), *map(self._mask_folder, self._image_folders())}
        strays = Counter(
            path.parent
            for path in list_images(self.root, pattern="**/*")
            if path.parent not in used
        )
        found = [(folder, f"{n} images are not in a class folder") for folder, n in strays.items()]
        masked = {path.relative_to(self.root).with_suffix("") for path in self._images}
        found += [
            (mask, "no image has this mask")
            for relative, mask in self._masks.items()
            if relative not in masked
        ]
        return [
            Problem(
                kind="unlisted_file", name=path.relative_to(self.root).as_posix(), detail=detail
            )
            for path, detail in found
        ]


def _class_folders(root: Path, pattern: str) -> dict[SubsetName | None, list[Path]]:
    """Return the folders that hold images, by subset; the key is None without subsets."""
    subsets: dict[SubsetName | None, list[Path]] = {}
    for folder in list_folders(root):
        subset = SUBSET_NAMES.get(folder.name.lower())
        if subset is not None and (classes := _folders_of_images(folder, pattern)):
            subsets.setdefault(subset, []).extend(classes)
    return subsets or {None: _folders_of_images(root, pattern)}


def _folders_of_images(folder: Path, pattern: str) -> list[Path]:
    return [
        sub
        for sub in list_folders(folder)
        if sub.name != MASKS and list_images(sub, pattern=pattern)
    ]


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


def _num_channels(images: Iterable[Path]) -> int:
    for path in images:
        try:
            return 1 if is_greyscale(path) else 3
        except (OSError, ValueError):
            continue  # decoding will report it; the next image serves as well
    return 3
