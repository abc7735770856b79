"""The command that classifies any number of images by a trained network: predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from labn.cli.app import Images, Json, Overrides, Run, app, print_result, require_run
from labn.cli.progress import ConsoleReporter, starting

_NUM_SHOWN = 5


@app.command()
def predict(
    run: Run,
    images: Images,
    overrides: Overrides = None,
    out: Annotated[
        Path, typer.Option(help="The table: one row per image, as .csv or .jsonl.")
    ] = Path("predictions.csv"),
    maps: Annotated[
        Path | None, typer.Option(help="A folder for the attention maps, as 16-bit PNG.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Classify any images by a trained network: class, probabilities, attended share, maps.

    Requires no data set. Rows are written as it goes; given again, the command continues. Exits
    with 2 if an image could not be read; the others are still classified.

    **Examples**

        labn predict runs/demo eyes/

        labn predict runs/idrid eyes/ --out eyes.jsonl --maps eyes-maps train.device=cpu
    """
    require_run(run)
    with starting():
        from labn.runs.predict_images import predict_images

    with ConsoleReporter() as reporter:
        done = predict_images(run, images, out, overrides or [], reporter, maps)
    content = {
        "run": str(run),
        "out": str(done.file),
        "num_predicted": done.num_predicted,
        "num_kept": done.num_kept,
        "num_by_class": done.num_by_class,
        "unreadable": done.unreadable,
        "ignored": done.ignored,
    }
    classes = ", ".join(f"{count} {name}" for name, count in done.num_by_class.items())
    kept = f", {done.num_kept} earlier" if done.num_kept else ""
    lines = [f"{done.file}: {done.num_predicted} images predicted{kept}; of all rows {classes}"]
    if done.ignored:
        more = ", ..." if len(done.ignored) > _NUM_SHOWN else ""
        lines.append(f"not images: {', '.join(done.ignored[:_NUM_SHOWN])}{more}")
    lines += [f"cannot be read: {name}: {reason}" for name, reason in done.unreadable.items()]
    print_result(as_json, content, "\n".join(lines))
    raise typer.Exit(2 if done.unreadable else 0)
