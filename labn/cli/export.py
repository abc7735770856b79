"""The command that writes a trained network for other programs: export."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from labn.cli.app import Json, Overrides, Run, app, print_result, require_run
from labn.cli.progress import starting


class ExportFormat(StrEnum):
    """A format of exported networks."""

    onnx = "onnx"
    pt2 = "pt2"


@app.command()
def export(
    run: Run,
    overrides: Overrides = None,
    format: Annotated[
        ExportFormat, typer.Option("--format", help="ONNX, or torch's own pt2.")
    ] = ExportFormat.onnx,
    out: Annotated[
        Path | None,
        typer.Option(help="The file.", show_default="network.FORMAT, in the run's folder"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a trained network, with its standardisation, as one file that other programs run.

    It takes images of bytes (n, size, size, channels) and returns probabilities and attention. The
    file is compared with the network, and is not written if they differ. ONNX requires `pip install
    'labn[onnx]'`.

    **Examples**

        labn export runs/demo

        labn export runs/idrid --format pt2 --out idrid.pt2
    """
    require_run(run)
    with starting():
        from labn.runs.export_network import TOLERANCE, export_network

        written = export_network(run, format.value, out, overrides or [])
    content = {
        "run": str(run),
        "out": str(written.file),
        "format": format.value,
        "largest_difference": written.largest_difference,
        "tolerance": TOLERANCE,
        "metadata": written.metadata,
    }
    differences = ", ".join(
        f"{name} {value:.1e}" for name, value in written.largest_difference.items()
    )
    text = f"{written.file}: largest differences from the network: {differences}"
    print_result(as_json, content, f"{text} (at most {TOLERANCE:g} is accepted)")
