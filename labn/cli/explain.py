"""The command that explains any images by a trained network: explain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labn.cli.app import Images, Json, Overrides, Run, app, print_result, require_run
from labn.cli.progress import ConsoleReporter, starting

if TYPE_CHECKING:
    from labn.runs.explain_images import Explanations

_NUM_SHOWN = 20
_NUM_IGNORED_SHOWN = 5


@app.command()
def explain(
    run: Run,
    images: Images,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="The folder for maps, overlays and the table.")] = Path(
        "explanations"
    ),
    methods: Annotated[
        str | None,
        typer.Option(help="Maps by other methods too, as those of `labn evaluate`; all."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show where a trained network looks in any images: maps, overlays, a table.

    Requires no data set. Maps made earlier by the same network are kept. Exits with 2 if an image
    could not be read; the others are still explained.

    **Examples**

        labn explain runs/demo eye.jpg

        labn explain runs/idrid ~/eyes --out explanations/idrid train.device=cpu

        labn explain runs/demo eye.jpg --methods "Grad-CAM,lambda attention"
    """
    require_run(run)
    with starting():
        from labn.runs.explain_images import explain_images

    with ConsoleReporter() as reporter:
        names = [] if methods is None else methods.split(",")
        explained = explain_images(run, images, out, overrides or [], reporter, names)
    content = {
        "run": str(run),
        "out": str(out),
        "table": str(explained.table_file),
        "images": explained.rows,
        "num_kept": explained.num_kept,
        "unreadable": explained.unreadable,
        "ignored": explained.ignored,
    }
    print_result(as_json, content, _explanations_as_text(explained))
    raise typer.Exit(2 if explained.unreadable else 0)


def _explanations_as_text(explained: Explanations) -> str:
    width = max(len(row["file"]) for row in explained.rows)
    lines = [
        f"{row['file']:{width}}  {row['predicted']} {row['probability_' + row['predicted']]:.3f}"
        + (f"  peak at ({row['peak_x']}, {row['peak_y']})" if "peak_x" in row else "")
        for row in explained.rows
    ]
    lines[_NUM_SHOWN:] = [f"and {len(lines) - _NUM_SHOWN} more"] if len(lines) > _NUM_SHOWN else []
    kept = f", {explained.num_kept} of them earlier" if explained.num_kept else ""
    lines.append(f"{len(explained.rows)} explained{kept}: {explained.table_file}")
    if explained.ignored:
        more = ", ..." if len(explained.ignored) > _NUM_IGNORED_SHOWN else ""
        shown = ", ".join(explained.ignored[:_NUM_IGNORED_SHOWN])
        lines.append(f"{len(explained.ignored)} skipped, not images: {shown}{more}")
    if explained.unreadable:
        lines.append(f"{len(explained.unreadable)} cannot be read:")
        lines += [f"  {name}: {reason}" for name, reason in explained.unreadable.items()]
    return "\n".join(lines)
