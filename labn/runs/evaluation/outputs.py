"""Output files of an evaluation, except figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from labn.data.readers.reader import SubsetName
from labn.runs.evaluation.evaluation_tables import (
    Failures,
    confusion_table,
    failure_table,
    metric_table,
    score_table,
    write_table,
)
from labn.runs.evaluation.image_scores import PerImageScores
from labn.runs.evaluation.options import EvaluationOptions
from labn.storage.files import write_atomically
from labn.training.evaluate import Evaluation

MAP_METRICS = "map_metrics.parquet"
"""The file of metrics beside PID, one row per image, method and score."""
ATTENTION = "attention.npz"
"""Some images, their attention and what they are in words: what a page shows."""
_CURVES = ["fractions", "insertion_curve", "deletion_curve"]


def remove_earlier(folder: Path) -> None:
    """Remove the files of an earlier evaluation, which this one may not overwrite."""
    for path in folder.glob("[!.]*"):
        if path.is_file():
            path.unlink()


def write_per_image_scores(
    per_image: PerImageScores, evaluation: Evaluation, subset: SubsetName, folder: Path
) -> None:
    """Write one row per image, method and score (also of metrics), the mean curves, Table 2."""
    _write_parquet(per_image.scores.drop(columns=_CURVES), folder / "scores.parquet")
    if len(per_image.localisation):
        _write_parquet(per_image.localisation, folder / "localisation.parquet")
    if len(per_image.metrics):
        _write_parquet(per_image.metrics, folder / MAP_METRICS)
        write_table(metric_table(per_image, subset), folder / "map_metrics")
    curves: dict[str, Any] = {}
    for (method, score), rows in per_image.scores.groupby(["method", "score"], sort=False):
        curves[f"{method}/{score}/fractions"] = np.array(rows["fractions"].iloc[0])
        for name in ("insertion", "deletion"):
            stacked = np.array(rows[f"{name}_curve"].tolist())
            low, high = np.quantile(stacked, (0.25, 0.75), axis=0)
            means = {"mean": stacked.mean(axis=0), "lower_quartile": low, "upper_quartile": high}
            curves |= {f"{method}/{score}/{name}_{key}": curve for key, curve in means.items()}
    if per_image.scorer.options.tolerance is None:
        write_atomically(folder / "curves.npz", lambda file: np.savez(file, **curves))
    write_table(score_table(per_image, evaluation, subset), folder / "table2")


def _write_parquet(table: pd.DataFrame, path: Path) -> None:
    write_atomically(path, lambda file: table.to_parquet(file, index=False))


def write_classification(
    evaluation: Evaluation, failures: Failures | None, subset: SubsetName, folder: Path
) -> None:
    """Write one row per image, the confusion matrix and the failures."""
    table = pd.DataFrame({"name": evaluation.names, "label": evaluation.labels.numpy()})
    table["predicted"] = evaluation.probabilities.argmax(dim=1).numpy()
    for index, column in enumerate(evaluation.probabilities.T.numpy()):
        table[f"probability_{index}"] = column
    if failures is not None:
        table["failure"] = [failures.codes.get(position, "") for position in range(len(table))]
        write_table(failure_table(failures, subset), folder / "table5")
    write_atomically(folder / "images.csv", table.to_csv(index=False))
    write_table(confusion_table(evaluation, subset), folder / "table3")


def describe_settings(options: EvaluationOptions, subset: SubsetName) -> dict[str, Any]:
    """Return how explanations were scored; runs are comparable if this is equal."""
    return {
        "split": subset,
        "methods": list(options.methods),
        "patch_sizes": list(options.patch_sizes),
        "protocol": options.protocol,
        "num_points": None
        if options.tolerance or options.protocol == "released"
        else options.num_points,
        "tolerance": options.tolerance,
        "baseline": options.baseline,
        "id_baseline": "zero",
        "order": "most important first",
        "ties": "row by row" if options.protocol == "exact" else "together",
        "num_masks": options.num_masks,
        "max_images": options.max_images,
    }


def describe(
    evaluation: Evaluation,
    class_names: Sequence[str],
    settings: dict[str, Any],
    per_image: PerImageScores | None,
    failures: Failures | None,
    metrics: dict[str, float],
    temperature: float | None,
) -> dict[str, Any]:
    """Return the metrics, and how they were measured."""
    bins = evaluation.reliability
    return {
        "metrics": metrics,
        "num_images": len(evaluation.names),
        "num_positives_scored": len(per_image.positions) if per_image else 0,
        "confusion": evaluation.classification.confusion.tolist(),
        "calibration": {
            "temperature": temperature,
            "expected_error": bins.expected_error,
            **{name: values.tolist() for name, values in vars(bins).items()},
        },
        "class_names": list(class_names),
        "settings": settings,
        "lambda_attention": per_image.layer if per_image else None,
        "failures": failures.as_json() if failures else None,
    }
