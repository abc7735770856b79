"""The report of a study, as Markdown, LaTeX, JSON, figures and one HTML page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from labn.report.html import page
from labn.report.tables import Cell as TableCell
from labn.report.tables import Column, Estimate, Table, as_markdown
from labn.runs.comparison.compare import Comparison, compare_runs
from labn.runs.comparison.comparison_report import write_report
from labn.runs.comparison.comparison_tables import tables
from labn.runs.comparison.differences import Cell, Difference
from labn.runs.comparison.read_runs import read_runs
from labn.runs.description import data_source
from labn.runs.evaluation.options import EvaluationOptions, prefix_of, without_absent_methods
from labn.runs.folder import RunFolder
from labn.runs.reporter import Reporter
from labn.storage.files import write_atomically, write_json
from labn.sweeps.ablation.ablation_figures import draw_study, headline_score
from labn.sweeps.ablation.ablation_study import AblationRun, AblationStudy, settings_as_text
from labn.sweeps.worker import Outcome
from labn.tracking.provenance import package_commit

_MEANS = ("pid", "pid_random", "pid_matched", "p_image", "p_bias", "auroc", "accuracy", "tss")
_OWN_METHOD = "LABN"
_SIGNIFICANT = 0.05
PICTURES = "(pictures)"
"""Stands for the pictures in the note of a study."""


@dataclass(frozen=True)
class StudySummary:
    """The runs of a study, their states, and the files of the report.

    ``note`` is Markdown: a table of the conditions, ``PICTURES`` where they go, and the details.
    """

    title: str
    folder: Path
    conditions: dict[str, dict[str, Any]]
    runs: list[dict[str, Any]]
    means: dict[str, dict[str, float]]
    note: str
    files: list[Path] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the summary as plain values."""
        return {
            "study": self.title,
            "output_dir": str(self.folder),
            "conditions": self.conditions,
            "runs": self.runs,
            "means": self.means,
            "files": [str(path) for path in self.files],
        }


def summarise(study: AblationStudy, reporter: Reporter) -> StudySummary:
    """Write the report on a study's finished runs to ``report`` in its folder; return a summary.

    Raises:
        UserError: the files of a run cannot be read.
    """
    settings = study.settings
    outcomes = {run.name: run.outcome for run in study.runs()}
    finished = [run for run in study.runs() if study.is_finished(run)]
    # The first condition comes first: the others are tested against it.
    order = list(study.conditions)
    finished.sort(key=lambda run: (order.index(run.condition), settings.seeds.index(run.seed)))
    # What is measured over all folds is not compared with what is measured over some.
    counts = Counter((run.condition, run.seed) for run in finished)
    compared = [r for r in finished if counts[r.condition, r.seed] == len(study.folds)]
    summary = StudySummary(
        title=settings.title,
        folder=settings.output_dir,
        conditions=study.differing(),
        runs=[_run_row(run, outcomes[run.name], run in finished) for run in study.runs()],
        means=_means(study, compared, outcomes),
        note=_conditions_as_markdown(study),
    )
    if compared:
        reporter.message("writing the report")
        summary = _write(study, summary, _compare(study, compared), reporter)
    write_json(settings.output_dir / "summary.json", summary.as_json())
    return summary


def _run_row(run: AblationRun, outcome: Outcome | None, is_done: bool) -> dict[str, Any]:
    state = "finished" if is_done else "failed" if outcome and outcome.state == "failed" else "open"
    return {
        "condition": run.condition,
        "seed": run.seed,
        "fold": run.fold,
        "state": state,
        "reason": outcome.reason if outcome and state == "failed" else "",
        "folder": str(run.config.output_dir),
        "metrics": outcome.metrics if outcome and is_done else {},
    }


def _means(
    study: AblationStudy, compared: Sequence[AblationRun], outcomes: dict[str, Outcome | None]
) -> dict[str, dict[str, float]]:
    means: dict[str, dict[str, float]] = {}
    for condition in study.conditions:
        runs = [run for run in compared if run.condition == condition]
        found = [outcomes[run.name] for run in runs]
        metrics = [outcome.metrics for outcome in found if outcome is not None]
        prefix = prefix_of(_scores_of(study, runs[0]).name) if runs else ""
        names = [f"{prefix}_{name}" for name in _MEANS]
        means[condition] = {
            name: fmean(one[name] for one in metrics)
            for name in names
            if metrics and all(name in one for one in metrics)
        }
    return means


def _scores_of(study: AblationStudy, run: AblationRun) -> Path:
    """Return the folder of a run's evaluation by the study."""
    evaluate, config = study.settings.evaluate, run.config
    choices = without_absent_methods(evaluate.choices(), config.model)
    folder = RunFolder(config.output_dir)
    scored = folder.evaluation(EvaluationOptions.of(config, choices).place(evaluate.split))
    # Release 0.1.0 scored on any terms in one place.
    return scored if scored.exists() else folder.evaluation(evaluate.split)


def _compare(study: AblationStudy, finished: Sequence[AblationRun]) -> Comparison:
    split = study.settings.evaluate.split
    scored = read_runs([_scores_of(study, run) for run in finished], split)
    named = [replace(one, name=run.name) for one, run in zip(scored, finished, strict=True)]
    methods = list(named[0].scores["method"].unique())
    reference = _OWN_METHOD if _OWN_METHOD in methods else methods[0]
    return compare_runs(named, split, reference, [run.condition for run in finished])


