"""The command that writes the shipped configurations: init."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from labn.cli.app import app
from labn.errors import UserError


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where to write them.")] = Path(),
    config: Annotated[
        str | None, typer.Option(help="One of them only, such as demo or search/idrid.")
    ] = None,
) -> None:
    """Write the shipped configurations into configs/, to be read and changed.

    Files that are there already stay as they are.

    **Examples**

        labn init

        labn init --config search/idrid
    """
    from labn.config.shipped import CONFIGS, shipped_folder

    if config is not None and not (shipped_folder() / CONFIGS / f"{config}.yaml").is_file():
        names = [
            path.relative_to(shipped_folder() / CONFIGS).with_suffix("")
            for path in sorted((shipped_folder() / CONFIGS).rglob("*.yaml"))
        ]
        raise UserError(f"--config {config}: not shipped; one of {', '.join(map(str, names))}")
    patterns = [f"{CONFIGS}/**/*.yaml" if config is None else f"{CONFIGS}/{config}.yaml"]
    write_shipped(patterns, folder)


def write_shipped(patterns: list[str], folder: Path) -> None:
    """Write shipped files into a folder, and say which."""
    from labn.config.shipped import copy_shipped

    written, kept = copy_shipped(patterns, folder)
    for path in written:
        typer.echo(f"wrote {path}")
    for path in kept:
        typer.echo(f"kept {path}, which was there already", err=True)
