"""Reports on several runs, as files: tables, tests and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labn.data.readers.reader import SubsetName
from labn.errors import UserError
from labn.report.seeds import seeds_figure
from labn.report.style import save_figure
from labn.report.tables import as_latex, as_markdown
from labn.runs.comparison.compare import Comparison, compare_runs
from labn.runs.comparison.comparison_tables import tables
from labn.runs.comparison.read_runs import read_runs, scored_subset, split_place
from labn.storage.files import write_atomically, write_json


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
    """Compare scored runs, and write ``report.md``, ``.tex``, ``.json`` and ``.png``.

    The folder is ``out``, or else ``report`` beside the first run; for a folder of an evaluation,
    ``report-`` and its name.

    Raises:
        UserError: a run is not scored, runs are not comparable, or the folder cannot be created.
    """
    subset = scored_subset(paths, subset)
    comparison = compare_runs(read_runs(paths, subset), subset, reference)
    run, place = split_place(paths[0])
    name = "report" if place in (None, subset) else f"report-{place}"
    folder = run.resolve().parent / name if out is None else out
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be created ({error}); give another") from None
    return write_report(comparison, folder)


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
    return report


def _markdown(comparison: Comparison) -> str:
    sections = [f"## {heading}\n\n{as_markdown(table)}" for heading, table in tables(comparison)]
    title = f"# {len(comparison.runs)} run{'s' if len(comparison.runs) > 1 else ''} on the"
    picture = "![Scores of every run](report.png)\n"
    return "\n".join([f"{title} {comparison.subset} subset\n", *sections, picture])


def _latex(comparison: Comparison) -> str:
    return "\n".join(
        ["% Needs \\usepackage{booktabs}.", *(as_latex(table) for _, table in tables(comparison))]
    )
