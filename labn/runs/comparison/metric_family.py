"""One family of tests of every metric and method, and the agreement of metrics on methods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Float64

from labn.metrics.map_metrics import find_metric
from labn.metrics.rank_agreement import rank_agreement
from labn.metrics.statistics import holm, paired_bootstrap, paired_permutation
from labn.runs.comparison.differences import Cell, Cells
from labn.runs.evaluation.measure_maps import COSTS


@dataclass(frozen=True, kw_only=True)
class MetricValue:
    """A metric's mean for one method over images, each averaged over the runs first.

    The interval is the bootstrap's. ``difference`` is from the reference method, on the same
    images; its ``p`` is of a paired permutation test, ``p_holm`` corrected for all of the family.
    All three are None for the reference itself, and p for costs, which are not tested.
    """

    cell: Cell
    is_better_high: bool
    mean: float
    low: float | None
    high: float | None
    num_images: int
    difference: float | None = None
    p: float | None = None
    p_holm: float | None = None


@dataclass(frozen=True, kw_only=True)
class MetricAgreement:
    """How metrics agree on the rank of methods in one condition: Kendall's tau-b.

    ``means`` are metrics by methods; costs are not among them.
    """

    condition: str
    metrics: tuple[str, ...]
    methods: tuple[str, ...]
    is_better_high: tuple[bool, ...]
    means: Float64[np.ndarray, "metrics methods"]
    tau: Float64[np.ndarray, "metrics metrics"]


def is_better_high(score: str) -> bool:
    """Return whether higher is better: of a metric by its registry, of ID and PID always."""
    if score.split(" ")[0] in ("ID", "PID"):
        return True
    return score not in COSTS and find_metric(score).better == "higher"


def measure_family(
    cells: Cells, reference: str, *, num_resamples: int = 10_000, seed: int = 0
) -> list[MetricValue]:
    """Return every metric of every method, tested against the reference method.

    A metric is over the images for which all methods of the condition have a value.
    """
    values = list(_values(cells, reference, num_resamples, seed))
    corrected = holm([value.p for value in values])
    return [replace(value, p_holm=p) for value, p in zip(values, corrected, strict=True)]


def _values(cells: Cells, reference: str, num_resamples: int, seed: int) -> Iterator[MetricValue]:
    for condition, score in dict.fromkeys((cell.condition, cell.score) for cell in cells):
        by_method = complete_images(cells, condition, score)
        own = by_method.get(reference)
        for method, values in by_method.items():
            interval = paired_bootstrap(values, num_resamples, seed=seed)
            value = MetricValue(
                cell=Cell(condition, method, score),
                is_better_high=is_better_high(score),
                mean=interval.mean,
                low=interval.low,
                high=interval.high,
                num_images=interval.n,
            )
            if own is not None and method != reference:
                value = replace(value, difference=float((values - own).mean()))
                if score not in COSTS:
                    test = paired_permutation(values, own, num_resamples, seed=seed)
                    value = replace(value, p=test.p)
            yield value


def complete_images(cells: Cells, condition: str, score: str) -> dict[str, pd.Series]:
    """Return each method's values by image, averaged over runs, where all methods have one.

    Methods without any value are left out.
    """
    found = {
        cell.method: values.mean(axis="columns", skipna=False).dropna()
        for cell, values in cells.items()
        if (cell.condition, cell.score) == (condition, score)
    }
    table = pd.DataFrame({method: one for method, one in found.items() if len(one)}).dropna()
    return {str(method): table[method] for method in table} if len(table) else {}


def agree(values: Sequence[MetricValue]) -> list[MetricAgreement]:
    """Return how metrics agree on the rank of the methods that all of them have, by condition.

    A condition with fewer than two metrics or methods is left out.
    """
    rows = [
        (*value.cell, value.mean, value.is_better_high)
        for value in values
        if value.cell.score not in COSTS
    ]
    table = pd.DataFrame(rows, columns=[*Cell._fields, "mean", "high"])
    found = []
    for condition, group in table.groupby("condition", sort=False):
        means = group.pivot(index="score", columns="method", values="mean")
        means = means.loc[group["score"].unique(), group["method"].unique()].dropna(axis="columns")
        if min(means.shape) < 2:
            continue
        metrics = tuple(map(str, means.index))
        high = tuple(map(is_better_high, metrics))
        signs = np.where(high, 1.0, -1.0)[:, None]
        numbers = means.to_numpy(dtype=np.float64)
        found.append(
            MetricAgreement(
                condition=str(condition),
                metrics=metrics,
                methods=tuple(map(str, means.columns)),
                is_better_high=high,
                means=numbers,
                tau=rank_agreement(signs * numbers).tau,
            )
        )
    return found
