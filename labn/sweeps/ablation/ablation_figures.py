"""The figures of a study's report, drawn from the folders of its runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from labn.data.dataset import Subset
from labn.errors import UserError
from labn.report import examples_figure, save_figure
from labn.report.conditions import (
    ConditionCurves,
    ConditionDifference,
    condition_curves_figure,
    differences_figure,
    scores_figure,
    training_figure,
)
from labn.runs.comparison.compare import CLASSIFICATION, Comparison
from labn.runs.comparison.differences import Cell
from labn.runs.comparison.read_runs import ScoredRun
from labn.runs.evaluation.evaluation_figures import lesion_masks
from labn.runs.evaluation.score_image import MATCHED
from labn.runs.folder import RunFolder
from labn.runs.reporter import Reporter
from labn.runs.trained import TrainedRun

_NUM_IMAGES = 4
_TRAINING = ("val_loss", "val_pid")
_OWN_METHOD = "LABN"


def draw_study(
    comparison: Comparison, headline: str, folder: Path, reporter: Reporter
) -> dict[str, Path]:
    """Draw all figures of a study into a folder; return their files by title.

    ``headline`` is the score whose curves and maps are shown. A figure that cannot be drawn, such
    as maps where the data is not on this machine, is left out and reported.
    """
    drawers: dict[str, tuple[str, Callable[[Path], None]]] = {
        "scores": ("Scores by condition", lambda place: _draw_scores(comparison, place)),
        "differences": (
            f"Differences from {comparison.conditions[0]}",
            lambda place: _draw_differences(comparison, place),
        ),
        "training": ("Training by condition", lambda place: _draw_training(comparison, place)),
        "curves": (
            "Insertion and deletion by condition",
            lambda place: _draw_curves(comparison, headline, place),
        ),
        "maps": (
            "Attention to the same images under each condition",
            lambda place: _draw_maps(comparison, headline, place),
        ),
    }
    drawn = {}
    for name, (title, draw) in drawers.items():
        place = folder / f"{name}.png"
        place.unlink(missing_ok=True)
        try:
            draw(place)
        except UserError as error:
            reporter.message(f"no picture of {title.lower()}: {error}")
        if place.is_file():
            drawn[title] = place
    return drawn


def _draw_scores(comparison: Comparison, place: Path) -> None:
    method = comparison.reference
    scores: dict[str, dict[str, list[float]]] = {}
    for cell, summary in comparison.scores.items():
        if cell.method == method:
            scores.setdefault(cell.score, {})[cell.condition] = list(summary.by_run.values())
    for cell, summary in comparison.classification.items():
        title = CLASSIFICATION[cell.score]
        scores.setdefault(title, {})[cell.condition] = list(summary.by_run.values())
    save_figure(scores_figure(scores, method), place)


def _draw_differences(comparison: Comparison, place: Path) -> None:
    seeds = {run.name: run.seed for run in comparison.runs}
    rows: dict[str, list[ConditionDifference]] = {}
    for one in comparison.differences:
        if one.cell.method != one.other.method:
            continue
        ours, theirs = (
            {seeds[run]: value for run, value in comparison.scores[cell].by_run.items()}
            for cell in (one.cell, one.other)
        )
        pairs = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
        rows.setdefault(one.cell.score, []).append(
            ConditionDifference(one.cell.condition, one.difference, one.low, one.high, pairs)
        )
    if rows:
        save_figure(differences_figure(rows, comparison.conditions[0]), place)


def _draw_training(comparison: Comparison, place: Path) -> None:
    histories: dict[str, dict[str, list[list[float]]]] = {}
    for run, condition in zip(comparison.runs, comparison.conditions, strict=True):
        table = pd.read_csv(RunFolder(run.path).history_file)
        for metric in _TRAINING:
            if metric in table:
                values = histories.setdefault(metric, {}).setdefault(condition, [])
                values.append(table[metric].tolist())
    if histories:
        save_figure(training_figure(histories), place)


def _draw_curves(comparison: Comparison, headline: str, place: Path) -> None:
    method = comparison.reference
    found: dict[str, list[Mapping[str, Any]]] = {}
    for run, condition in zip(comparison.runs, comparison.conditions, strict=True):
        file = run.scored_in / "curves.npz"
        # Missing where each curve has points of its own.
        if file.is_file():
            with np.load(file) as content:
                key = f"{method}/{headline}"
                if f"{key}/fractions" in content:
                    found.setdefault(condition, []).append(
                        {
                            "fractions": content[f"{key}/fractions"],
                            "insertion": content[f"{key}/insertion_mean"],
                            "deletion": content[f"{key}/deletion_mean"],
                        }
                    )
    curves = {
        condition: ConditionCurves(
            runs[0]["fractions"],
            np.stack([run["insertion"] for run in runs]),
            np.stack([run["deletion"] for run in runs]),
        )
        for condition, runs in found.items()
    }
    if curves:
        save_figure(condition_curves_figure(curves, method, headline), place)


def _draw_maps(comparison: Comparison, headline: str, place: Path) -> None:
    """Draw each condition's maps of images spread evenly over the first condition's scores."""
    chosen = _one_run_each(comparison)
    if comparison.reference != _OWN_METHOD:
        return
    values = {condition: _values(run, headline) for condition, run in chosen.items()}
    values = {condition: found for condition, found in values.items() if found}
    first = next(iter(values.values()))
    order = sorted(first, key=lambda name: -first[name])
    places = np.unique(np.linspace(0, len(order) - 1, _NUM_IMAGES).round().astype(int))
    names = [order[number] for number in places]
    maps: dict[str, Float[np.ndarray, "n h w"]] = {}
    for condition in values:
        run = chosen[condition]
        trained = TrainedRun.open(run.path)
        subset = trained.load_dataset(Reporter()).subsets[comparison.subset]
        positions = _positions(names, subset, run)
        pixels = subset.pixels(np.array(positions))
        if not maps:
            images, masks = pixels, lesion_masks(subset, positions)
        maps[condition] = trained.attention(pixels, images.shape[1:3])
    texts = {
        condition: [f"PID {values[condition][name]:z.2f}" for name in names] for condition in maps
    }
    titles = [f"{order[number]}\n{number + 1} of {len(order)}" for number in places]
    seeds = ", ".join(dict.fromkeys(str(run.seed) for run in chosen.values()))
    heading = f"Attention by condition, seed {seeds}; images by {headline} of {next(iter(chosen))}"
    heading += ", from the best to the worst"
    figure = examples_figure(images, maps, texts, titles, masks, heading, "attention")
    save_figure(figure, place)


def _one_run_each(comparison: Comparison) -> dict[str, ScoredRun]:
    """Return one run per condition, all of one seed where the conditions share a seed."""
    by_condition: dict[str, dict[int, ScoredRun]] = {}
    for run, condition in zip(comparison.runs, comparison.conditions, strict=True):
        by_condition.setdefault(condition, {})[run.seed] = run
    shared = [
        seed
        for seed in next(iter(by_condition.values()))
        if all(seed in runs for runs in by_condition.values())
    ]
    return {
        condition: runs[shared[0]] if shared else next(iter(runs.values()))
        for condition, runs in by_condition.items()
    }


def _values(run: ScoredRun, score: str) -> dict[str, float]:
    table = run.scores[(run.scores["method"] == _OWN_METHOD) & (run.scores["score"] == score)]
    return dict(zip(table["name"], table["value"], strict=True))


def _positions(names: Sequence[str], subset: Subset, run: ScoredRun) -> list[int]:
    places = {name: place for place, name in enumerate(subset.names)}
    if lost := [name for name in names if name not in places]:
        raise UserError(
            f"{run.path}: its data no longer has the image {lost[0]}, which was scored; give the"
            " data back, or score the run again"
        )
    return [places[name] for name in names]


def headline_score(comparison: Comparison, preferred_patch_size: int) -> str:
    """Return the PID for curves and maps: validation's where that was scored, else the last."""
    every = dict.fromkeys(cell.score for cell in comparison.scores)
    scores = [score for score in every if not score.endswith(MATCHED)]
    preferred = Cell(
        comparison.conditions[0], comparison.reference, f"PID m={preferred_patch_size}"
    )
    return preferred.score if preferred in comparison.scores else scores[-1]