def _write(
    study: AblationStudy, summary: StudySummary, comparison: Comparison, reporter: Reporter
) -> StudySummary:
    folder = study.settings.output_dir / "report"
    folder.mkdir(parents=True, exist_ok=True)
    report = write_report(comparison, folder)
    headline = headline_score(comparison, study.base.validation.pid_patch_size)
    figures = draw_study(comparison, headline, folder, reporter)
    every = figures | report.pictures
    failures = _failures_as_lines(summary)
    sections = "".join(f"\n## {name}\n\n![{name}]({path.name})\n" for name, path in figures.items())
    lines = "".join(f"\n{line}\n" for line in failures)
    body = report.markdown.removeprefix("# ")  # a page has one title
    head = f"# {summary.title}\n\n{summary.note}{lines}"
    write_atomically(folder / "report.md", f"{head}{sections}\n{body}")
    lines_of_page = [*conclude(comparison, headline), *failures]
    html = page(summary.title, lines_of_page, _facts(study, comparison), every, tables(comparison))
    write_atomically(folder / "report.html", html)
    files = [folder / f"report.{kind}" for kind in ("html", "md", "tex", "json")]
    tables_of_note = [
        f"\n{as_markdown(table)}"
        for name, table in tables(comparison)
        if name.startswith(("Conditions: ", "Classification"))
    ]
    main = as_markdown(_main_table(comparison, headline))
    note = f"{main}\n{PICTURES}\n\n{summary.note}{''.join(tables_of_note)}"
    return replace(summary, note=note, files=[*files, *every.values()])


def _main_table(comparison: Comparison, headline: str) -> Table:
    """Return the few scores of each condition that fit at the top of a page."""
    method, classes = comparison.reference, comparison.classification
    scores = {f"{headline} of {method}": (comparison.scores, method, headline)}
    titles = comparison.classification_titles
    scores |= {title: (classes, "", name) for name, title in titles.items()}
    rows: list[tuple[TableCell, ...]] = []
    for condition in dict.fromkeys(comparison.conditions):
        row: list[TableCell] = [condition]
        for found, of, name in scores.values():
            one = found.get(Cell(condition, of, name))
            row.append(None if one is None else Estimate(one.mean, one.sd))
        rows.append((*row, classes[Cell(condition, "", "auroc")].num_seeds))
    return Table(
        columns=(
            Column("Condition"),
            *(Column(title, is_better_high=True) for title in scores),
            Column("seeds"),
        ),
        rows=tuple(rows),
        caption=f"Means over seeds on the {comparison.subset} subset.",
    )


def conclude(comparison: Comparison, headline: str) -> list[str]:
    """Return the result of a study in a few sentences: the scores, and whether they differ."""
    method, conditions = comparison.reference, list(dict.fromkeys(comparison.conditions))
    kinds = [(f"{headline} of {method}", comparison.scores, Cell("", method, headline))]
    kinds.append(("AUROC", comparison.classification, Cell("", "", "auroc")))
    lines = []
    for title, found, key in kinds:
        cells = {name: found.get(key._replace(condition=name)) for name in conditions}
        shown = [f"{name} {Estimate(c.mean, c.sd)}" for name, c in cells.items() if c]
        if shown:
            lines.append(f"{title} on the {comparison.subset} subset: {'; '.join(shown)}.")
    for one in comparison.differences:
        if one.cell.method == one.other.method == method and one.cell.score == headline:
            lines.append(_difference_as_sentence(one))
    return lines


def _difference_as_sentence(one: Difference) -> str:
    names = f"{one.cell.condition} minus {one.other.condition}: {one.difference:+.3f}"
    if one.welch_p_holm is None:
        return f"{names}; whether another training would show it is not tested."
    is_shown = "is" if one.welch_p_holm < _SIGNIFICANT else "is not"
    return (
        f"{names}; a difference {is_shown} shown over seeds (p = {one.welch_p_holm:.3f}, corrected"
        " for all tests below)."
    )


def _facts(study: AblationStudy, comparison: Comparison) -> list[tuple[str, str]]:
    name, source = study.base.data.name, data_source(study.base)
    place = "" if source == name else f" ({source})"
    images = f"{comparison.num_images} images of the {comparison.subset} subset"
    return [
        ("Data set", f"{name}{place}, {images}"),
        ("Commit", package_commit() or "not known: the program was built without git"),
        ("Written", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, labn {version('labn')}"),
        *((f"Condition {name}", settings_as_text(row)) for name, row in study.differing().items()),
    ]


def _conditions_as_markdown(study: AblationStudy) -> str:
    lines = [
        f"- **{name}**: {settings_as_text(row)}".replace("|", r"\|")
        for name, row in study.differing().items()
    ]
    return "\n".join(lines) + "\n"


def _failures_as_lines(summary: StudySummary) -> list[str]:
    missing = [run for run in summary.runs if run["state"] != "finished"]
    return [
        f"Not in this report: {run['condition']}, seed {run['seed']}"
        f"{'' if run['fold'] is None else ', fold ' + str(run['fold'])}"
        f" ({run['state']}{': ' + run['reason'] if run['reason'] else ''})"
        for run in missing
    ]
