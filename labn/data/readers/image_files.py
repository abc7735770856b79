"""Decoding of image files to 8-bit arrays, for every reader."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GREYSCALE_MODES = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Convert every error of a decoder on a broken file to OSError or ValueError."""
    try:
        yield
    except (OSError, ValueError):
        raise
    # Pillow, zipfile and astropy also raise SyntaxError, zlib.error, struct.error and others.
    except Exception as error:
        raise ValueError(f"{path.name}: cannot be decoded ({error})") from error


def read_image(path: Path, num_channels: int) -> NDArray[np.uint8]:
    """Decode an image file to (height, width, channels), with 1 (luma) or 3 (RGB) channels.

    16-bit greyscale is scaled from 0..65535 to 0..255. Transparency is dropped, and the EXIF
    orientation is not applied: masks and boxes refer to the pixels as they are stored.

    Raises:
        OSError or ValueError: the file is truncated, is not an image, or has 32-bit pixels.
    """
    with decoding(path), Image.open(path) as stored:
        image: Image.Image = stored
        if image.mode.startswith("I;16"):
            image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise ValueError(
                f"{path.name}: 32-bit pixels have no known range; save it with 8 or 16 bits"
            )
        pixels = np.array(image.convert("L" if num_channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], num_channels)


def read_size(path: Path) -> tuple[int, int]:
    """Return (width, height) from an image file's header.

    Raises:
        OSError or ValueError: the header cannot be decoded.
    """
    with decoding(path), Image.open(path) as image:
        return image.size


def is_greyscale(path: Path) -> bool:
    """Return whether an image is greyscale, from its file's header.

    Raises:
        OSError or ValueError: the header cannot be decoded.
    """
    with decoding(path), Image.open(path) as image:
        return image.mode in GREYSCALE_MODES
