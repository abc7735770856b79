"""Several runs in one table: scores over seeds, and which differences are more than chance.

Values come as a long table: one row an image, with the columns ``condition``, ``run`` (one seed of
that condition), ``method``, ``score``, ``name`` (of the image) and ``value``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import pandas as pd

from labn.metrics.rank_agreement import RankAgreement, rank_agreement
from labn.metrics.statistics import holm, paired_bootstrap, paired_permutation, summarise, welch


class Cell(NamedTuple):
    """What one figure of a table is about."""

    condition: str
    method: str
    score: str


Cells = Mapping[Cell, pd.DataFrame]
"""The values of each cell: a row an image, a column a run."""


@dataclass(frozen=True, kw_only=True)
class SeedSummary:
    """A figure over the runs of a condition, each of another seed; one seed has no ``sd``.

    ``num_images`` were averaged within each run; None where the figure is not such an average.
    """

    mean: float
    sd: float | None
    num_seeds: int
    num_images: int | None
    by_run: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A cell's mean score less that of another cell, and two tests of it.

    ``welch_p`` is over seeds (None where it does not apply; ``welch_reason`` says why). The
    interval from ``low`` to ``high`` and ``permutation_p`` are over images, each of which is
    averaged over the seeds before; it says nothing about seeds that were not trained. ``_holm``
    is corrected for all the differences that were tested together.
    """

    cell: Cell
    other: Cell
    difference: float
    welch_p: float | None
    welch_p_holm: float | None
    welch_reason: str | None
    num_seeds: int
    num_other_seeds: int
    low: float | None
    high: float | None
    confidence: float
    permutation_p: float
    permutation_p_holm: float | None
    num_resamples: int
    is_exact: bool
    num_images: int


@dataclass(frozen=True, kw_only=True)
class BaselineAgreement:
    """How alike the baselines, in the order of ``ranks``, rank the methods by one score."""

    condition: str
    score: str
    baselines: tuple[str, ...]
    ranks: RankAgreement


def collect(values: pd.DataFrame) -> dict[Cell, pd.DataFrame]:
    """Gather the values of each condition, method and score, in the order of the table.

    Raises:
        ValueError: an image has two values of one cell in one run.
    """
    return {
        Cell(*map(str, key)): group.pivot(index="name", columns="run", values="value")
        for key, group in values.groupby(list(Cell._fields), sort=False)
    }


def summarise_seeds(by_run: Mapping[str, float], num_images: int | None = None) -> SeedSummary:
    """Summarise one figure over the runs that have it.

    Raises:
        ValueError: there is no run, or a figure is not finite.
    """
    summary = summarise(list(by_run.values()))
    return SeedSummary(
        mean=summary.mean,
        sd=summary.sd,
        num_seeds=summary.n,
        num_images=num_images,
        by_run=dict(by_run),
    )


def summarise_cells(cells: Cells) -> dict[Cell, SeedSummary]:
    """Average each cell over images within a run, then summarise over runs (Iida 2022, 5.2).

    NaN is left out, and so are cells of NaN alone; ``num_images`` is the least that a run has.
    """
    summaries = {}
    for cell, values in cells.items():
        by_run = {str(run): float(mean) for run, mean in values.mean().dropna().items()}
        if by_run:
            num_images = int(values[list(by_run)].count().min())
            summaries[cell] = summarise_seeds(by_run, num_images)
    return summaries


def compare_cells(
    cells: Cells, reference: str, *, num_resamples: int = 10_000, seed: int = 0
) -> list[Difference]:
    """Test the reference method against every other, and its first condition against the rest.

    The Holm correction is over all of the returned differences, for each of the two tests.

    Raises:
        ValueError: a condition lacks the reference method or a score, or a run an image.
    """
    differences = [
        _compare(cells, cell, other, num_resamples, seed)
        for cell, other in _pairs(cells, reference)
    ]
    welch_p = holm([difference.welch_p for difference in differences])
    permutation_p = holm([difference.permutation_p for difference in differences])
    return [
        replace(difference, welch_p_holm=over_seeds, permutation_p_holm=over_images)
        for difference, over_seeds, over_images in zip(
            differences, welch_p, permutation_p, strict=True
        )
    ]


def _pairs(cells: Cells, reference: str) -> Iterator[tuple[Cell, Cell]]:
    for cell in cells:
        if cell.method != reference:
            yield cell._replace(method=reference), cell
    first = next(iter(cells)).condition
    for cell in cells:
        if cell.method == reference and cell.condition != first:
            yield cell, cell._replace(condition=first)


def _compare(cells: Cells, cell: Cell, other: Cell, num_resamples: int, seed: int) -> Difference:
    for needed in (cell, other):
        if needed not in cells:
            raise ValueError(f"cells: {needed} is missing")
    a, b = cells[cell], cells[other]
    if not a.index.equals(b.index) or a.isna().any(axis=None) or b.isna().any(axis=None):
        raise ValueError(f"cells: {cell} and {other} must have the same images, in every run")
    images_a, images_b = a.mean(axis="columns"), b.mean(axis="columns")
    seeds = welch(a.mean(), b.mean())
    interval = paired_bootstrap(images_a - images_b, num_resamples, seed=seed)
    images = paired_permutation(images_a, images_b, num_resamples, seed=seed)
    return Difference(
        cell=cell,
        other=other,
        difference=seeds.difference,
        welch_p=seeds.p,
        welch_p_holm=None,
        welch_reason=seeds.reason,
        num_seeds=seeds.n_a,
        num_other_seeds=seeds.n_b,
        low=interval.low,
        high=interval.high,
        confidence=interval.confidence,
        permutation_p=images.p,
        permutation_p_holm=None,
        num_resamples=images.num_resamples,
        is_exact=images.is_exact,
        num_images=images.n,
    )


def compare_baselines(values: pd.DataFrame) -> list[BaselineAgreement]:
    """Compare how the baselines rank the methods, where ``values`` has several in ``baseline``.

    A method counts if it was scored under every baseline; scores are means over images and runs.
    """
    found = []
    for (condition, score), group in values.groupby(["condition", "score"], sort=False):
        table = group.pivot_table(
            index="baseline", columns="method", values="value", aggfunc="mean", sort=False
        ).dropna(axis="columns")
        if min(table.shape) >= 2:
            found.append(
                BaselineAgreement(
                    condition=str(condition),
                    score=str(score),
                    baselines=tuple(map(str, table.index)),
                    ranks=rank_agreement(table.to_numpy()),
                )
            )
    return found


def label_conditions(settings: Sequence[Mapping[str, object]]) -> list[str]:
    """Name each run's condition by the settings that are not the same in all of the runs."""
    keys = list(dict.fromkeys(key for one in settings for key in one))
    differing = [
        key for key in keys if any(one.get(key) != settings[0].get(key) for one in settings)
    ]
    return [
        ", ".join(f"{key}={_shown(one.get(key))}" for key in differing) or "all runs"
        for one in settings
    ]


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
