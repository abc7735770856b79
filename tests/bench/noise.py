"""Where the noise of a search's scores comes from, by the recorded curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from labn.report.style import BLUE, VERMILION, new_figure, polish, save_figure, spread
from tests.bench.curves import RECORDED, read_curves

_NUM_LAST = 3


def spreads() -> dict[str, np.ndarray]:
    """Return how far val_pid is spread by each cause, for each point or training recorded.

    These are standard deviations; for settings, differences of a point from the mean of all points;
    for images, standard errors of the mean over them. All but "epochs" mean the last epoch.
    """
    recorded = read_curves(RECORDED)
    curves = np.array([[epoch["pid"] for epoch in curve["epochs"]] for curve in recorded])
    points = np.array([curve["point"] for curve in recorded])
    means = curves.mean(-1)
    repeated = [point for point in np.unique(points) if (points == point).sum() > 1]
    of_seeds = np.array([means[points == point, -1].std(ddof=1) for point in repeated])
    of_points = np.array([means[points == point, -1].mean() for point in repeated])
    return {
        f"settings: {len(repeated)} points, means of their seeds": np.abs(
            of_points - of_points.mean()
        ),
        f"seeds: of {len(repeated)} points": of_seeds,
        f"epochs: the last {_NUM_LAST} of {len(curves)} trainings": means[:, -_NUM_LAST:].std(
            1, ddof=1
        ),
        f"images: {curves.shape[-1]} in {len(curves)} trainings": curves[:, -1].std(-1, ddof=1)
        / np.sqrt(curves.shape[-1]),
    }


def show_noise(out: Path) -> None:
    """Print the spreads, and save their figure as ``noise.png``."""
    found = spreads()
    for name, values in found.items():
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        print(
            f"  {name}: {_rms(values):.3f} (root mean square), median {middle:.3f}, quartiles"
            f" {low:.3f} to {high:.3f}",
            flush=True,
        )
    save_figure(_figure(found), out / "noise.png")


def _figure(found: dict[str, np.ndarray]) -> Figure:
    figure = new_figure(8.0, 3.4)
    axes = figure.subplots()
    for place, values in enumerate(found.values()):
        axes.plot(values, spread(place, len(values)), ".", color=BLUE, alpha=0.4, markersize=4)
        axes.plot([_rms(values)] * 2, [place - 0.35, place + 0.35], color=VERMILION, linewidth=2)
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    axes.set_xlabel("spread of val_pid (orange: root mean square)")
    polish(axes)
    return figure


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))
