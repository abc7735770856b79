"""The picture of docs/architecture.md: what flows between the packages."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

# Name, what it does, column, row.
BOXES = {
    "data": ("files → cached\nuint8 images", 0, 0),
    "training": ("batches → weights,\ncheckpoints", 1, 0),
    "model": ("images → logits,\nattention", 1, 1),
    "explain": ("network + image\n→ map", 2, 1),
    "metrics": ("map + network\n→ numbers", 3, 1),
    "runs": ("one run's folder:\ntrain, evaluate, compare", 2, 0),
    "report": ("numbers → tables,\nfigures, pages", 3, 0),
    "tracking": ("parameters, metrics,\nfiles → MLflow", 3, -1),
    "distributed": ("one run on\nseveral workers (Ray Train)", 1, -1),
    "sweeps": ("many runs: search\n(Optuna), ablation", 2, -1),
    "config": ("YAML → validated\nsettings", 0, -1),
}
ARROWS = [
    ("data", "training", "batches"),
    ("training", "model", "forward,\nloss"),
    ("training", "runs", "best.pt"),
    ("model", "explain", ""),
    ("explain", "metrics", "maps"),
    ("runs", "explain", "best\nnetwork"),
    ("metrics", "report", "scores"),
    ("runs", "report", ""),
    ("runs", "tracking", "entries"),
    ("config", "distributed", ""),
    ("config", "data", "root, size"),
    ("distributed", "training", "process\ngroup"),
    ("sweeps", "runs", "settings"),
    ("sweeps", "distributed", ""),
]
WIDTH, HEIGHT, STEP_X, STEP_Y = 2.3, 0.95, 3.1, 1.75


def centre(name: str) -> tuple[float, float]:
    """Return where the middle of a box lies."""
    _, column, row = BOXES[name]
    return column * STEP_X, row * STEP_Y


def draw() -> Figure:
    """Draw all boxes and arrows."""
    mpl.rcParams["font.family"] = "DejaVu Sans"
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    axes = figure.subplots()
    for name, (text, _, _) in BOXES.items():
        x, y = centre(name)
        corner = (x - WIDTH / 2, y - HEIGHT / 2)
        style = FancyBboxPatch(
            corner, WIDTH, HEIGHT, "round,pad=0.05", facecolor="#eef3f8", edgecolor="#33557a"
        )
        axes.add_patch(style)
        axes.text(x, y + 0.26, f"{name}/", ha="center", va="center", weight="bold", fontsize=10)
        axes.text(x, y - 0.14, text, ha="center", va="center", fontsize=8)
    for start, end, text in ARROWS:
        (x0, y0), (x1, y1) = centre(start), centre(end)
        is_level = y0 == y1
        gap_x = (WIDTH / 2 + 0.08) * ((x1 > x0) - (x1 < x0)) if x0 != x1 else 0
        gap_y = (HEIGHT / 2 + 0.08) * ((y1 > y0) - (y1 < y0)) if not is_level else 0
        if not is_level:
            gap_x = 0
        axes.annotate(
            "",
            xy=(x1 - gap_x, y1 - gap_y),
            xytext=(x0 + gap_x, y0 + gap_y),
            arrowprops={"arrowstyle": "-|>", "color": "#555555", "shrinkA": 0, "shrinkB": 0},
        )
        axes.text(
            (x0 + x1) / 2 + (0 if is_level else 0.08),
            (y0 + y1) / 2 + (0.12 if is_level else 0),
            text,
            ha="center" if is_level else "left",
            va="bottom" if is_level else "center",
            fontsize=8,
            color="#333333",
        )
    axes.set_xlim(-1.4, 3 * STEP_X + 1.4)
    axes.set_ylim(-STEP_Y - 0.7, STEP_Y + 0.7)
    axes.set_axis_off()
    return figure


if __name__ == "__main__":
    draw().savefig(Path(__file__).parent / "images" / "data-flow.png", dpi=110)
