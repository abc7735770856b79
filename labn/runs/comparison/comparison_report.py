"""Reports on several runs, as files: tables, tests and a figure."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from labn.data.readers.reader import SubsetName
from labn.errors import UserError
from labn.report.agreement import agreement_figure
from labn.report.html import page
from labn.report.maps import examples_figure
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
from labn.runs.comparison.seed_agreement import SeedAgreement
from labn.runs.folder import RunFolder
from labn.runs.tracked import reopened_entry
from labn.storage.files import write_atomically, write_json

logger = logging.getLogger(__name__)

_SCORES = "Scores of every run"
_NUM_SHOWN = 4
"""Images whose spread is drawn."""


@dataclass(frozen=True)
class RunReport:
    """A report as plain values and as Markdown, its folder, and its pictures by their names."""

    folder: Path
    content: dict[str, Any]
    markdown: str
    pictures: dict[str, Path]


def report_runs(
    paths: Sequence[Path],
    subset: SubsetName,
    out: Path | None,
    reference: str | None = None,
) -> RunReport:
    """Compare scored runs, and write ``report.html``, ``.md``, ``.tex``, ``.json`` and ``.png``.

    The folder is ``out``, or else ``report`` beside the first run, and in it if it is the only one,
    whose page is logged to its tracker; for a folder of an evaluation, ``report-`` and its name.

    Raises:
        UserError: a run is not scored, runs are not comparable, or the folder cannot be created.
    """
    subset = scored_subset(paths, subset)
    runs = read_runs(paths, subset)
    names = [run.name for run in runs] if len(runs) == 1 else None  # nothing differs
    comparison = compare_runs(runs, subset, reference, names)
    run, place = split_place(paths[0])
    name = "report" if place in (None, subset) else f"report-{place}"
    default = run.resolve() if len(paths) == 1 else run.resolve().parent
    folder = default / name if out is None else out
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be created ({error}); give another") from None
    report = write_report(comparison, folder)
    if len(paths) > 1:
        title = f"{len(paths)} runs, {subset} subset"
        html = page(title, [], [], report.pictures, tables(comparison))
    else:
        # Points are runs: one says no more than the table.
        pictures = {name: path for name, path in report.pictures.items() if name != _SCORES}
        html = run_page(comparison, pictures)
    write_atomically(folder / "report.html", html)
    if len(paths) == 1:
        _log(RunFolder(run), folder)
    return report


def _log(run: RunFolder, folder: Path) -> None:
    """Log a run's page to the tracker that has the run, if one has; else say why not."""
    if run.tracker_run_id is None:
        return
    try:
        config = run.load_config(needs=())
        with reopened_entry(config, run) as entry:
            entry.log_artifact(folder / "report.html", folder.name)
    except UserError as error:
        logger.warning("the page is not logged: %s", error)


def write_report(comparison: Comparison, folder: Path) -> RunReport:
    """Write a comparison as ``report.md``, ``.tex``, ``.json`` and ``.png`` into a folder."""
    pictures = _draw(comparison, folder)
    report = RunReport(folder, comparison.as_json(), _markdown(comparison, pictures), pictures)
    write_atomically(folder / "report.md", report.markdown)
    write_atomically(folder / "report.tex", _latex(comparison))
    write_json(folder / "report.json", report.content)
    return report


def _draw(comparison: Comparison, folder: Path) -> dict[str, Path]:
    """Draw the scores of every run and, of several seeds, how alike their maps are."""
    seeds: dict[tuple[str, str, str], list[float]] = {
        cell: list(one.by_run.values()) for cell, one in comparison.scores.items()
    }
    figures = {_SCORES: (seeds_figure(seeds), "report.png")}
    if found := comparison.seed_agreements:
        figures["Where seeds agree"] = (_agreement_figure(found), "agreement.png")
    for number, one in enumerate(found):
        name = f"Spread over seeds: {one.condition}"
        figures[name] = (_spread_figure(one), f"spread-{number}.png")
    for number, agreement in enumerate(comparison.metric_agreements, start=1):
        place = f"{agreement.condition} ({comparison.subset} subset)"
        values = agreement.means, agreement.tau
        drawn = metrics_figure(
            agreement.metrics, agreement.methods, agreement.is_better_high, *values, place
        )
        figures[f"Metrics of {agreement.condition}"] = (drawn, f"metrics-{number}.png")
    for figure, file in figures.values():
        save_figure(figure, folder / file)
    return {name: folder / file for name, (_, file) in figures.items()}


def _agreement_figure(found: Sequence[SeedAgreement]) -> Figure:
    return agreement_figure(
        {one.condition: one.correlation for one in found},
        {one.condition: [str(seed) for seed in one.seeds] for one in found},
        "Do the networks of several seeds look at the same places?",
    )


def _spread_figure(one: SeedAgreement) -> Figure:
    shown = slice(_NUM_SHOWN)
    return examples_figure(
        one.images[shown],
        {"mean over seeds": one.maps[shown], "2 x spread": 2 * one.spread[shown]},
        {
            "mean over seeds": [f"mean {values.mean():.2f}" for values in one.maps[shown]],
            "2 x spread": [f"mean {2 * values.mean():.2f}" for values in one.spread[shown]],
        },
        one.names[shown],
        heading=f"{one.condition}: attention of {len(one.seeds)} seeds, and twice its standard"
        " deviation",
        label="attention, or 2 x spread",
    )


def _markdown(comparison: Comparison, pictures: dict[str, Path]) -> str:
    sections = [f"## {heading}\n\n{as_markdown(table)}" for heading, table in tables(comparison)]
    title = f"# {len(comparison.runs)} run{'s' if len(comparison.runs) > 1 else ''} on the"
    shown = [f"![{name}]({path.name})\n" for name, path in pictures.items()]
    return "\n".join([f"{title} {comparison.subset} subset\n", *sections, *shown])


def _latex(comparison: Comparison) -> str:
    return "\n".join(
        ["% Needs \\usepackage{booktabs}.", *(as_latex(table) for _, table in tables(comparison))]
    )
