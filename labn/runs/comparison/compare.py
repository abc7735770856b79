"""Comparison of several scored runs: their scores by condition, and tests of differences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64

from labn.data.readers.reader import SubsetName
from labn.errors import UserError, did_you_mean
from labn.runs.comparison.differences import (
    BaselineAgreement,
    Cell,
    Difference,
    SeedSummary,
    collect,
    compare_baselines,
    compare_cells,
    label_conditions,
    summarise_cells,
    summarise_seeds,
)
from labn.runs.comparison.metric_family import (
    MetricAgreement,
    MetricValue,
    agree,
    measure_family,
)
from labn.runs.comparison.read_runs import ScoredRun
from labn.runs.comparison.seed_agreement import SeedAgreement, compare_seeds
from labn.runs.evaluation.score_image import MATCHED

CLASSIFICATION = {
    "accuracy": "accuracy",
    "auroc": "AUROC",
    "tss": "TSS",
    "kappa": "quadratic kappa",
}
"""The classifier's scores, and their names in tables."""
CERTAINTY = {
    "p_image": "p(x)",
    "p_bias": "p(b)",
    "ece": "ECE",
    "temperature": "temperature",
    "attended_area": "attended area",
}
"""What PID alone hides: how sure the classifier is, and the share of an image that LABN attends."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The scores of several runs, and tests of how conditions differ from the first run's.

    ``conditions`` has one entry per run. The cells of ``classification`` have no method.
    """

    subset: SubsetName
    reference: str
    runs: Sequence[ScoredRun]
    conditions: Sequence[str]
    scores: dict[Cell, SeedSummary]
    differences: list[Difference]
    localisation: dict[Cell, SeedSummary]
    classification: dict[Cell, SeedSummary]
    certainty: dict[Cell, SeedSummary]
    agreements: list[BaselineAgreement]
    metrics: list[MetricValue]
    """Every metric of every method, with PID at the largest m, where all runs have metrics."""
    metric_agreements: list[MetricAgreement]
    seed_agreements: list[SeedAgreement]

    @property
    def num_images(self) -> int:
        """The number of images in the subset, over all folds."""
        return _num_images(self.runs)

    @property
    def classification_titles(self) -> dict[str, str]:
        """The classifier's scores by name; the kappa of ordered classes only where there is one."""
        has_kappa = any(cell.score == "kappa" for cell in self.classification)
        return {n: title for n, title in CLASSIFICATION.items() if has_kappa or n != "kappa"}

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "split": self.subset,
            "reference": self.reference,
            "settings": self.runs[0].terms,
            "num_images": self.num_images,
            "runs": [
                {
                    "name": run.name,
                    "path": str(run.path),
                    "seed": run.seed,
                    "fold": run.fold,
                    "condition": condition,
                    "lambda_attention": run.lambda_layer,
                }
                for run, condition in zip(self.runs, self.conditions, strict=True)
            ],
            "scores": _summary_rows(self.scores),
            "differences": [
                asdict(difference)
                | {"cell": difference.cell._asdict(), "other": difference.other._asdict()}
                for difference in self.differences
            ],
            "localisation": _summary_rows(self.localisation),
            "classification": _summary_rows(self.classification),
            "certainty": _summary_rows(self.certainty),
            "seed_agreement": [one.as_json() for one in self.seed_agreements],
            "baseline_agreement": [_agreement_row(one) for one in self.agreements],
            "metrics": [asdict(one) | {"cell": one.cell._asdict()} for one in self.metrics],
            "metric_agreement": [
                asdict(one) | {"means": one.means.tolist(), "tau": _without_nan(one.tau)}
                for one in self.metric_agreements
            ],
        }


def compare_runs(
    runs: Sequence[ScoredRun],
    subset: SubsetName,
    reference: str | None = None,
    conditions: Sequence[str] | None = None,
) -> Comparison:
    """Compare runs that were scored alike, grouped by all settings but the seed and the fold.

    All methods are tested against ``reference``, by default LABN, or the first where none has it.
    ``conditions`` are the names of each run's group; the default is those of a study's folders, or
    the settings that differ.

    Raises:
        UserError: no method has the name ``reference``.
    """
    methods = list(dict.fromkeys(name for run in runs for name in run.scores["method"].unique()))
    if reference is None:
        reference = "LABN" if "LABN" in methods else methods[0]
    if reference not in methods:
        raise UserError(
            f"--reference {reference}: must be one of {', '.join(methods)}."
            f"{did_you_mean(reference, methods)}"
        )
    conditions = conditions or _name_conditions(runs)
    samples = _samples(runs, conditions, subset)
    scores = _joined([run.scores for run in runs], samples, conditions)
    # Of several baselines of one score, the first is reported.
    is_first = scores["baseline"] == scores.groupby("score")["baseline"].transform("first")
    cells = collect(scores[is_first])
    localised = [run.localisation for run in runs]
    family = _family(runs, samples, conditions, scores[is_first], reference)
    return Comparison(
        subset=subset,
        reference=reference,
        runs=runs,
        conditions=conditions,
        scores=summarise_cells(cells),
        differences=compare_cells(cells, reference),
        localisation=summarise_cells(collect(_joined(localised, samples, conditions)))
        if any(one is not None for one in localised)
        else {},
        classification=_metrics(runs, samples, conditions, CLASSIFICATION),
        certainty=_metrics(runs, samples, conditions, CERTAINTY),
        agreements=compare_baselines(scores),
        metrics=family,
        metric_agreements=agree(family),
        seed_agreements=compare_seeds(runs, conditions),
    )


