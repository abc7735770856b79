"""The files of explanations: maps, overlays, and the table of completed images."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from numpy.typing import NDArray
from PIL import Image

from labn.errors import UserError
from labn.report import overlay
from labn.storage.files import write_atomically

TABLE_NAME = "explanations.csv"
FILE_ENDINGS = {
    "map_npy": ".attention.npy",
    "map_png": ".attention.png",
    "overlay_png": ".overlay.png",
}
"""The suffix added to an image's name, by column of the table."""
METHODS_COLUMN = "methods"
"""The column of the methods other than LABN's own whose maps were written, comma-separated."""
_TEXT_COLUMNS = ("file", "predicted", *FILE_ENDINGS, METHODS_COLUMN, "sha256", "network")
_STRIP_ROWS = 256
_COMPRESS_LEVEL = 1
"""A quarter of the usual time, for files that are a quarter larger."""

Row = dict[str, Any]


def read_table(path: Path, network: str) -> dict[str, Row]:
    """Read the rows of earlier calls, by file; none if there is no table.

    Raises:
        UserError: the rows are of another network, or the file is no such table.
    """
    if not path.exists():
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [
                {
                    key: text if key in _TEXT_COLUMNS else json.loads(text)
                    for key, text in row.items()
                }
                for row in csv.DictReader(file)
            ]
        is_same = all(row["network"] == network for row in rows)
    except (OSError, ValueError, TypeError, KeyError, csv.Error):
        is_same = False
    if not is_same:
        raise UserError(
            f"--out = {path.parent}: its {path.name} is of another network or of other settings;"
            " give another folder, or delete that one"
        )
    return {row["file"]: row for row in rows}


def write_table(path: Path, rows: Mapping[str, Row]) -> None:
    """Write rows, at least one, sorted by file."""
    text = StringIO()
    # Only some calls name methods.
    columns = max(rows.values(), key=len)
    table = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(rows[name] for name in sorted(rows))
    write_atomically(path, text.getvalue())


def write_maps(
    out: Path,
    name: str,
    pixels: UInt8[np.ndarray, "h w c"],
    attention: Float32[np.ndarray, "h w"],
) -> dict[str, str]:
    """Write one image's map in both formats and its overlay; return their paths below ``out``."""
    files = {column: f"{name}{ending}" for column, ending in FILE_ENDINGS.items()}
    write_atomically(out / files["map_npy"], lambda file: np.save(file, attention))
    write_map_png(out, name, attention)
    _write_png(out / files["overlay_png"], _overlay(pixels, attention))
    return files


def method_files(name: str, method: str) -> tuple[str, str, str]:
    """Return the paths of an image's files by a method other than LABN's own.

    They are its values, the map as a picture, and the overlay.
    """
    stem = f"{name}.{re.sub(r'[^a-z0-9]+', '-', method.casefold()).strip('-')}"
    return f"{stem}.map.npy", f"{stem}.map.png", f"{stem}.overlay.png"


def write_method_map(
    out: Path,
    name: str,
    method: str,
    pixels: UInt8[np.ndarray, "h w c"],
    saliency: Float32[np.ndarray, "h w"],
) -> None:
    """Write one image's map by a method of any scale; the pictures' greatest value is 1."""
    values, picture, overlaid = (out / file for file in method_files(name, method))
    write_atomically(values, lambda file: np.save(file, saliency))
    greatest = saliency.max()
    scaled = saliency / greatest if greatest > 0 else saliency
    _write_png(picture, _as_levels(scaled))
    _write_png(overlaid, _overlay(pixels, scaled))


def write_map_png(out: Path, name: str, attention: Float32[np.ndarray, "h w"]) -> str:
    """Write one image's map, 16 bits for 0 to 1; return its path below ``out``."""
    file = f"{name}{FILE_ENDINGS['map_png']}"
    _write_png(out / file, _as_levels(attention))
    return file


def _as_levels(shares: Float32[np.ndarray, "h w"]) -> NDArray[np.uint16]:
    levels: NDArray[np.uint16] = np.rint(shares * 65535).astype(np.uint16)
    return levels


def _write_png(path: Path, pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
    image = Image.fromarray(pixels)
    write_atomically(path, partial(image.save, format="PNG", compress_level=_COMPRESS_LEVEL))


def _overlay(
    pixels: UInt8[np.ndarray, "h w c"], attention: Float32[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Overlay a map on its image in strips: IDRiD's images would take 2 GB as a whole."""
    starts = range(0, len(pixels), _STRIP_ROWS)
    strips = [slice(start, start + _STRIP_ROWS) for start in starts]
    return np.concatenate([overlay(pixels[strip], attention[strip]) for strip in strips])
