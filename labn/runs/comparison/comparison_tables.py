"""The tables of a report on several runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from statistics import fmean

from labn.report.tables import Column, Estimate, Table
from labn.runs.comparison.compare import CERTAINTY, Comparison
from labn.runs.comparison.differences import Cell, Difference, SeedSummary
from labn.runs.comparison.metric_family import MetricAgreement

_LOCALISATION = {
    "pointing_hit": Column("pointing game", is_better_high=True),
    "pointing_chance": Column("by chance"),
    "energy_inside": Column("energy inside", is_better_high=True),
    "area_share": Column("area share"),
    "auroc": Column("AUROC", is_better_high=True),
}
_SMALLEST_P = 0.001


def tables(comparison: Comparison) -> Iterator[tuple[str, Table]]:
    """Yield the tables of a report, each with its heading."""
    conditions = list(dict.fromkeys(comparison.conditions))
    for condition in conditions:
        yield f"Scores: {condition}", _method_table(comparison, condition)
    if len(conditions) > 1:
        yield f"Conditions: {comparison.reference}", _condition_table(comparison, conditions)
    if comparison.differences:
        yield "Tests", _test_table(comparison, len(conditions) > 1)
    for condition in conditions if comparison.metrics else []:
        yield f"Metrics: {condition}", _metric_table(comparison, condition)
    for agreement in comparison.metric_agreements:
        yield f"Agreement of metrics: {agreement.condition}", _metric_agreement_table(agreement)
    if comparison.localisation:
        for condition in conditions:
            yield f"Localisation: {condition}", _localisation_table(comparison, condition)
    yield "Classification", _classification_table(comparison, conditions)
    if comparison.seed_agreements:
        yield "Agreement between seeds", _seed_table(comparison)
    if comparison.agreements:
        yield "Agreement of baselines", _agreement_table(comparison)
    yield "Settings", _settings_table(comparison)
    yield "Runs", _run_table(comparison)


def _method_table(comparison: Comparison, condition: str) -> Table:
    """Lay out one condition's scores as Table 2 of the paper does (Iida 2022)."""
    cells = _of_condition(comparison.scores, condition)
    scores, methods = _scores(cells), list(dict.fromkeys(cell.method for cell in cells))
    return Table(
        columns=(Column("Method"), *(Column(score, is_better_high=True) for score in scores)),
        rows=tuple(
            (method, *(_estimate(cells, Cell(condition, method, score)) for score in scores))
            for method in methods
        ),
        caption=f"{condition}: {_terms(comparison, cells)}{_certainty(comparison, condition)}",
    )


def _condition_table(comparison: Comparison, conditions: Sequence[str]) -> Table:
    """Lay out the reference method's scores as Table 4 of the paper does (Iida 2022)."""
    scores = _scores(comparison.scores)
    cells = {
        condition: row
        for condition in conditions
        if (row := [Cell(condition, comparison.reference, score) for score in scores])[0]
        in comparison.scores
    }
    return Table(
        columns=(
            Column("Condition"),
            *(Column(score, is_better_high=True) for score in scores),
            *map(Column, CERTAINTY.values()),
            Column("seeds"),
        ),
        rows=tuple(
            (
                condition,
                *(_estimate(comparison.scores, cell) for cell in row),
                *(_estimate(comparison.certainty, Cell(condition, "", name)) for name in CERTAINTY),
                comparison.scores[row[0]].num_seeds,
            )
            for condition, row in cells.items()
        ),
        caption=f"{comparison.reference} by condition: mean ± s.d. over seeds, each the mean over"
        f" {comparison.scores[next(iter(cells.values()))[0]].num_images} images of the"
        f" {comparison.subset} subset.",
    )


def _test_table(comparison: Comparison, has_conditions: bool) -> Table:
    differences = comparison.differences
    confidence = f"{differences[0].confidence:.0%}"
    headings = (
        *("Score", "First", "Second", "Difference", f"{confidence} interval"),
        *("p (images)", "Holm (images)", "images", "p (seeds)", "Holm (seeds)", "seeds"),
    )
    num_welch = sum(difference.welch_p is not None for difference in differences)
    reasons = sorted({one.welch_reason for one in differences if one.welch_reason})
    absent = f" No p over seeds where: {'; '.join(reasons)}." if reasons else ""
    return Table(
        columns=tuple(map(Column, headings)),
        rows=tuple(_test_row(difference, has_conditions) for difference in differences),
        caption="Difference: first minus second. Over images, each averaged over the seeds: BCa"
        f" bootstrap interval and paired permutation test ({_resamples(differences)}); they hold"
        " for these trained networks. Over seeds: Welch's t-test, which assumes that the two means"
        " of one seed are independent. All are two-sided. Holm: corrected for the"
        f" {len(differences)} tests over images and the {num_welch} over seeds in this"
        f" table.{absent}",
    )


