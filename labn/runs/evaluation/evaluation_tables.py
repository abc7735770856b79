"""Metrics, tables and kinds of failure of an evaluation."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from labn.metrics.failures import FAILURES, ErrorThresholds, classify_failures, count_failures
from labn.metrics.map_metrics import find_metric
from labn.metrics.skill import brier_skill, gandin_murphy_gerrity, quadratic_kappa
from labn.report.tables import Cell, Column, Table, as_json, as_latex, as_markdown, estimate
from labn.runs.evaluation.image_scores import PerImageScores
from labn.runs.evaluation.measure_maps import COSTS
from labn.runs.evaluation.score_image import ID, Measure, pid_name
from labn.storage.files import write_atomically
from labn.training.evaluate import Evaluation

_FAILURE_PATCH_SIZE = 16
_LOCALISATION = ("pointing_hit", "energy_inside", "auroc")


def explanation_metrics(
    per_image: PerImageScores, evaluation: Evaluation, prefix: str
) -> dict[str, float]:
    """Return the mean scores of each method, by names of letters, digits and underscores.

    ``<prefix>_pid`` is the network's own at the patch size of validation, and
    ``<prefix>_pid_matched`` the same at matched confidence; they are omitted if that was not
    scored, as is ``<prefix>_pid_over_centre``, by how much the latter is above that of the control
    ``centre``. ``<prefix>_p_image`` and ``_p_bias`` are over the scored images.
    """
    metrics = {f"{prefix}_pid_images": float(len(per_image.positions))}
    certainty = evaluation.certainty(per_image.positions)
    metrics |= {f"{prefix}_{name}": value for name, value in certainty.items()}
    scorer, options = per_image.scorer, per_image.scorer.options
    for measure in scorer.measures:
        for method in scorer.methods:
            mean = float(np.mean(list(per_image.values(method.name, measure.name).values())))
            key = _key(measure)
            metrics[f"{prefix}_{key}_{_plain(method.name)}"] = mean
            is_headline = measure.patch_size == options.preferred_patch_size
            if is_headline and key.startswith("pid_m"):
                kind = "_matched" if measure.is_matched else ""
                if method.name == "LABN":
                    metrics[f"{prefix}_pid{kind}"] = mean
                if method.name == "random":
                    metrics[f"{prefix}_pid{kind}_random"] = mean
    matched = f"{prefix}_pid_m{options.preferred_patch_size}_matched"
    if {f"{matched}_LABN", f"{matched}_centre"} <= metrics.keys():
        above = metrics[f"{matched}_LABN"] - metrics[f"{matched}_centre"]
        metrics[f"{prefix}_pid_over_centre"] = above
    if len(per_image.localisation):
        means = per_image.localisation.groupby("method", sort=False)[list(_LOCALISATION)].mean()
        for method_name, row in means.iterrows():
            for score, value in row.dropna().items():
                metrics[f"{prefix}_localisation_{score}_{_plain(str(method_name))}"] = float(value)
    if len(per_image.metrics):
        averages = per_image.metrics.groupby(["score", "method"], sort=False)["value"].mean()
        for one in averages.dropna().reset_index().to_dict("records"):
            key = f"{_plain(one['score']).lower()}_{_plain(one['method'])}"
            metrics[f"{prefix}_map_{key}"] = float(one["value"])
    return metrics


def skill_metrics(evaluation: Evaluation, prefix: str) -> dict[str, float]:
    """Return ``<prefix>_bss`` and, of three classes or more, ``_gmgs`` and ``_kappa``."""
    positive = 1 - evaluation.probabilities[:, 0].double().numpy()
    confusion = evaluation.classification.confusion.numpy()
    metrics = {f"{prefix}_bss": brier_skill(positive, (evaluation.labels > 0).numpy())}
    if len(confusion) > 2:
        metrics[f"{prefix}_gmgs"] = gandin_murphy_gerrity(confusion)
        metrics[f"{prefix}_kappa"] = quadratic_kappa(confusion)
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


def _key(measure: Measure) -> str:
    if measure.name == ID:
        return "id"
    return f"pid_m{measure.patch_size}" + ("_matched" if measure.is_matched else "")


def _plain(name: str) -> str:
    return re.sub(r"\W+", "_", name)


@dataclass(frozen=True)
class Failures:
    """The kind of failure of each failed positive, by its position in the subset.

    ``patch_size`` is m of the PID that defines failure; ``attended`` is every positive's share of
    pixels with attention above theta_alpha, by position.
    """

    codes: dict[int, str]
    attended: dict[int, float]
    patch_size: int
    thresholds: ErrorThresholds

    def as_json(self) -> dict[str, Any]:
        """Return the count of each kind, and how failures were defined."""
        return {
            **count_failures(self.codes.values()),
            "num_failed": len(self.codes),
            "num_scored": len(self.attended),
            "patch_size": self.patch_size,
            "thresholds": asdict(self.thresholds),
        }


def find_failures(per_image: PerImageScores, evaluation: Evaluation) -> Failures | None:
    """Classify the failures of the network's own maps (Table 5); None if they were not scored.

    Failure is by PID at m = 16 as in the paper, or else at the largest m that was scored.
    """
    if not any(method.name == "LABN" for method in per_image.scorer.methods):
        return None
    options = per_image.scorer.options
    sizes = options.patch_sizes
    size = _FAILURE_PATCH_SIZE if _FAILURE_PATCH_SIZE in sizes else max(sizes)
    pids = per_image.values("LABN", pid_name(size))
    scorer = per_image.scorer.only("LABN")
    theta_alpha = scorer.trained.model.theta_alpha
    predicted = evaluation.probabilities.argmax(dim=1)
    failures = Failures({}, {}, size, options.thresholds)
    for position in per_image.positions:
        saliency = torch.from_numpy(scorer.maps(position)["LABN"])[None]
        (code,) = classify_failures(
            torch.tensor([pids[scorer.subset.names[position]]]),
            predicted[position : position + 1] == evaluation.labels[position],
            saliency,
            theta_alpha,
            failures.thresholds,
        )
        failures.attended[position] = (saliency > theta_alpha).double().mean().item()
        if code is not None:
            failures.codes[position] = code
    return failures


def score_table(per_image: PerImageScores, evaluation: Evaluation, subset: str) -> Table:
    """Tabulate ID and PID of each method (Table 2)."""
    measures, options = per_image.scorer.measures, per_image.scorer.options
    rows: list[tuple[Cell, ...]] = [
        (
            method.name,
            *(estimate(list(per_image.values(method.name, m.name).values())) for m in measures),
        )
        for method in per_image.scorer.methods
    ]
    baseline = {"bias": "the bias image", "zero": "zero", "black": "black"}.get(
        options.baseline, "the blurred image"
    )
    caption = (
        f"ID and PID of explanation methods, mean ± standard deviation over the"
        f" n = {len(per_image.positions)} positive images of the {subset} subset; ID against zero,"
        f" PID against {baseline}; {_describe_curves(per_image)};"
        f" {_describe_certainty(per_image, evaluation)}; the best means are bold."
    )
    columns = (Column("Method"), *(Column(measure.name, True) for measure in measures))
    return Table(columns=columns, rows=tuple(rows), caption=caption)


def metric_table(per_image: PerImageScores, subset: str) -> Table:
    """Tabulate the metrics of maps beside PID, and the cost of each map."""
    values = per_image.metrics.dropna()
    names = list(dict.fromkeys(values["score"]))
    rows: list[tuple[Cell, ...]] = []
    for method in per_image.scorer.methods:
        own = values[values["method"] == method.name]
        cells = (own[own["score"] == name]["value"].to_numpy() for name in names)
        rows.append((method.name, *(estimate(one) if len(one) else None for one in cells)))
    better = {name: name not in COSTS and find_metric(name).better == "higher" for name in names}
    caption = (
        f"Metrics of explanations, mean ± standard deviation over the positive images of the"
        f" {subset} subset; arrows and bold where higher is better, lower elsewhere."
    )
    columns = (Column("Method"), *(Column(name, is_high) for name, is_high in better.items()))
    return Table(columns=columns, rows=tuple(rows), caption=caption)


def _describe_certainty(per_image: PerImageScores, evaluation: Evaluation) -> str:
    certainty, temperature = evaluation.certainty(per_image.positions), per_image.scorer.temperature
    text = f"mean p(x) {certainty['p_image']:.3f}, p(b) {certainty['p_bias']:.3f}"
    if temperature is None:
        return text
    return f"{text}; matched: logits divided by {temperature:.2f}, fitted on the validation subset"


def _describe_curves(per_image: PerImageScores) -> str:
    tolerance = per_image.scorer.options.tolerance
    num_points = per_image.scores.groupby("score", sort=False)["num_points"]
    if tolerance is not None:
        means = ", ".join(f"{mean:.0f} ({name})" for name, mean in num_points.mean().items())
        return f"each area to within {tolerance:g}, by {means} forward passes per map on average"
    points = ", ".join(sorted({str(n) for n in num_points.max()}, key=int))
    return f"curves of {points} points"


def confusion_table(evaluation: Evaluation, subset: str) -> Table:
    """Count true and false positives and negatives (Table 3); every class but 0 is positive."""
    confusion = evaluation.classification.confusion
    counts = {
        "TP": confusion[1:, 1:],
        "TN": confusion[:1, :1],
        "FP": confusion[:1, 1:],
        "FN": confusion[1:, :1],
    }
    rows = tuple((name, int(block.sum())) for name, block in counts.items())
    caption = f"Confusion matrix over the {len(evaluation.names)} images of the {subset} subset."
    return Table(columns=(Column(""), Column(f"{subset} images")), rows=rows, caption=caption)


def failure_table(failures: Failures, subset: str) -> Table:
    """Count each kind of failure (Table 5)."""
    counts = count_failures(failures.codes.values())
    rows = tuple((code, text, counts[code]) for code, text in FAILURES.items())
    columns = (Column("Error ID"), Column("Description"), Column(f"{subset} images"))
    caption = (
        f"Error analysis: {len(failures.codes)} of n = {len(failures.attended)} positive images of"
        f" the {subset} subset have a PID (m = {failures.patch_size}) below"
        f" {failures.thresholds.pid:g}."
    )
    return Table(columns=columns, rows=rows, caption=caption)


def write_table(table: Table, path: Path) -> None:
    """Write a table as Markdown, LaTeX and JSON."""
    write_atomically(path.with_suffix(".md"), as_markdown(table))
    write_atomically(path.with_suffix(".tex"), as_latex(table))
    write_atomically(path.with_suffix(".json"), json.dumps(as_json(table), indent=2) + "\n")
