"""The records that a reader yields: one per image, before any pixel is decoded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

SubsetName = Literal["train", "validation", "test"]
SUBSETS: tuple[SubsetName, ...] = ("train", "validation", "test")

ProblemKind = Literal[
    "missing_file",  # a row names an image that does not exist
    "unlisted_file",  # an image that no row names
    "unread_file",  # a file beside the images, in a format that is not read
    "random_subsets",  # frames of a series of which no time tells the subset
    "mixed_orientation",  # pictures beside FITS images, which are stored upside down
    "unreadable_file",  # cannot be decoded, or is not what its name says
    "label_out_of_range",
    "duplicate_row",  # one image named by several rows
    "unreadable_mask",  # cannot be decoded, is not of its image's size, or is one of several
    "bad_table",  # a table is absent, has no such column, or does not fit its images
]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One annotated image of a data set.

    ``grade`` is the annotation as published (IDRiD's 0-4, a flare class 0-3, a class folder's
    index); ``label`` is the class that the network learns, where 0 is negative.
    ``index`` is the position inside ``path`` where one file holds many images.
    ``subset`` is None where the data set does not assign the image to one.
    """

    name: str
    path: Path
    index: int | None = None
    grade: int
    label: int
    subset: SubsetName | None


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One defect of a data set: its kind, the file or row, and a description.

    ``path`` is the file or folder that is left out because of it, if there is one.
    """

    kind: ProblemKind
    name: str
    detail: str
    path: Path | None = None

    @property
    def is_fatal(self) -> bool:
        """Whether training refuses a data set with this defect."""
        return self.kind not in (
            "unlisted_file", "unread_file", "random_subsets", "mixed_orientation",
        )  # fmt: skip


@dataclass(frozen=True)
class Scan:
    """The usable records and the defects that a reader finds without decoding pixels.

    ``others`` are the tables and masks in use; ``unused`` says of other files why they are not, if
    that is no problem.
    """

    records: list[Record]
    problems: list[Problem] = field(default_factory=list)
    others: dict[Path, Literal["table", "mask"]] = field(default_factory=dict)
    unused: dict[Path, str] = field(default_factory=dict)


@runtime_checkable
class Reader(Protocol):
    """One layout of a data set on disk."""

    @property
    def root(self) -> Path | None:
        """The folder of the data, or None where there are no files."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by label."""

    @property
    def num_channels(self) -> int:
        """Channels of every image: 1 or 3."""

    @property
    def geometry(self) -> str:
        """How ``read`` changes the pixels besides decoding; a new value makes caches stale."""

    def scan(self) -> Scan:
        """List every annotated image in a stable order, and every defect of the tables."""

    def read(self, record: Record) -> NDArray[np.uint8]:
        """Decode one image to (height, width, channels), cropped but not resized.

        Raises:
            OSError or ValueError: the file cannot be decoded.
        """

    def lesion_mask(self, record: Record) -> NDArray[np.bool_] | None:
        """Return the mask of an image's lesions (height, width), or None where unknown."""