def _family(
    runs: Sequence[ScoredRun],
    samples: Sequence[str],
    conditions: Sequence[str],
    scores: pd.DataFrame,
    reference: str,
) -> list[MetricValue]:
    """Test the metrics beside PID, and PID at the largest m, as one family."""
    tables = [run.map_metrics for run in runs]
    if any(table is None for table in tables):
        return []
    of_pid = [name for name in scores["score"].unique() if name.startswith("PID")]
    headline = [name for name in of_pid if not name.endswith(MATCHED)][-1:]
    values = pd.concat(
        [scores[scores["score"].isin(headline)], _joined(tables, samples, conditions)]
    )
    return measure_family(collect(values), reference)


def _num_images(runs: Sequence[ScoredRun]) -> int:
    return len({name for run in runs for name in run.images["name"]})


def _name_conditions(runs: Sequence[ScoredRun]) -> list[str]:
    """Return the names of a study's folders, if these are runs of one, else what differs."""
    labels = label_conditions([run.settings for run in runs])
    folders = [run.path.resolve().parent for run in runs]
    is_study = all(run.path.name.startswith(f"seed-{run.seed}") for run in runs)
    pairs = set(zip(labels, folders, strict=True))
    is_one_to_one = len(pairs) == len(set(labels)) == len({folder.name for folder in folders})
    return [folder.name for folder in folders] if is_study and is_one_to_one else labels


def _samples(runs: Sequence[ScoredRun], conditions: Sequence[str], subset: SubsetName) -> list[str]:
    """Return the name of each run's sample: its own, or that of the first of its folds.

    The folds of one condition and seed validate different images, which are scored as one sample.
    """
    firsts: dict[tuple[str, int], str] = {}
    return [
        run.name
        if subset != "validation" or run.fold is None
        else firsts.setdefault((condition, run.seed), run.name)
        for run, condition in zip(runs, conditions, strict=True)
    ]


def _joined(
    tables: Sequence[pd.DataFrame | None], samples: Sequence[str], conditions: Sequence[str]
) -> pd.DataFrame:
    labelled = [
        table.assign(run=sample, condition=condition)
        for table, sample, condition in zip(tables, samples, conditions, strict=True)
        if table is not None
    ]
    return pd.concat(labelled, ignore_index=True)


def _metrics(
    runs: Sequence[ScoredRun],
    samples: Sequence[str],
    conditions: Sequence[str],
    scores: Iterable[str],
) -> dict[Cell, SeedSummary]:
    """Summarise each score over the samples; that of a sample of folds is the mean over them."""
    summaries = {}
    for condition in dict.fromkeys(conditions):
        for score in scores:
            values: dict[str, list[float]] = {}
            for run, sample, run_condition in zip(runs, samples, conditions, strict=True):
                name = f"{run.prefix}_{score}"
                if run_condition == condition and name in run.metrics:
                    values.setdefault(sample, []).append(run.metrics[name])
            if values:
                by_run = {sample: fmean(one) for sample, one in values.items()}
                summary = summarise_seeds(by_run, _num_images(runs))
                summaries[Cell(condition, "", score)] = summary
    return summaries


def _summary_rows(summaries: dict[Cell, SeedSummary]) -> list[dict[str, Any]]:
    return [cell._asdict() | asdict(summary) for cell, summary in summaries.items()]


def _agreement_row(agreement: BaselineAgreement) -> dict[str, Any]:
    return {
        "condition": agreement.condition,
        "score": agreement.score,
        "baselines": list(agreement.baselines),
        "kendall_tau": _without_nan(agreement.ranks.tau),
        "spearman_rho": _without_nan(agreement.ranks.rho),
        "num_methods": agreement.ranks.num_methods,
    }


def _without_nan(values: Float64[np.ndarray, "k k"]) -> list[list[float | None]]:
    """Replace NaN, which JSON lacks, by None."""
    return [[None if math.isnan(value) else value for value in row] for row in values.tolist()]
