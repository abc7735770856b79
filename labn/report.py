"""Figures of a run: what was attended, how faithful that is, how training went.

Made without pyplot, so neither a display nor global state is touched, and nothing is left open.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import AbstractPathEffect, withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

# Okabe and Ito's colours, which any colour vision tells apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_BLUE, _VERMILION = _COLOURS[:2]
_GREY, _MASK_COLOUR = "#595959", "cyan"
_SALIENCY_COLOURS = colormaps["inferno"]
_OPACITY_RANGE = (0.25, 0.8)
"""Of the colours where saliency is 0 and 1, so that the unattended image stays readable."""
_LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601)."""
_ROUNDING, _DPI = 1e-6, 110
_PAIR_WIDTH_IN = 4.2
_PAIR_OFFSET = 1.03
"""Of the overlay from its image, in widths of the image."""

_HISTORY_PANELS = {
    "Loss": {"train_loss": "training", "val_loss": "validation"},
    "PID": {"val_pid": "validation"},
    "Classification": {"val_auroc": "AUROC", "val_accuracy": "accuracy"},
}


def overlay(
    image: UInt8[np.ndarray, "h w c"], saliency: Float[np.ndarray, "*map"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Blend a saliency map (h, w) in [0, 1], coloured, over an image of 1 or 3 channels.

    The image is shown in grey, so that every colour means saliency, and fades as saliency grows.

    Raises:
        ValueError: the map leaves [0, 1], or has another size than the image.
    """
    if saliency.shape != image.shape[:2]:
        raise ValueError(f"saliency: got shape {saliency.shape}, must be {image.shape[:2]}")
    # NaN compares false with everything, so ask for what is right.
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
) -> Figure:
    """Show each image beside its saliency map in [0, 1], laid over it.

    A lesion mask, where there is one, is outlined on both.

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
    figure = _figure(_PAIR_WIDTH_IN * num_columns + 1, pair_height_in * num_rows + 0.3)
    grid = figure.subplots(num_rows, num_columns, squeeze=False)
    for axes in grid.flat[len(images) :]:
        axes.set_visible(False)
    for axes, sample in zip(grid.flat[: len(images)], samples, strict=True):
        _draw_pair(axes, *sample)
    # The bar shows the colours as the overlay does, over mid-grey.
    ramp = overlay(np.full((1, 256, 1), 128, dtype=np.uint8), np.linspace(0, 1, 256)[None])
    colours = ScalarMappable(cmap=ListedColormap(ramp[0] / 255))
    figure.colorbar(colours, ax=grid, label="attention", aspect=15 * num_rows, pad=0.01)
    if any(mask is not None for mask in masks):
        outline = Line2D([], [], color=_MASK_COLOUR, path_effects=_halo(), label="annotated lesion")
        figure.legend(handles=[outline], loc="outside lower center", frameon=False, fontsize=9)
    return figure


def curve_figure(
    fractions: Float[np.ndarray, " p"],
    insertion: Float[np.ndarray, "n p"],
    deletion: Float[np.ndarray, "n p"],
    pid: Float[np.ndarray, " n"],
) -> Figure:
    """Draw the mean insertion and deletion curves, their quartiles, and the area between them.

    ``fractions`` are the shares of patches taken; curves are probabilities of the true class.

    Raises:
        ValueError: there are no images.
    """
    if not len(pid):
        raise ValueError("pid: got no images, must have at least one to draw curves")
    figure = _figure(6.0, 4.8)
    axes = figure.subplots()
    _draw_curve(axes, fractions, insertion, _BLUE, "insertion")
    _draw_curve(axes, fractions, deletion, _VERMILION, "deletion")
    _shade(axes, fractions, insertion.mean(axis=0), deletion.mean(axis=0))
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="probability of the true class")
    axes.set_xlabel(f"fraction of patches inserted or deleted ({len(fractions)} points)")
    score = f"{pid.mean():.3f} ± {pid.std():.3f}"
    axes.set_title(f"PID {score} (mean ± s.d., n = {len(pid)})", fontsize=11)
    _polish(axes)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def confusion_figure(confusion: Int[np.ndarray, "c c"], class_names: Sequence[str]) -> Figure:
    """Draw a confusion matrix, rows the true class, with counts and shares of each row.

    Raises:
        ValueError: there are not as many names as classes.
    """
    num_classes = len(confusion)
    if len(class_names) != num_classes:
        raise ValueError(f"class_names: got {len(class_names)}, must be {num_classes}")
    row_totals = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(row_totals, 1)
    figure = _figure(2.2 + 1.1 * num_classes, 1.6 + 1.1 * num_classes)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (i, j), share in np.ndenumerate(shares):
        text = f"{confusion[i, j]}\n{share:.1%}" if row_totals[i] else "0\n–"
        colour = "white" if share > 0.5 else "black"
        axes.text(j, i, text, ha="center", va="center", color=colour)
    axes.set_xticks(range(num_classes), class_names, parse_math=False)
    axes.set_yticks(range(num_classes), class_names, parse_math=False)
    axes.set(xlabel="predicted class", ylabel="true class")
    edges = np.arange(num_classes - 1) + 0.5
    axes.set_xticks(edges, minor=True)
    axes.set_yticks(edges, minor=True)
    axes.grid(which="minor", color="0.75", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_color("0.75")
    axes.set_title(f"Confusion matrix (n = {confusion.sum()})", fontsize=11)
    return figure


def history_figure(history: Sequence[Mapping[str, float | int]]) -> Figure:
    """Draw loss, PID, classification scores and learning rates over the epochs of a run.

    Entries are epochs 1, 2, ... unless they hold an ``epoch``. A line marks the lowest
    ``val_loss``; every key that starts with ``learning_rate`` is drawn.

    Raises:
        ValueError: the history is empty.
    """
    if not history:
        raise ValueError("history: got no epochs, must have at least one")
    epochs = np.array([entry.get("epoch", i) for i, entry in enumerate(history, start=1)], float)
    rates = sorted({key for entry in history for key in entry if key.startswith("learning_rate")})
    names = [key.removeprefix("learning_rate").strip("_") or "all layers" for key in rates]
    panels = _HISTORY_PANELS | {"Learning rate": dict(zip(rates, names, strict=True))}
    figure = _figure(9.0, 6.0)
    grid = figure.subplots(2, 2, sharex=True)
    for axes, (title, series) in zip(grid.flat, panels.items(), strict=True):
        _draw_history(axes, epochs, history, series)
        axes.set_title(title, fontsize=11)
    for axes in grid[1]:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    losses = _series(history, "val_loss")
    if np.isfinite(losses).any():
        best = epochs[np.nanargmin(losses)]
        for axes in filter(Axes.get_lines, grid.flat):
            axes.axvline(best, color=_GREY, linestyle=":", linewidth=1.2)
        figure.suptitle(f"Best epoch: {best:g} (lowest validation loss, dotted)", fontsize=11)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG that is either whole or not there, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        figure.savefig(partial, format="png", dpi=_DPI)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _figure(width_in: float, height_in: float) -> Figure:
    figure = Figure(figsize=(width_in, height_in), layout="compressed")
    FigureCanvasAgg(figure)
    return figure


def _draw_pair(
    axes: Axes,
    image: UInt8[np.ndarray, "h w c"],
    saliency: Float[np.ndarray, "h w"],
    title: str,
    mask: Bool[np.ndarray, "h w"] | None,
) -> None:
    """Draw image and overlay in one frame, which keeps them together."""
    height, width = saliency.shape
    offset = _PAIR_OFFSET * width
    shown = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
    for left, picture in ((0.0, shown), (offset, overlay(image, saliency))):
        extent = (left, left + width, height, 0)
        axes.imshow(picture, extent=extent, interpolation="none")
        if mask is not None and mask.any() and not mask.all():
            # With an origin, the extent is that of the pixels' edges, as for the image.
            box = (*extent[:2], 0, height)
            outline = axes.contour(mask, [0.5], colors=_MASK_COLOUR, origin="lower", extent=box)
            outline.set(linewidth=0.9, path_effects=_halo())
    axes.set(xlim=(0, offset + width), ylim=(height, 0))
    axes.set_axis_off()
    axes.set_title(title, fontsize=9, parse_math=False)


def _draw_curve(
    axes: Axes,
    fractions: Float[np.ndarray, " p"],
    curves: Float[np.ndarray, "n p"],
    colour: str,
    name: str,
) -> None:
    lower, upper = np.quantile(curves, (0.25, 0.75), axis=0)
    axes.fill_between(fractions, lower, upper, color=colour, alpha=0.15, linewidth=0)
    axes.plot(fractions, curves.mean(axis=0), color=colour, label=f"{name}, mean and quartiles")


def _shade(
    axes: Axes,
    fractions: Float[np.ndarray, " p"],
    insertion: Float[np.ndarray, " p"],
    deletion: Float[np.ndarray, " p"],
) -> None:
    """Fill the area between the curves, and hatch it where it lowers PID."""
    between = (fractions, insertion, deletion)
    gains, costs = insertion > deletion, insertion < deletion
    style: dict[str, Any] = {"interpolate": True, "edgecolor": "0.6", "linewidth": 0}
    if gains.any():
        axes.fill_between(*between, gains, fc="0.5", alpha=0.15, label="adds to PID", **style)
    if costs.any():
        axes.fill_between(*between, costs, fc="none", hatch="////", label="lowers PID", **style)


def _draw_history(
    axes: Axes,
    epochs: NDArray[np.float64],
    history: Sequence[Mapping[str, float | int]],
    labels: Mapping[str, str],
) -> None:
    styles = cycle(zip(_COLOURS, "osD^", strict=True))
    for (key, label), (colour, marker) in zip(labels.items(), styles, strict=False):
        values = _series(history, key)
        if np.isfinite(values).any():
            axes.plot(epochs, values, color=colour, marker=marker, markersize=3, label=label)
    if axes.lines:
        axes.ticklabel_format(axis="y", scilimits=(-2, 4))
        axes.legend(frameon=False, fontsize=9)
    else:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=_GREY)
        axes.set_yticks([])
    _polish(axes)


def _series(history: Sequence[Mapping[str, float | int]], key: str) -> NDArray[np.float64]:
    return np.array([entry.get(key, np.nan) for entry in history], dtype=np.float64)


def _polish(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)


def _halo() -> list[AbstractPathEffect]:
    return [withStroke(linewidth=2.2, foreground="black")]
