"""The figure of a training history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from labn.report.style import COLOURS, GREY, new_figure, polish

_HISTORY_PANELS = {
    "Loss": {"train_loss": "training", "val_loss": "validation"},
    "PID": {"val_pid": "validation"},
    "Classification": {"val_auroc": "AUROC", "val_accuracy": "accuracy"},
}


def history_figure(
    history: Sequence[Mapping[str, float | int]], best_epoch: float | None = None, reason: str = ""
) -> Figure:
    """Return a figure of loss, PID, classification scores and learning rates by epoch.

    Entries are epochs 1, 2, ... unless they have an ``epoch``. A line marks ``best_epoch``, the
    best for that ``reason``; every key that starts with ``learning_rate`` is drawn.

    Raises:
        ValueError: the history is empty.
    """
    if not history:
        raise ValueError("history: got no epochs, must have at least one")
    epochs = np.array([entry.get("epoch", i) for i, entry in enumerate(history, start=1)], float)
    rates = sorted({key for entry in history for key in entry if key.startswith("learning_rate")})
    names = [key.removeprefix("learning_rate").strip("_") or "all layers" for key in rates]
    panels = _HISTORY_PANELS | {"Learning rate": dict(zip(rates, names, strict=True))}
    figure = new_figure(9.0, 6.0)
    grid = figure.subplots(2, 2, sharex=True)
    for axes, (title, series) in zip(grid.flat, panels.items(), strict=True):
        _draw_history(axes, epochs, history, series)
        axes.set_title(title, fontsize=11)
    for axes in grid[1]:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if best_epoch is not None:
        for axes in filter(Axes.get_lines, grid.flat):
            axes.axvline(best_epoch, color=GREY, linestyle=":", linewidth=1.2)
        figure.suptitle(f"Best epoch: {best_epoch:g} ({reason}, dotted)", fontsize=11)
    return figure


def _draw_history(
    axes: Axes,
    epochs: NDArray[np.float64],
    history: Sequence[Mapping[str, float | int]],
    labels: Mapping[str, str],
) -> None:
    styles = cycle(zip(COLOURS, "osD^", strict=True))
    for (key, label), (colour, marker) in zip(labels.items(), styles, strict=False):
        values = _series(history, key)
        if np.isfinite(values).any():
            axes.plot(epochs, values, color=colour, marker=marker, markersize=3, label=label)
    if axes.lines:
        axes.ticklabel_format(axis="y", scilimits=(-2, 4))
        axes.legend(frameon=False, fontsize=9)
    else:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=GREY)
        axes.set_yticks([])
    polish(axes)


def _series(history: Sequence[Mapping[str, float | int]], key: str) -> NDArray[np.float64]:
    return np.array([entry.get(key, np.nan) for entry in history], dtype=np.float64)
