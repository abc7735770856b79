"""Comparison of several scored runs: their scores by condition, and tests of differences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64

from labn.data.readers.reader import Subset
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
from labn.runs.comparison.read_runs import ScoredRun
from labn.runs.evaluation.evaluate_run import PREFIXES

CLASSIFICATION = {"accuracy": "accuracy", "auroc": "AUROC", "tss": "TSS"}
"""The classifier's scores, and their names in tables."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The scores of several runs, and tests of how conditions differ from the first run's.

    ``conditions`` has one entry per run. The cells of ``classification`` have no method.
    """

    subset: Subset
    reference: str
    runs: Sequence[ScoredRun]
    conditions: Sequence[str]
    scores: dict[Cell, SeedSummary]
    differences: list[Difference]
    localisation: dict[Cell, SeedSummary]
    classification: dict[Cell, SeedSummary]
    agreements: list[BaselineAgreement]

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "split": self.subset,
            "reference": self.reference,
            "settings": self.runs[0].terms,
            "num_images": len(self.runs[0].images),
            "runs": [
                {
                    "name": run.name,
                    "path": str(run.path),
                    "seed": run.seed,
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
            "baseline_agreement": [_agreement_row(one) for one in self.agreements],
        }


def compare_runs(
    runs: Sequence[ScoredRun],
    subset: Subset,
    reference: str,
    conditions: Sequence[str] | None = None,
) -> Comparison:
    """Compare runs that were scored alike, grouped by all settings but the seed.

    ``conditions`` are the names of each run's group; the default is the settings that differ.

    Raises:
        UserError: no method has the name ``reference``.
    """
    methods = list(runs[0].scores["method"].unique())
    if reference not in methods:
        raise UserError(
            f"--reference {reference}: must be one of {', '.join(methods)}."
            f"{did_you_mean(reference, methods)}"
        )
    conditions = conditions or label_conditions([run.settings for run in runs])
    scores = _joined((run.scores for run in runs), runs, conditions)
    # Of several baselines of one score, the first is reported.
    is_first = scores["baseline"] == scores.groupby("score")["baseline"].transform("first")
    cells = collect(scores[is_first])
    localised = [run.localisation for run in runs if run.localisation is not None]
    return Comparison(
        subset=subset,
        reference=reference,
        runs=runs,
        conditions=conditions,
        scores=summarise_cells(cells),
        differences=compare_cells(cells, reference),
        localisation=summarise_cells(collect(_joined(localised, runs, conditions)))
        if localised
        else {},
        classification=_classification(runs, conditions, PREFIXES[subset]),
        agreements=compare_baselines(scores),
    )


def _joined(
    tables: Iterable[pd.DataFrame], runs: Sequence[ScoredRun], conditions: Sequence[str]
) -> pd.DataFrame:
    labelled = [
        table.assign(run=run.name, condition=condition)
        for table, run, condition in zip(tables, runs, conditions, strict=True)
    ]
    return pd.concat(labelled, ignore_index=True)


def _classification(
    runs: Sequence[ScoredRun], conditions: Sequence[str], prefix: str
) -> dict[Cell, SeedSummary]:
    summaries = {}
    for condition in dict.fromkeys(conditions):
        for score in CLASSIFICATION:
            name = f"{prefix}_{score}"
            by_run = {
                run.name: run.metrics[name]
                for run, run_condition in zip(runs, conditions, strict=True)
                if run_condition == condition and name in run.metrics
            }
            if by_run:
                summary = summarise_seeds(by_run, len(runs[0].images))
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