def _test_row(difference: Difference, has_conditions: bool) -> tuple[str | int | None, ...]:
    first, second = (
        f"{cell.method} ({cell.condition})" if has_conditions else cell.method
        for cell in (difference.cell, difference.other)
    )
    interval = _interval(difference.low, difference.high, "+z.3f")
    return (
        difference.cell.score,
        first,
        second,
        f"{difference.difference:+z.3f}",
        interval,
        _p(difference.permutation_p),
        _p(difference.permutation_p_holm),
        difference.num_images,
        _p(difference.welch_p),
        _p(difference.welch_p_holm),
        f"{difference.num_seeds} and {difference.num_other_seeds}",
    )


def _resamples(differences: Sequence[Difference]) -> str:
    first = differences[0]
    count = f"all {first.num_resamples}" if first.is_exact else f"{first.num_resamples} random"
    return f"{count} changes of sign"


def _metric_table(comparison: Comparison, condition: str) -> Table:
    values = [value for value in comparison.metrics if value.cell.condition == condition]
    num_tests = sum(value.p is not None for value in comparison.metrics)
    headings = (
        "Metric",
        "Better",
        "Method",
        "Mean",
        "95% interval",
        "Difference",
        "p",
        "Holm",
        "n",
    )
    rows = tuple(
        (
            value.cell.score,
            "higher" if value.is_better_high else "lower",
            value.cell.method,
            f"{value.mean:z.3f}",
            _interval(value.low, value.high, "z.3f"),
            None if value.difference is None else f"{value.difference:+z.3f}",
            _p(value.p),
            _p(value.p_holm),
            value.num_images,
        )
        for value in values
    )
    return Table(
        columns=tuple(map(Column, headings)),
        rows=rows,
        caption=f"{condition}: every metric of every method over the images on which it is defined"
        f" for all, each averaged over the runs; n is their number. Difference from"
        f" {comparison.reference}, by a two-sided paired permutation test over images. Holm:"
        f" corrected for all {num_tests} tests of metrics in this report. BCa bootstrap intervals.",
    )


def _metric_agreement_table(agreement: MetricAgreement) -> Table:
    taus = agreement.tau
    return Table(
        columns=(Column("Kendall's tau"), *map(Column, agreement.metrics)),
        rows=tuple(
            (name, *(None if math.isnan(tau) else f"{tau:z.2f}" for tau in row))
            for name, row in zip(agreement.metrics, taus, strict=True)
        ),
        caption=f"Agreement of metrics on the rank of {len(agreement.methods)} methods: 1 is the"
        " same order, -1 the reverse; each with its better direction upwards.",
    )


def _interval(low: float | None, high: float | None, form: str) -> str | None:
    return None if low is None or high is None else f"{low:{form}} to {high:{form}}"


def _localisation_table(comparison: Comparison, condition: str) -> Table:
    cells = _of_condition(comparison.localisation, condition)
    methods = dict.fromkeys(cell.method for cell in cells)
    return Table(
        columns=(Column("Method"), *_LOCALISATION.values()),
        rows=tuple(
            (method, *(_estimate(cells, Cell(condition, method, score)) for score in _LOCALISATION))
            for method in methods
        ),
        caption=f"{condition}: agreement with the annotated lesions, {_terms(comparison, cells)}"
        " Chance levels: the pointing game's of a random pixel; energy inside equals the area share"
        " for an even map; AUROC 0.5.",
    )


def _classification_table(comparison: Comparison, conditions: Sequence[str]) -> Table:
    cells, titles = comparison.classification, comparison.classification_titles
    return Table(
        columns=(
            Column("Condition"),
            *(Column(name, is_better_high=True) for name in titles.values()),
            Column("seeds"),
        ),
        rows=tuple(
            (
                condition,
                *(_estimate(cells, Cell(condition, "", score)) for score in titles),
                cells[Cell(condition, "", "accuracy")].num_seeds,
            )
            for condition in conditions
        ),
        caption=f"Classification of the {comparison.num_images} images of the"
        f" {comparison.subset} subset: mean ± s.d. over seeds{_of_folds(comparison)}.",
    )


def _of_folds(comparison: Comparison) -> str:
    return ", each the mean over folds" if comparison.runs[0].fold is not None else ""


