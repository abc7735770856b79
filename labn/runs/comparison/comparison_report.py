"""Reports on several runs, as files: tables, tests and a figure."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labn.data.readers.reader import SubsetName
from labn.errors import UserError
from labn.report.html import page
from labn.report.metrics_figure import metrics_figure
from labn.report.seeds import seeds_figure
from labn.report.style import save_figure
from labn.report.tables import as_latex, as_markdown
from labn.runs.comparison.compare import Comparison, compare_runs
from labn.runs.comparison.comparison_tables import tables
from labn.runs.comparison.read_runs import (
    read_runs,
    scored_subset,
    split_place,
)
from labn.runs.comparison.run_page import run_page
from labn.runs.folder import RunFolder
from labn.runs.tracked import reopened_entry
from labn.runs.trained import without_data
from labn.storage.files import write_atomically, write_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunReport:
    """A report as plain values and as Markdown, and its folder."""

    folder: Path
    content: dict[str, Any]
    markdown: str


def report_runs(
    paths: Sequence[Path],
    subset: SubsetName,
    out: Path | None,
    reference: str,
) -> RunReport:
    """Compare scored runs, and write ``report.html``, ``.md``, ``.tex``, ``.json`` and ``.png``.

    The folder is ``out``, or else ``report`` beside the first run, and in it if it is the only one,
    whose page is logged to its tracker; for a folder of an evaluation, ``report-`` and its name.

    Raises:
        UserError: a run is not scored, runs are not comparable, or the folder cannot be created.
    """
    subset = scored_subset(paths, subset)
    comparison = compare_runs(read_runs(paths, subset), subset, reference)
    run, place = split_place(paths[0])
    name = "report" if place in (None, subset) else f"report-{place}"
    default = run.resolve() if len(paths) == 1 else run.resolve().parent
    folder = default / name if out is None else out
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be created ({error}); give another") from None
    report = write_report(comparison, folder)
    picture = folder / "report.png"
    if len(paths) > 1:
        title = f"{len(paths)} runs, {subset} subset"
        pictures = {"Every method, run by run": picture}
        for number, one in enumerate(comparison.metric_agreements):
            pictures[f"Metrics: {one.condition}"] = folder / _metrics_picture(number)
        html = page(title, [], [], pictures, tables(comparison))
    else:
        html = run_page(comparison, picture)
    write_atomically(folder / "report.html", html)
    if len(paths) == 1:
        _log(RunFolder(run), folder)
    return report


def _log(run: RunFolder, folder: Path) -> None:
    """Log a run's page to the tracker that has the run, if one has; else say why not."""
    if run.tracker_run_id is None:
        return
    try:
        config = run.load_config(without_data())
        with reopened_entry(config, run, log_system_metrics=False) as entry:
            entry.log_artifact(folder / "report.html", folder.name)
    except UserError as error:
        logger.warning("the page is not logged: %s", error)


def write_report(comparison: Comparison, folder: Path) -> RunReport:
    """Write a comparison as ``report.md``, ``.tex``, ``.json`` and ``.png`` into a folder."""
    report = RunReport(folder, comparison.as_json(), _markdown(comparison))
    write_atomically(folder / "report.md", report.markdown)
    write_atomically(folder / "report.tex", _latex(comparison))
    write_json(folder / "report.json", report.content)
    seeds: dict[tuple[str, str, str], list[float]] = {
        cell: list(one.by_run.values()) for cell, one in comparison.scores.items()
    }
    save_figure(seeds_figure(seeds), folder / "report.png")
    for number, one in enumerate(comparison.metric_agreements):
        place = f"{one.condition} ({comparison.subset} subset)"
        parts = one.metrics, one.methods, one.is_better_high, one.means, one.tau
        save_figure(metrics_figure(*parts, place), folder / _metrics_picture(number))
    return report


def _markdown(comparison: Comparison) -> str:
    sections = [f"## {heading}\n\n{as_markdown(table)}" for heading, table in tables(comparison)]
    title = f"# {len(comparison.runs)} run{'s' if len(comparison.runs) > 1 else ''} on the"
    pictures = ["![Scores of every run](report.png)\n"]
    for number, one in enumerate(comparison.metric_agreements):
        pictures.append(f"![Metrics of {one.condition}]({_metrics_picture(number)})\n")
    return "\n".join([f"{title} {comparison.subset} subset\n", *sections, *pictures])


def _metrics_picture(number: int) -> str:
    return f"metrics-{number + 1}.png"


def _latex(comparison: Comparison) -> str:
    return "\n".join(
        ["% Needs \\usepackage{booktabs}.", *(as_latex(table) for _, table in tables(comparison))]
    )
