"""Statistics of several runs: scores over seeds, and tests of their differences.

Values are a long table, one row per image, with the columns ``condition``, ``run`` (one seed of
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
    """The key of one value of a table."""

    condition: str
    method: str
    score: str


Cells = Mapping[Cell, pd.DataFrame]
"""The values of each cell: one row per image, one column per run."""


@dataclass(frozen=True, kw_only=True)
class SeedSummary:
    """A value over the runs of a condition, one per seed; a single seed has no ``sd``.

    Each run's value is the mean over ``num_images``, None if it is not such a mean.
    """

    mean: float
    sd: float | None
    num_seeds: int
    num_images: int | None
    by_run: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A cell's mean score minus that of another cell, and two tests of the difference.

    ``welch_p`` is over seeds (None if it does not apply, for ``welch_reason``). The interval from
    ``low`` to ``high`` and ``permutation_p`` are over images, each averaged over the seeds first:
    they do not generalise to other seeds. ``_holm`` values are corrected for all differences that
    were tested together.
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
    """The agreement of baselines, in the order of ``ranks``, on the rank of methods by a score."""

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
    """Summarise one value over the runs that have it.

    Raises:
        ValueError: there is no run, or a value is not finite.
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

    NaN is omitted, and so are cells of NaN alone; ``num_images`` is the smallest of any run.
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

    In a condition that lacks the reference, methods are tested against the first that has it.
    Each of the two tests is Holm-corrected over all returned differences.

    Raises:
        ValueError: a condition lacks the reference method or a score, or a run lacks an image.
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
    having = [cell.condition for cell in cells if cell.method == reference]
    first = having[0] if having else next(iter(cells)).condition
    for cell in cells:
        if cell.method != reference:
            own = cell._replace(method=reference)
            yield own if own in cells else own._replace(condition=first), cell
    for cell in cells:
        if cell.method == reference and cell.condition != first:
            yield cell, cell._replace(condition=first)


def _compare(cells: Cells, cell: Cell, other: Cell, num_resamples: int, seed: int) -> Difference:
    for required in (cell, other):
        if required not in cells:
            raise ValueError(f"cells: {required} is missing")
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
        num_seeds=seeds.a.n,
        num_other_seeds=seeds.b.n,
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
    """Compare how baselines rank the methods, for scores with several baselines.

    Only methods scored under every baseline count; scores are means over images and runs.
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
    """Return a label of each run's condition: the settings that differ between runs."""
    keys = list(dict.fromkeys(key for one in settings for key in one))
    differing = [
        key for key in keys if any(one.get(key) != settings[0].get(key) for one in settings)
    ]
    return [
        ", ".join(f"{key}={_as_text(one.get(key))}" for key in differing) or "all runs"
        for one in settings
    ]


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
