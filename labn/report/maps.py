"""Figures of saliency maps over their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
from labn.report.style import MASK_COLOUR, add_heading, halo, new_figure

_SALIENCY_COLOURS = colormaps["inferno"]
_OPACITY_RANGE = (0.25, 0.8)
"""Opacity at saliency 0 and 1, so that the unattended image stays readable."""
_LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601)."""
_ROUNDING = 1e-6
_PAIR_WIDTH_IN, _PANEL_WIDTH_IN = 4.2, 1.55
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
    if saliency.shape != image.shape[:2]:
        raise ValueError(f"saliency: got shape {tuple(saliency.shape)}, must be {image.shape[:2]}")
    saliency = as_numbers("saliency", saliency).cpu().numpy()
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
) -> Figure:
    """Return a figure of each image beside its overlay with a saliency map in [0, 1].

    A lesion mask, if any, is outlined on both.

    Raises:
        ValueError: there are no images, or not as many titles or masks.
    """
    if not len(images):
        raise ValueError("images: got none, must be at least one")
    masks = [None] * len(images) if masks is None else masks
    samples = zip(images, maps, titles, masks, strict=True)
    num_columns = min(3, -(-len(images) // 3))
    num_rows = -(-len(images) // num_columns)
    height, width = images.shape[1:3]
    pair_height_in = _PAIR_WIDTH_IN * height / ((1 + _PAIR_OFFSET) * width) + 0.32
    figure = new_figure(_PAIR_WIDTH_IN * num_columns + 1, pair_height_in * num_rows + 0.3)
    grid = figure.subplots(num_rows, num_columns, squeeze=False)
    for axes in grid.flat[len(images) :]:
        axes.set_visible(False)
    for axes, sample in zip(grid.flat[: len(images)], samples, strict=True):
        _draw_pair(axes, *sample)
    _add_key(figure, grid, "attention", masks)
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
) -> Figure:
    """Return a figure with one row per image: every method's map in [0, 1], and its score below.

    A lesion mask, if any, is outlined in every panel (Iida 2022, Fig. 5).

    Raises:
        ValueError: there are no images, or not as many maps, scores, titles or masks.
    """
    if not len(images):
        raise ValueError("images: got none, must be at least one")
    masks = [None] * len(images) if masks is None else masks
    num_rows, num_columns = len(images), 1 + len(maps)
    height, width = images.shape[1:3]
    panel_height_in = _PANEL_WIDTH_IN * height / width + 0.3
    figure = new_figure(_PANEL_WIDTH_IN * num_columns + 1, panel_height_in * num_rows + 0.6)
    grid = figure.subplots(num_rows, num_columns, squeeze=False)
    for row, (image, title, mask) in enumerate(zip(images, titles, masks, strict=True)):
        _draw_panel(grid[row, 0], _as_colour(image), title, mask)
        for axes, (method, method_maps) in zip(grid[row, 1:], maps.items(), strict=True):
            picture = overlay(image, method_maps[row])
            _draw_panel(axes, picture, scores[method][row], mask)
    for axes, name in zip(grid[0], ("image", *maps), strict=True):
        axes.set_title(name, fontsize=10, parse_math=False)
    _add_key(figure, grid, "saliency", masks)
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
) -> None:
    """Add a colour bar, as in overlays of mid-grey, and the legend of a mask's outline."""
    ramp = overlay(np.full((1, 256, 1), 128, dtype=np.uint8), np.linspace(0, 1, 256)[None])
    colours = ScalarMappable(cmap=ListedColormap(ramp[0] / 255))
    figure.colorbar(colours, ax=grid, label=label, aspect=15 * len(grid), pad=0.01)
    if any(mask is not None for mask in masks):
        outline = Line2D([], [], color=MASK_COLOUR, path_effects=halo(), label="annotated lesion")
        figure.legend(handles=[outline], loc="outside lower center", frameon=False, fontsize=9)


def _as_colour(image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w 3"]:
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def _outline(
    axes: Axes, mask: Bool[np.ndarray, "h w"] | None, extent: tuple[float, float, float, float]
) -> None:
    if mask is None or not mask.any() or mask.all():
        return
    # With an origin, the extent covers the pixels' edges, as for the image.
    left, right, bottom, top = extent
    outline = axes.contour(
        mask, [0.5], colors=MASK_COLOUR, origin="lower", extent=(left, right, top, bottom)
    )
    outline.set(linewidth=0.9, path_effects=halo())


def _draw_pair(
    axes: Axes,
    image: UInt8[np.ndarray, "h w c"],
    saliency: Float[np.ndarray, "h w"],
    title: str,
    mask: Bool[np.ndarray, "h w"] | None,
) -> None:
    """Draw image and overlay in one frame."""
    height, width = saliency.shape
    offset = _PAIR_OFFSET * width
    for left, picture in ((0.0, _as_colour(image)), (offset, overlay(image, saliency))):
        extent = (left, left + width, float(height), 0.0)
        axes.imshow(picture, extent=extent, interpolation="none")
        _outline(axes, mask, extent)
    axes.set(xlim=(0, offset + width), ylim=(height, 0))
    axes.set_axis_off()
    axes.set_title(title, fontsize=9, parse_math=False)
