"""Figures of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from labn.data.dataset import Subset
from labn.data.readers.reader import SubsetName
from labn.metrics.failures import FAILURES
from labn.report import (
    MethodCurves,
    attention_sheet,
    confusion_figure,
    examples_figure,
    method_curves_figure,
    reliability_figure,
    save_figure,
)
from labn.runs.evaluation.evaluation_tables import Failures
from labn.runs.evaluation.image_scores import PerImageScores
from labn.runs.trained import TrainedRun
from labn.training.evaluate import Evaluation

_NUM_EXAMPLES = 4
_NUM_FAILURES_SHOWN = 9


def run_and_subset(trained: TrainedRun, subset: SubsetName) -> str:
    """Return the words by which headings name what a figure is of."""
    return f"{trained.folder.path.resolve().name} ({subset} subset)"


def draw_curves(per_image: PerImageScores, score: str, place: str, path: Path) -> None:
    """Draw the mean curves of each method for one score."""
    methods = {}
    for method in per_image.scorer.methods:
        rows = per_image.rows(method.name, score)
        insertion, deletion, values = (
            np.array(rows[column].tolist())
            for column in ("insertion_curve", "deletion_curve", "value")
        )
        methods[method.name] = MethodCurves(insertion, deletion, values)
    fractions = np.array(rows["fractions"].iloc[0])
    save_figure(method_curves_figure(fractions, methods, score, place), path)


def draw_confusion(
    evaluation: Evaluation, class_names: Sequence[str], place: str, path: Path
) -> None:
    """Draw the confusion matrix."""
    confusion = evaluation.classification.confusion.numpy()
    save_figure(confusion_figure(confusion, class_names, place), path)


def draw_reliability(evaluation: Evaluation, place: str, path: Path) -> None:
    """Draw the accuracy by confidence."""
    bins = evaluation.reliability
    values = bins.confidence.numpy(), bins.accuracy.numpy(), bins.counts.numpy()
    save_figure(reliability_figure(*values, bins.expected_error, place), path)


def draw_attention(
    maps: Float[np.ndarray, "n h w"],
    positions: Sequence[int],
    subset: Subset,
    titles: Sequence[str],
    path: Path,
    heading: str,
    theta_alpha: float,
) -> None:
    """Draw the network's attention beside the images at these positions."""
    images = subset.pixels(np.array(positions))
    masks = lesion_masks(subset, positions)
    sheet = attention_sheet(images, maps, titles, masks, heading, theta_alpha)
    save_figure(sheet, path)


def draw_spread(
    maps: Float[np.ndarray, "n h w"],
    views: Float[np.ndarray, "v n h w"],
    positions: Sequence[int],
    subset: Subset,
    path: Path,
    place: str,
) -> None:
    """Draw attention beside its mean and spread over flips and small shifts of the images."""
    by_name = {"attention": maps, "mean over views": views.mean(axis=0)}
    by_name["2 x spread"] = 2 * views.std(axis=0)
    figure = examples_figure(
        subset.pixels(np.array(positions)),
        by_name,
        {name: [f"mean {one.mean():.2f}" for one in shown] for name, shown in by_name.items()},
        [subset.names[position] for position in positions],
        lesion_masks(subset, positions),
        f"Attention of {place} over {len(views)} views of each image: as it is, mirrored, slightly"
        " shifted; and twice its standard deviation",
        label="attention, or 2 x spread",
    )
    save_figure(figure, path)


def draw_examples(
    per_image: PerImageScores, evaluation: Evaluation, score: str, place: str, path: Path
) -> None:
    """Draw every method's maps of four images, from the best to the worst score (Fig. 5).

    The images are spaced evenly in the order of the first method's scores. All maps but the
    network's attention are stretched to [0, 1].
    """
    scorer, first = per_image.scorer, per_image.scorer.methods[0].name
    values = {m.name: per_image.values(m.name, score) for m in scorer.methods}
    names = scorer.subset.names
    order = sorted(per_image.positions, key=lambda position: -values[first][names[position]])
    places = np.unique(np.linspace(0, len(order) - 1, _NUM_EXAMPLES).round().astype(int))
    shown = [order[place] for place in places]
    maps = [scorer.maps(position) for position in shown]
    by_method = {
        name: np.stack([one[name] if name == "LABN" else _stretch(one[name]) for one in maps])
        for name in values
    }
    texts = {
        name: [f"{score.split()[0]} {scores[names[position]]:z.2f}" for position in shown]
        for name, scores in values.items()
    }
    classes = scorer.trained.class_names
    titles = [
        f"{names[position]}\n{number + 1} of {len(order)},"
        f" {prediction(classes, evaluation, position)}"
        for position, number in zip(shown, places, strict=True)
    ]
    images = scorer.subset.pixels(np.array(shown))
    masks = lesion_masks(scorer.subset, shown)
    heading = f"Images of {place} by {score} of {first}, from the best to the worst"
    heading += "; all maps but LABN's are stretched to [0, 1]"
    save_figure(examples_figure(images, by_method, texts, titles, masks, heading), path)


def draw_failures(
    failures: Failures, per_image: PerImageScores, evaluation: Evaluation, folder: Path
) -> None:
    """Draw the network's failed maps, one sheet per kind, the first by name."""
    scorer = per_image.scorer.only("LABN")
    subset, theta_alpha = scorer.subset, scorer.trained.model.theta_alpha
    pids = per_image.values("LABN", f"PID m={failures.patch_size}")
    for code, meaning in FAILURES.items():
        positions = [position for position, found in failures.codes.items() if found == code]
        shown = positions[:_NUM_FAILURES_SHOWN]
        if not shown:
            continue
        maps = np.stack([scorer.maps(position)["LABN"] for position in shown])
        titles = [
            f"{subset.names[position]}, PID {pids[subset.names[position]]:z.2f}\n"
            f"{prediction(scorer.trained.class_names, evaluation, position)},"
            f" attended {failures.attended[position]:.1%}"
            for position in shown
        ]
        first = f", the first {len(shown)} by name" if len(shown) < len(positions) else ""
        heading = (
            f"{code}, {meaning}: {len(positions)} of {len(failures.codes)} failures"
            f" (PID m={failures.patch_size} below {failures.thresholds.pid:g}){first}; attended:"
            " the share of the image where attention is above theta_alpha"
        )
        path = folder / f"failures-{code}.png"
        draw_attention(maps, shown, subset, titles, path, heading, theta_alpha)


def prediction(class_names: Sequence[str], evaluation: Evaluation, position: int) -> str:
    """Return the class that one image was taken for, its probability, and whether it is right."""
    probability, predicted = evaluation.probabilities[position].max(dim=0)
    verdict = "right" if predicted == evaluation.labels[position] else "wrong"
    return f"{verdict}: {class_names[int(predicted)]} ({probability:.2f})"


def lesion_masks(
    subset: Subset, positions: Sequence[int]
) -> list[Bool[np.ndarray, "h w"] | None] | None:
    """Return the lesion masks of images, None where they are unknown."""
    if subset.masks is None:
        return None
    return [
        subset.masks[subset.indices[position]] if subset.has_mask[position] else None
        for position in positions
    ]


def _stretch(saliency: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    low, high = saliency.min(), saliency.max()
    if low == high:
        return np.zeros_like(saliency)
    stretched: Float[np.ndarray, "h w"] = (saliency - low) / (high - low)
    return stretched
