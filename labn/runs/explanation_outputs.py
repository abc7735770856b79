"""The files of explanations: maps, overlays, and the table of completed images."""

from __future__ import annotations

import csv
import json
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
_TEXT_COLUMNS = ("file", "predicted", *FILE_ENDINGS, "sha256", "network")
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
    table = csv.DictWriter(text, next(iter(rows.values())), lineterminator="\n")
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


def write_map_png(out: Path, name: str, attention: Float32[np.ndarray, "h w"]) -> str:
    """Write one image's map, 16 bits for 0 to 1; return its path below ``out``."""
    file = f"{name}{FILE_ENDINGS['map_png']}"
    _write_png(out / file, np.rint(attention * 65535).astype(np.uint16))
    return file


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
