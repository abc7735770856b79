"""Selection of a reader by the name or the layout of a data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from labn.data.readers import class_folders, idrid, magnetograms
from labn.data.readers.class_folders import FolderReader
from labn.data.readers.fundus_lesions import Lesions
from labn.data.readers.idrid import IdridReader
from labn.data.readers.listing import existing_folder
from labn.data.readers.magnetograms import MagnetogramReader
from labn.data.readers.reader import Reader
from labn.data.readers.synthetic import SyntheticReader
from labn.errors import UserError, did_you_mean

READERS: dict[str, Callable[[Path], Reader]] = {
    "idrid": IdridReader,
    "magnetograms": MagnetogramReader,
    "folder": FolderReader,
}
LAYOUTS = (idrid.LAYOUT, magnetograms.LAYOUT, class_folders.LAYOUT)


def open_reader(
    name: str,
    root: Path | None,
    *,
    negative_class: str | None = None,
    has_group_folders: bool = False,
    by_grade: bool = False,
    image_size: int,
    num_images: int,
    positive_fraction: float,
    seed: int,
    lesions: Lesions = "plain",
) -> Reader:
    """Return the reader of the data set that the configuration names.

    ``negative_class`` names class 0 of a tree of class folders, in which ``has_group_folders`` says
    that each class folder holds a folder per group; ``by_grade`` makes each grade of IDRiD a class.
    The numbers and ``lesions`` describe the synthetic set, which is painted if it has no root, else
    read from there.

    Raises:
        UserError: the data set is unknown, or the root does not have its layout.
    """
    known = (*READERS, "synthetic")
    if name not in known:
        raise UserError(
            f"data.name = {name}: must be one of {', '.join(known)}.{did_you_mean(name, known)}"
        )
    if name == "synthetic":
        if root is None:
            return SyntheticReader(num_images, positive_fraction, seed, image_size, lesions)
        return FolderReader(root)
    if root is None:
        raise UserError(f"data.root = null: {name} needs the folder of its images; set it")
    if name == "folder":
        return FolderReader(root, negative_class, has_group_folders=has_group_folders)
    return IdridReader(root, by_grade=by_grade) if name == "idrid" else READERS[name](root)


def detect_layout(root: Path) -> str:
    """Return the name of the data set whose layout a folder has.

    Raises:
        UserError: the folder does not exist, or has none of the layouts.
    """
    existing_folder(root)
    for name, reader in READERS.items():
        try:
            reader(root)
        except UserError:
            continue
        return name
    raise UserError(f"data.root = {root}: expected one of: {'; '.join(LAYOUTS)}")