def _seed_table(comparison: Comparison) -> Table:
    headings = ("Condition", "Mean", "Lowest", "Spread", "Seeds", "Images")
    return Table(
        columns=tuple(map(Column, headings)),
        rows=tuple(
            (
                one.condition,
                f"{fmean(one.pairs):.3f}",
                f"{min(one.pairs):.3f}",
                f"{one.spread.mean():.3f}",
                len(one.seeds),
                len(one.names),
            )
            for one in comparison.seed_agreements
        ),
        caption="Whether networks of several seeds look at the same places: Spearman's correlation"
        " of the pixels of two seeds' attention, over all pairs of seeds, averaged over the images"
        " whose maps were kept. 1 is the same order of pixels. Spread: the standard deviation of"
        " the attention over the seeds, averaged over pixels.",
    )


def _agreement_table(comparison: Comparison) -> Table:
    rows = tuple(
        (
            agreement.condition,
            agreement.score,
            agreement.baselines[i],
            agreement.baselines[j],
            f"{agreement.ranks.tau[i, j]:.3f}",
            f"{agreement.ranks.rho[i, j]:.3f}",
            agreement.ranks.num_methods,
        )
        for agreement in comparison.agreements
        for i, j in itertools.combinations(range(len(agreement.baselines)), 2)
    )
    headings = ("Condition", "Score", "Baseline", "Other baseline", "Kendall", "Spearman")
    return Table(
        columns=tuple(map(Column, (*headings, "methods"))),
        rows=rows,
        caption="Agreement of two baselines on the rank of methods: 1 is the same order, -1 the"
        " reverse.",
    )


def _settings_table(comparison: Comparison) -> Table:
    return Table(
        columns=(Column("Setting"), Column("Value")),
        rows=tuple((name, _as_text(value)) for name, value in comparison.runs[0].terms.items()),
        caption="The evaluation settings of all runs.",
    )


def _run_table(comparison: Comparison) -> Table:
    has_layers = any(run.lambda_layer for run in comparison.runs)
    has_folds = any(run.fold is not None for run in comparison.runs)
    headings = ("Run", "Seed", *(["Fold"] if has_folds else []), "Condition")
    headings += ("Lambda attention is",) if has_layers else ()
    return Table(
        columns=tuple(map(Column, headings)),
        rows=tuple(
            (
                run.name,
                run.seed,
                *([run.fold] if has_folds else []),
                condition,
                *([run.lambda_layer] if has_layers else []),
            )
            for run, condition in zip(comparison.runs, comparison.conditions, strict=True)
        ),
        caption=f"The runs of this report; runs of one condition differ in their seed and fold."
        f" They are of {len({run.fold for run in comparison.runs})} of"
        f" {comparison.runs[0].settings['data.folds']} folds."
        if has_folds
        else "The runs of this report; runs of one condition differ in their seed only.",
    )


def _of_condition(summaries: dict[Cell, SeedSummary], condition: str) -> dict[Cell, SeedSummary]:
    return {cell: one for cell, one in summaries.items() if cell.condition == condition}


def _scores(summaries: dict[Cell, SeedSummary]) -> list[str]:
    return list(dict.fromkeys(cell.score for cell in summaries))


def _estimate(summaries: dict[Cell, SeedSummary], cell: Cell) -> Estimate | None:
    summary = summaries.get(cell)
    return None if summary is None else Estimate(summary.mean, summary.sd)


def _terms(comparison: Comparison, summaries: dict[Cell, SeedSummary]) -> str:
    """Return text on the numbers of seeds and images behind one condition's values."""
    summary = next(iter(summaries.values()))
    seeds = (
        f"mean ± s.d. over {summary.num_seeds} seeds, each the mean"
        if summary.num_seeds > 1
        else "one seed, so no s.d.; the mean"
    )
    return f"{seeds} over {summary.num_images} images of the {comparison.subset} subset."


def _certainty(comparison: Comparison, condition: str) -> str:
    """Return text on how sure one condition's networks are, if that was measured."""
    found = {
        text: comparison.certainty[cell].mean
        for name, text in CERTAINTY.items()
        if (cell := Cell(condition, "", name)) in comparison.certainty
    }
    if not found:
        return ""
    values = ", ".join(f"{text} {value:.3f}" for text, value in found.items())
    return f" Means: {values}. Matched: logits divided by the temperature."


def _p(value: float | None) -> str | None:
    if value is None:
        return None
    return f"< {_SMALLEST_P}" if value < _SMALLEST_P else f"{value:.3f}"


def _as_text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
