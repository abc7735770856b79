"""What a reader yields: one record an image, before any pixel is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Partition = Literal["train", "validation", "test"]
PARTITIONS: tuple[Partition, ...] = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One annotated image of a data set.

    ``grade`` is the annotation as published (IDRiD's 0-4, a flare class 0-3, a class folder's
    index); ``label`` is the class that the network learns, where 0 is negative.
    ``index`` is the position inside ``path`` where one file holds many images.
    """

    name: str
    path: Path
    index: int | None = None
    grade: int
    label: int
    partition: Partition


class Reader(Protocol):
    """One layout of a data set on disk.

    ``geometry`` says in a word what ``read`` does to the pixels besides decoding them; a change
    of it makes the cache stale.
    """

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by label."""

    @property
    def num_channels(self) -> int:
        """Channels of every image: 1 or 3."""

    @property
    def geometry(self) -> str:
        """What ``read`` does to the pixels, as a cache key."""

    def records(self) -> list[Record]:
        """List every annotated image, in a stable order."""

    def read(self, record: Record) -> NDArray[np.uint8]:
        """Decode one image to (height, width, channels), cropped but not resized."""

    def lesion_mask(self, record: Record) -> NDArray[np.bool_] | None:
        """Return where the lesions of an image are, (height, width), or None where unknown."""
