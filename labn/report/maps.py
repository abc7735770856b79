"""Figures of saliency maps over their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from labn.metrics.arguments import Numbers, as_numbers
from labn.report.style import MASK_COLOUR, THRESHOLD_COLOUR, add_heading, halo, new_figure

_SALIENCY_COLOURS = colormaps["inferno"]
_OPACITY_RANGE = (0.25, 0.8)
"""Opacity at saliency 0 and 1, so that the unattended image stays readable."""
_LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601)."""
_ROUNDING = 1e-6
_PAIR_WIDTH_IN, _PANEL_WIDTH_IN = 4.2, 1.55
_PAIR_LETTERS, _PANEL_LETTERS = 52, 22
"""Letters that fit the width of a title; longer ones are wrapped."""
_PAIR_OFFSET = 1.03
"""Distance of the overlay from its image, in widths of the image."""


def overlay(image: Shaped[np.ndarray, "*image"], saliency: Numbers) -> UInt8[np.ndarray, "h w 3"]:
    """Return a coloured saliency map (h, w) in [0, 1], blended over an image of 1 or 3 channels.

    The image is shown in grey, so that every colour means saliency, and fades as saliency grows.

    Raises:
        ValueError: the map is outside [0, 1], its size differs from the image's, or the image is
            not of bytes.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ValueError(
            f"image: got {image.dtype} of shape {image.shape}, must be uint8 of shape (height,"
            " width, 1 or 3)"
        )
    saliency = as_numbers("saliency", saliency).cpu().numpy()
    if saliency.shape != image.shape[:2]:
        raise ValueError(f"saliency: got shape {saliency.shape}, must be {image.shape[:2]}")
    # NaN compares false with everything, so test for valid values.
    if not np.all(np.abs(saliency - 0.5) <= 0.5 + _ROUNDING):
        raise ValueError("saliency: got NaN or values outside [0, 1]; scale the map")
    grey = image[..., 0] if image.shape[2] == 1 else image @ np.array(_LUMINANCE)
    heat = 255 * _SALIENCY_COLOURS(saliency)[..., :3]
    opacity = np.interp(saliency, (0, 1), _OPACITY_RANGE)[..., None]
    blend: NDArray[np.float64] = (1 - opacity) * grey[..., None] + opacity * heat
    return blend.round().astype(np.uint8)


def attention_sheet(
    images: UInt8[np.ndarray, "n h w c"],
    maps: Float[np.ndarray, "n h w"],
    titles: Sequence[str],
    masks: Sequence[Bool[np.ndarray, "h w"] | None] | None = None,
    heading: str | None = None,
    threshold: float | None = None,
) -> Figure:
    """Return a figure of each image beside its overlay with a saliency map in [0, 1].

    A lesion mask, if any, is outlined on the image, where it hides no map; on the overlay a line
    runs where the map passes the ``threshold``, theta_alpha, which the colour bar marks.

    Raises:
        ValueError: there are no images, or not as many titles or masks.
    """
    if not len(images):
        raise ValueError("images: got none, must be at least one")
    masks = [None] * len(images) if masks is None else masks
    titles = [_wrap(title, _PAIR_LETTERS) for title in titles]
    samples = zip(images, maps, titles, masks, strict=True)
    num_columns = _columns_without_gaps(len(images))
    num_rows = len(images) // num_columns
    height, width = images.shape[1:3]
    title_height_in = 0.16 * max(title.count("\n") + 1 for title in titles)
    pair_height_in = _PAIR_WIDTH_IN * height / ((1 + _PAIR_OFFSET) * width) + title_height_in
    figure = new_figure(_PAIR_WIDTH_IN * num_columns + 1, pair_height_in * num_rows + 0.3)
    grid = figure.subplots(num_rows, num_columns, squeeze=False)
    for axes, sample in zip(grid.flat, samples, strict=True):
        _draw_pair(axes, *sample, threshold)
    _add_key(figure, grid, "attention", masks, threshold)
    if heading is not None:
        add_heading(figure, heading)
    return figure


def examples_figure(
    images: UInt8[np.ndarray, "n h w c"],
    maps: Mapping[str, Float[np.ndarray, "n h w"]],
    scores: Mapping[str, Sequence[str]],
    titles: Sequence[str],
    masks: Sequence[Bool[np.ndarray, "h w"] | None] | None = None,
    heading: str | None = None,
    label: str = "saliency",
) -> Figure:
    """Return a figure with one row per image: every method's map in [0, 1], and its score below.

    ``label`` names what the maps show.

    A lesion mask, if any, is outlined on the image alone, where it hides no map (Iida 2022, Fig. 5,
    has it in every panel).

    Raises:
        ValueError: there are no images, or not as many maps, scores, titles or masks.
    """
    if not len(images):
        raise ValueError("images: got none, must be at least one")
    masks = [None] * len(images) if masks is None else masks
    num_rows, num_columns = len(images), 1 + len(maps)
    height, width = images.shape[1:3]
    titles = [_wrap(title, _PANEL_LETTERS) for title in titles]
    lines = max(title.count("\n") + 1 for title in titles)
    panel_height_in = _PANEL_WIDTH_IN * height / width + 0.15 * lines
    figure = new_figure(_PANEL_WIDTH_IN * num_columns + 1, panel_height_in * num_rows + 0.6)
    grid = figure.subplots(num_rows, num_columns, squeeze=False)
    for row, (image, title, mask) in enumerate(zip(images, titles, masks, strict=True)):
        _draw_panel(grid[row, 0], _as_colour(image), title, mask)
        for axes, (method, method_maps) in zip(grid[row, 1:], maps.items(), strict=True):
            picture = overlay(image, method_maps[row])
            _draw_panel(axes, picture, scores[method][row], None)
    for axes, name in zip(grid[0], ("image", *maps), strict=True):
        axes.set_title(_wrap(name, _PANEL_LETTERS), fontsize=10, parse_math=False)
    _add_key(figure, grid, label, masks, None)
    if heading is not None:
        add_heading(figure, heading)
    return figure


def _draw_panel(
    axes: Axes,
    picture: UInt8[np.ndarray, "h w 3"],
    text: str,
    mask: Bool[np.ndarray, "h w"] | None,
) -> None:
    height, width = picture.shape[:2]
    extent = (0.0, float(width), float(height), 0.0)
    axes.imshow(picture, extent=extent, interpolation="none")
    _outline(axes, mask, extent)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_xlabel(text, fontsize=8, labelpad=2, parse_math=False)


def _add_key(
    figure: Figure,
    grid: NDArray[np.object_],
    label: str,
    masks: Sequence[Bool[np.ndarray, "h w"] | None],
    threshold: float | None,
) -> None:
    """Add a colour bar, as in overlays of mid-grey, and the legend of the lines."""
    ramp = overlay(np.full((1, 256, 1), 128, dtype=np.uint8), np.linspace(0, 1, 256)[None])
    colours = ScalarMappable(cmap=ListedColormap(ramp[0] / 255))
    bar = figure.colorbar(colours, ax=grid, label=label, aspect=15 * len(grid), pad=0.01)
    handles = []
    if any(mask is not None for mask in masks):
        name = "annotated lesion (on the image)"
        handles.append(Line2D([], [], color=MASK_COLOUR, path_effects=halo(), label=name))
    if threshold is not None:
        bar.ax.axhline(threshold, color=THRESHOLD_COLOUR, path_effects=halo())
        name = f"theta_alpha = {threshold:g} (on the map)"
        handles.append(Line2D([], [], color=THRESHOLD_COLOUR, path_effects=halo(), label=name))
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9
        )


def _as_colour(image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w 3"]:
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def _columns_without_gaps(number: int) -> int:
    """Return the most columns, up to three, that leave no cell of a grid empty."""
    return next(columns for columns in (3, 2, 1) if number % columns == 0)


def _wrap(text: str, letters: int) -> str:
    """Wrap each line of a text; long names are broken rather than cut off."""
    return "\n".join(fill(line, letters) for line in text.split("\n"))


def _outline(
    axes: Axes,
    area: Bool[np.ndarray, "h w"] | Float[np.ndarray, "h w"] | None,
    extent: tuple[float, float, float, float],
    level: float = 0.5,
    colour: str = MASK_COLOUR,
) -> None:
    """Draw the line where an area's values pass a level, if they do."""
    if area is None or area.min() >= level or area.max() <= level:
        return
    # With an origin, the extent covers the pixels' edges, as for the image.
    left, right, bottom, top = extent
    outline = axes.contour(
        area, [level], colors=colour, origin="lower", extent=(left, right, top, bottom)
    )
    outline.set(linewidth=0.9, path_effects=halo())


def _draw_pair(
    axes: Axes,
    image: UInt8[np.ndarray, "h w c"],
    saliency: Float[np.ndarray, "h w"],
    title: str,
    mask: Bool[np.ndarray, "h w"] | None,
    threshold: float | None,
) -> None:
    """Draw image and overlay in one frame."""
    height, width = saliency.shape
    offset = _PAIR_OFFSET * width
    for left, picture in ((0.0, _as_colour(image)), (offset, overlay(image, saliency))):
        extent = (left, left + width, float(height), 0.0)
        axes.imshow(picture, extent=extent, interpolation="none")
        if left == 0:
            _outline(axes, mask, extent)
        elif threshold is not None:
            _outline(axes, saliency, extent, threshold, THRESHOLD_COLOUR)
    axes.set(xlim=(0, offset + width), ylim=(height, 0))
    axes.set_axis_off()
    axes.set_title(title, fontsize=9, parse_math=False)
