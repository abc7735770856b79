"""The embedded data set: synthetic fundus photographs, painted when they are read."""

from __future__ import annotations

import math
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from labn.data.readers.fundus import paint_fundus
from labn.data.readers.fundus_lesions import Lesions
from labn.data.readers.reader import Record, Scan
from labn.errors import UserError
from labn.storage.files import write_atomically


@lru_cache(maxsize=64)  # an image and its mask are read apart, by up to that many threads
def _paint(
    seed: int, index: int, image_size: int, lesions: Lesions | None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    image, mask = paint_fundus(seed, index, image_size, lesions)
    for array in (image, mask):
        array.setflags(write=False)  # who reads it next shares it
    return image, mask


class SyntheticReader:
    """Reader that paints images (see ``fundus``); positives have lesions.

    ``positive_fraction`` of the images, rounded to a whole number, are positive, spread evenly
    over the indices. An image does not depend on the number of images or on the other images.
    """

    class_names = ("negative", "positive")
    num_channels = 3
    root = None

    def __init__(
        self,
        num_images: int,
        positive_fraction: float,
        seed: int,
        image_size: int,
        lesions: Lesions = "plain",
    ) -> None:
        self.num_images = num_images
        self.positive_fraction = positive_fraction
        self.seed = seed
        self.image_size = image_size
        self.lesions = lesions

    @property
    def geometry(self) -> str:
        """The settings that the pixels depend on; 1 is the painter's version."""
        return (
            f"synthetic fundus 1, seed {self.seed}, {self.image_size} pixels,"
            f" {self.positive_fraction:g} positive"
            f"{'' if self.lesions == 'plain' else ', varied lesions 1'}"
        )

    def scan(self) -> Scan:
        """List the images; there are no defects."""
        return Scan([self._record(index) for index in range(self.num_images)])

    def read(self, record: Record) -> NDArray[np.uint8]:
        """Return one painted image (image_size, image_size, 3)."""
        return self.paint(record)[0]

    def lesion_mask(self, record: Record) -> NDArray[np.bool_]:
        """Return the mask of the painted lesions, empty for a negative."""
        return self.paint(record)[1]

    def paint(self, record: Record) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return one image and the mask of its lesions."""
        if record.index is None:
            raise ValueError(f"{record.name} is not in the synthetic set: it has no index")
        lesions = self.lesions if record.label == 1 else None
        return _paint(self.seed, record.index, self.image_size, lesions)

    def _record(self, index: int) -> Record:
        is_positive = self._positives_before(index + 1) > self._positives_before(index)
        return Record(
            name=f"synthetic/{index:04d}",
            path=Path("synthetic"),
            index=index,
            grade=int(is_positive),
            label=int(is_positive),
            subset=None,
        )

    def _positives_before(self, index: int) -> int:
        return math.floor(index * self.positive_fraction + 0.5)


def write_synthetic(
    out: Path,
    *,
    num_images: int,
    positive_fraction: float,
    seed: int,
    image_size: int,
    lesions: Lesions = "plain",
) -> None:
    """Write the set as a tree that ``FolderReader`` reads, with masks of the positives.

    The images are OUT/negative/NNNN.png and OUT/positive/NNNN.png, the masks
    OUT/masks/positive/NNNN.png.

    Raises:
        UserError: the folder is not empty.
    """
    out = out.expanduser()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: must be a new or an empty folder; specify another one")
    reader = SyntheticReader(num_images, positive_fraction, seed, image_size, lesions)
    masks = out / "masks" / "positive"
    for folder in (*(out / name for name in reader.class_names), masks):
        folder.mkdir(parents=True, exist_ok=True)
    for record in reader.scan().records:
        file_name = f"{record.index:04d}.png"
        image, mask = reader.paint(record)
        path = out / reader.class_names[record.label] / file_name
        write_atomically(path, partial(Image.fromarray(image).save, format="PNG"))
        if record.label == 1:
            painted = Image.fromarray(mask)
            write_atomically(masks / file_name, partial(painted.save, format="PNG"))
