"""Decoding of image files to 8-bit arrays, for every reader."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".apng", ".jfif", ".jpe", ".webp", ".gif"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".avif", ".avifs", ".ppm", ".pgm", ".pbm"),
    *(".pnm", ".pfm", ".tga", ".pcx", ".dcx", ".dib", ".sgi", ".rgb", ".rgba", ".bw", ".ras"),
    *(".psd", ".qoi", ".im", ".msp", ".xbm", ".xpm", ".pxr"),
)
"""Extensions of the pictures that Pillow decodes by itself; a fixed list, so that a data set has
the same images on every machine."""

GREYSCALE_MODES = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_LOSSY_FORMATS = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")
_HALF_RANGE = 127


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
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
            image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise ValueError(
                f"{path.name}: 32-bit pixels have no known range; save it with 8 or 16 bits"
            )
        pixels = np.array(image.convert("L" if num_channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], num_channels)


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Return which pixels of a mask's file are marked (height, width).

    Marked is every value but 0, so that labels of 8, 16 or 32 bits count, and every visible colour
    but black; where all that is visible is black, painted on a transparent ground, all of it.
    Formats that lose detail turn 0 into small values: there, values above 127 are marked.

    Raises:
        OSError or ValueError: the file cannot be decoded, or not exactly enough.
    """
    with decoding(path), Image.open(path) as image:
        is_deep = ";16" in str([tile[3] for tile in image.tile])
        if is_deep and image.mode in ("RGB", "RGBA", "LA"):
            raise ValueError(f"{path.name}: 16 bits per colour lose small labels; save it in grey")
        if count_frames(image) > 1:
            raise ValueError(f"{path.name}: has several frames; save the one of the mask alone")
        is_numeric = image.mode in GREYSCALE_MODES and not image.has_transparency_data
        values = np.asarray(image) if is_numeric else _visible_colours(image)
        is_lossy = image.format in _LOSSY_FORMATS
    if not np.isfinite(values).all():
        raise ValueError(f"{path.name}: has values that are not numbers")
    if is_lossy and values.any() and values.max() <= _HALF_RANGE:
        raise ValueError(f"{path.name}: {image.format} blurs small labels; save it as PNG")
    marked: NDArray[np.bool_] = values > _HALF_RANGE if is_lossy else values != 0
    return marked


def _visible_colours(image: Image.Image) -> NDArray[np.uint8]:
    """Return the brightest of each pixel's colours; opacity where all that is visible is black."""
    colours: NDArray[np.uint8] = np.asarray(image.convert("RGB")).max(axis=-1)
    if image.mode == "P" and not colours.any():
        return np.asarray(image)  # labels with an empty palette
    if not image.has_transparency_data:
        return colours
    opacity: NDArray[np.uint8] = np.asarray(image.convert("RGBA"))[..., 3]
    visible = np.where(opacity > 0, colours, np.uint8(0))
    return visible if visible.any() else opacity


def count_frames(image: Image.Image) -> int:
    """Return how many frames an open file has; a photograph's embedded previews do not count."""
    return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


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


def read_traits(path: Path) -> tuple[bool, int]:
    """Return whether an image is greyscale, and its number of frames, from its file's headers.

    Raises:
        OSError or ValueError: the headers cannot be decoded.
    """
    with decoding(path), Image.open(path) as image:
        return image.mode in GREYSCALE_MODES, count_frames(image)
