"""Images outside a data set, decoded as the reader of their kind decodes its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import UInt8
from numpy import ndarray

from labn.data.readers import idrid
from labn.data.readers.image_files import IMAGE_SUFFIXES, read_image
from labn.data.readers.magnetograms import SUFFIXES, read_magnetogram


@dataclass(frozen=True, eq=False, kw_only=True)
class UnlabelledImage:
    """One image as stored, and the crop (left, top, right, bottom) that a reader keeps."""

    pixels: UInt8[ndarray, "height width c"]
    box: tuple[int, int, int, int]

    @property
    def kept(self) -> UInt8[ndarray, "h w c"]:
        """The cropped pixels, the network's input before resizing."""
        left, top, right, bottom = self.box
        return self.pixels[top:bottom, left:right]


def image_suffixes(data_name: str) -> tuple[str, ...]:
    """Return the extensions, in lower case, of image files for a kind of data set."""
    scientific = SUFFIXES if data_name == "magnetograms" else ()
    return tuple(dict.fromkeys((*IMAGE_SUFFIXES, *scientific)))


def read_unlabelled(path: Path, data_name: str, num_channels: int) -> UnlabelledImage:
    """Decode one image as a data set called ``data_name`` would.

    Raises:
        OSError or ValueError: the file cannot be decoded.
    """
    if data_name == "magnetograms":
        pixels = read_magnetogram(path)
    else:
        pixels = read_image(path, num_channels)
    return as_read(pixels, data_name)


def as_read(pixels: UInt8[ndarray, "height width c"], data_name: str) -> UnlabelledImage:
    """Return a decoded image with the crop that a data set called ``data_name`` keeps."""
    height, width = pixels.shape[:2]
    box = dict(crops(data_name)).get((width, height), (0, 0, width, height))
    return UnlabelledImage(pixels=pixels, box=box)


def crops(data_name: str) -> tuple[tuple[tuple[int, int], tuple[int, int, int, int]], ...]:
    """Return which images are cropped: their size, and the box that is kept."""
    return ((idrid.CAMERA_SIZE, idrid.FUNDUS_BOX),) if data_name == "idrid" else ()
