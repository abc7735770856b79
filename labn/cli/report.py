"""The command that compares scored runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from labn.cli.app import Json, Part, app, print_result


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of scored runs.", show_default=False)],
    split: Annotated[Part, typer.Option(help="Which part of the data.")] = Part.test,
    out: Annotated[
        Path | None,
        typer.Option(help="The folder to write to; else `report` beside the first run."),
    ] = None,
    reference: Annotated[
        str, typer.Option(help="The method that all others are tested against.")
    ] = "LABN",
    as_json: Json = False,
) -> None:
    """Compare runs that `labn evaluate` scored: seeds of one condition, or several conditions.

    Writes a table with its tests (`report.md`, `report.tex`, `report.json`) and a picture. Runs
    that differ in their seed alone are one condition; the first run's is what others are tested
    against.

    **Examples**

        labn report runs/idrid-0 runs/idrid-1 runs/idrid-2 runs/idrid-3

        labn report runs/full-* runs/no-kl-* --out reports/ablation
    """
    from labn.runs.comparison import report_runs

    written = report_runs(runs, split.value, out, reference)
    print_result(as_json, {"out": str(written.folder)} | written.content, written.markdown.rstrip())
    if not as_json:
        typer.echo(f"written to {written.folder}", err=True)
