"""The command that reports on one scored run, or compares several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from labn.cli.app import Json, SubsetChoice, SubsetOption, app, print_result
from labn.cli.progress import ConsoleReporter
from labn.errors import UserError

_STUDY_FILE = "study.yaml"


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Folders of scored runs, or of evaluations.", show_default=False),
    ],
    subset: SubsetOption = SubsetChoice.test,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The folder to write to.", show_default="report, in the run or beside several"
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="The method that all others are tested against.",
            show_default="LABN, else the first",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Report on runs that `labn evaluate` scored: one, some seeds, or several conditions.

    Writes a page that needs no network (`report.html`), the tables with their tests (`report.md`,
    `report.tex`, `report.json`) and a picture. The page of one run also has its settings, training,
    failures and maps, and is logged to its tracker. Runs that differ only in their seed are one
    condition; the others are tested against the first run's. For the folder of a study (`labn
    ablate`), rewrites the study's report. Evaluations on terms of their own are named by their
    folders, such as `RUN/evaluation/test-points33`.

    **Examples**

        labn report runs/demo

        labn report runs/idrid-0 runs/idrid-1 runs/idrid-2 runs/idrid-3

        labn report runs/full-* runs/no-kl-* --out reports/ablation

        labn report runs/*/evaluation/test-points33

        labn report runs/ablation-demo
    """
    if len(runs) == 1 and (runs[0] / _STUDY_FILE).is_file():
        _report_study(runs[0], out, as_json)
        return
    from labn.runs.comparison.comparison_report import report_runs

    written = report_runs(runs, subset.value, out, reference)
    print_result(as_json, {"out": str(written.folder)} | written.content, written.markdown.rstrip())
    if not as_json:
        typer.echo(f"written to {written.folder}", err=True)


def _report_study(folder: Path, out: Path | None, as_json: bool) -> None:
    from labn.cli.ablate import summary_as_text
    from labn.sweeps.ablation.ablation_report import summarise
    from labn.sweeps.ablation.ablation_study import read_study

    if out is not None:
        raise UserError(f"--out {out}: a study's report goes to {folder / 'report'}; leave it out")
    study = read_study(folder / _STUDY_FILE, [f"output_dir={json.dumps(str(folder))}"],
                       needs_data=False)  # fmt: skip
    with ConsoleReporter() as reporter:
        summary = summarise(study, reporter)
    print_result(as_json, summary.as_json(), summary_as_text(summary))
