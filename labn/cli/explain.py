"""The commands that look into a trained network: explain, sanity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labn.cli.app import Json, Overrides, Part, app, print_result
from labn.cli.progress import ConsoleReporter

if TYPE_CHECKING:
    from labn.explain.sanity import SanityRow
    from labn.runs.explaining import Explanations

_NUM_SHOWN = 20
_NUM_IGNORED_SHOWN = 5

Run = Annotated[Path, typer.Argument(help="The folder of a run.", show_default=False)]


@app.command()
def explain(
    run: Run,
    images: Annotated[
        Path, typer.Argument(help="An image, or a folder of images.", show_default=False)
    ],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="The folder for maps, overlays and the table.")] = Path(
        "explanations"
    ),
    as_json: Json = False,
) -> None:
    """Say where a trained network looks in any images: maps, overlays, a table.

    Needs no data set. Images that the same network explained before are kept. Exits with 2 if an
    image could not be read; the others are explained all the same.

    **Examples**

        labn explain runs/demo eye.jpg

        labn explain runs/idrid ~/eyes --out explanations/idrid train.device=cpu
    """
    from labn.runs.explaining import explain_images

    with ConsoleReporter() as reporter:
        explained = explain_images(run, images, out, overrides or [], reporter)
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


@app.command()
def sanity(
    run: Run,
    overrides: Overrides = None,
    split: Annotated[Part, typer.Option(help="Which part of the data.")] = Part.test,
    num_images: Annotated[int, typer.Option(min=1, help="Positives to explain.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Draws the untrained weights.")] = 0,
    as_json: Json = False,
) -> None:
    """Check that a run's maps change when its weights are randomised layer by layer.

    A map that stays like itself (rank correlation near 1) shows the image rather than what was
    learnt. Only what a map is computed from can change it: LABN's attention does not depend on
    the layers behind the attention branch, and `edges`, a control, depends on none.

    **Examples**

        labn sanity runs/demo

        labn sanity runs/idrid --split validation --num-images 16
    """
    from labn.runs.sanity import check_run, quick_methods

    with ConsoleReporter() as reporter:
        files = check_run(
            run, split.value, quick_methods, num_images, seed, reporter, overrides or []
        )
    rows = files.check.as_rows()
    content = {"run": str(run), "split": split.value, "rows": rows, "picture": str(files.picture)}
    print_result(as_json, content, f"{_sanity_as_text(rows)}\npicture:\n  {files.picture}")


def _sanity_as_text(rows: Sequence[SanityRow]) -> str:
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    means = {(row["method"], row["stage"]): row["mean"] for row in rows}
    lines = ["rank correlation with the trained map, layers randomised down to"]
    lines.append("  ".join([f"  {'':8}", *methods]))
    for stage in stages:
        values = (means[method, stage] for method in methods)
        cells = ("-" if value is None else f"{value:.3f}" for value in values)
        padded = (f"{cell:>{len(name)}}" for name, cell in zip(methods, cells, strict=True))
        lines.append("  ".join([f"  {stage:8}", *padded]))
    return "\n".join(lines)


def _explanations_as_text(explained: Explanations) -> str:
    width = max(len(row["file"]) for row in explained.rows)
    lines = [
        f"{row['file']:{width}}  {row['predicted']} {row['probability_' + row['predicted']]:.3f}"
        f"  peak at ({row['peak_x']}, {row['peak_y']})"
        for row in explained.rows
    ]
    lines[_NUM_SHOWN:] = [f"and {len(lines) - _NUM_SHOWN} more"] if len(lines) > _NUM_SHOWN else []
    kept = f", {explained.num_kept} of them before" if explained.num_kept else ""
    lines.append(f"{len(explained.rows)} explained{kept}: {explained.table_file}")
    if explained.ignored:
        more = ", ..." if len(explained.ignored) > _NUM_IGNORED_SHOWN else ""
        shown = ", ".join(explained.ignored[:_NUM_IGNORED_SHOWN])
        lines.append(f"{len(explained.ignored)} skipped, no images: {shown}{more}")
    if explained.unreadable:
        lines.append(f"{len(explained.unreadable)} cannot be read:")
        lines += [f"  {name}: {reason}" for name, reason in explained.unreadable.items()]
    return "\n".join(lines)
