"""The files of a part's scores, but for the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from labn.data.readers.reader import Subset
from labn.runs.evaluation.evaluation_tables import (
    Failures,
    confusion_table,
    failure_table,
    score_table,
    write_table,
)
from labn.runs.evaluation.image_scores import PositiveScores
from labn.runs.evaluation.options import EvaluationOptions
from labn.storage.files import write_atomically
from labn.training.evaluate import Evaluation

_CURVES = ["fractions", "insertion_curve", "deletion_curve"]


def remove_earlier(folder: Path) -> None:
    """Remove what an earlier scoring left and this one might not write anew."""
    for path in folder.glob("[!.]*"):
        if path.is_file():
            path.unlink()


def write_positives(positives: PositiveScores, part: Subset, folder: Path) -> None:
    """Write a row an image, method and measure, the mean curves, and Table 2."""
    _write_parquet(positives.scores.drop(columns=_CURVES), folder / "scores.parquet")
    if len(positives.localisation):
        _write_parquet(positives.localisation, folder / "localisation.parquet")
    curves: dict[str, Any] = {}
    for (method, score), rows in positives.scores.groupby(["method", "score"], sort=False):
        curves[f"{method}/{score}/fractions"] = np.array(rows["fractions"].iloc[0])
        for name in ("insertion", "deletion"):
            stacked = np.array(rows[f"{name}_curve"].tolist())
            low, high = np.quantile(stacked, (0.25, 0.75), axis=0)
            means = {"mean": stacked.mean(axis=0), "lower_quartile": low, "upper_quartile": high}
            curves |= {f"{method}/{score}/{name}_{key}": curve for key, curve in means.items()}
    if positives.scorer.options.tolerance is None:
        write_atomically(folder / "curves.npz", lambda file: np.savez(file, **curves))
    write_table(score_table(positives, part), folder / "table2")


def _write_parquet(table: pd.DataFrame, path: Path) -> None:
    write_atomically(path, lambda file: table.to_parquet(file, index=False))


def write_part(
    evaluation: Evaluation,
    failures: Failures | None,
    part: Subset,
    folder: Path,
) -> None:
    """Write a row an image, and what concerns the whole part."""
    table = pd.DataFrame({"name": evaluation.names, "label": evaluation.labels.numpy()})
    table["predicted"] = evaluation.probabilities.argmax(dim=1).numpy()
    for index, column in enumerate(evaluation.probabilities.T.numpy()):
        table[f"probability_{index}"] = column
    if failures is not None:
        table["failure"] = [failures.codes.get(position, "") for position in range(len(table))]
        write_table(failure_table(failures, part), folder / "table5")
    write_atomically(folder / "images.csv", table.to_csv(index=False))
    write_table(confusion_table(evaluation, part), folder / "table3")


def describe_settings(options: EvaluationOptions, part: Subset) -> dict[str, Any]:
    """Say on what terms explanations were scored; equal for runs that may be compared."""
    return {
        "split": part,
        "methods": list(options.methods),
        "patch_sizes": list(options.patch_sizes),
        "num_points": None if options.tolerance else options.num_points,
        "tolerance": options.tolerance,
        "baseline": options.baseline,
        "id_baseline": "zero",
        "order": "most important first",
        "ties": "row by row",
        "num_masks": options.num_masks,
        "max_images": options.max_images,
    }


def describe(
    evaluation: Evaluation,
    class_names: Sequence[str],
    settings: dict[str, Any],
    positives: PositiveScores | None,
    failures: Failures | None,
    metrics: dict[str, float],
) -> dict[str, Any]:
    """Say what was measured and how, so that a figure can be quoted with its terms."""
    return {
        "metrics": metrics,
        "num_images": len(evaluation.names),
        "num_positives_scored": len(positives.positions) if positives else 0,
        "confusion": evaluation.classification.confusion.tolist(),
        "class_names": list(class_names),
        "settings": settings,
        "lambda_attention": positives.layer if positives else None,
        "failures": failures.as_json() if failures else None,
    }
