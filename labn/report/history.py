"""The figure of a training history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from labn.report.style import GREY, add_heading, looks, new_figure, polish

_PARTS = {"lpb": "CE of the LPB", "lab": "CE of the LAB", "kl": "KL", "area": "area"}
_HISTORY_PANELS = {
    "Loss": {"train_loss": "training", "val_loss": "validation"},
    "PID": {"val_pid": "validation", "val_pid_over_centre": "minus a centred Gaussian's"},
    "Classification": {"val_auroc": "AUROC", "val_accuracy": "accuracy"},
    "Parts of the training loss": {f"train_loss_{key}": name for key, name in _PARTS.items()},
    "Parts of the validation loss": {f"val_loss_{key}": name for key, name in _PARTS.items()},
}
_CHANCE_AUROC = 0.5


def history_figure(
    history: Sequence[Mapping[str, float | int]],
    best_epoch: float | None = None,
    reason: str = "",
    random_pid: float | None = None,
) -> Figure:
    """Return a figure of the losses, PID, classification scores and learning rates by epoch.

    Entries are epochs 1, 2, ... unless they have an ``epoch``. A line marks ``best_epoch``, the
    best for that ``reason``; every key that starts with ``learning_rate`` is drawn. Levels of
    chance are marked: an AUROC of 0.5, and ``random_pid``, the PID of random maps.

    Raises:
        ValueError: the history is empty.
    """
    if not history:
        raise ValueError("history: got no epochs, must have at least one")
    epochs = np.array([entry.get("epoch", i) for i, entry in enumerate(history, start=1)], float)
    rates = sorted({key for entry in history for key in entry if key.startswith("learning_rate")})
    names = [key.removeprefix("learning_rate").strip("_") or "all layers" for key in rates]
    panels = _HISTORY_PANELS | {"Learning rate": dict(zip(rates, names, strict=True))}
    figure = new_figure(12.0, 6.4)
    grid = figure.subplots(2, 3, sharex=True)
    for axes, (title, series) in zip(grid.flat, panels.items(), strict=True):
        _draw_history(axes, epochs, history, series)
        if title == "Classification":
            _mark_level(axes, _CHANCE_AUROC, "AUROC by chance")
        elif title == "PID" and random_pid is not None:
            _mark_level(axes, random_pid, "random maps, best epoch")
        if axes.lines:
            axes.legend(frameon=False, fontsize=9)
        axes.set_title(title, fontsize=11)
    for axes in grid[1]:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if best_epoch is not None:
        for axes in filter(Axes.get_lines, grid.flat):
            axes.axvline(best_epoch, color=GREY, linestyle=":", linewidth=1.2)
        add_heading(figure, f"Best epoch: {best_epoch:g} ({reason}, dotted)")
    return figure


def _draw_history(
    axes: Axes,
    epochs: NDArray[np.float64],
    history: Sequence[Mapping[str, float | int]],
    labels: Mapping[str, str],
) -> None:
    drawn: dict[str, NDArray[np.float64]] = {}
    for key, label in labels.items():
        values = _series(history, key)
        if np.isfinite(values).any():
            # Of lines that coincide only one could be seen.
            same = (one for one in drawn if np.array_equal(drawn[one], values, equal_nan=True))
            if (twin := next(same, None)) is None:
                drawn[label] = values
            else:
                drawn[f"{twin} and {label}"] = drawn.pop(twin)
    for (label, values), look in zip(drawn.items(), looks(len(drawn)), strict=True):
        axes.plot(epochs, values, markersize=3.5, label=label, **look)
    if axes.lines:
        axes.ticklabel_format(axis="y", scilimits=(-2, 4))
    else:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=GREY)
        axes.set_yticks([])
    polish(axes)


def _mark_level(axes: Axes, level: float, label: str) -> None:
    if axes.lines:
        axes.axhline(level, color=GREY, linestyle=(0, (1, 2)), linewidth=1, label=label, zorder=1)


def _series(history: Sequence[Mapping[str, float | int]], key: str) -> NDArray[np.float64]:
    return np.array([entry.get(key, np.nan) for entry in history], dtype=np.float64)
