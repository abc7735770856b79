"""The command line's app, and the arguments and printing that several commands share."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from labn.config import Config, load_config
from labn.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Train, search and audit LABN: image classifiers that show where they looked.",
)


class SubsetName(StrEnum):
    """A subset of a data set."""

    train = "train"
    validation = "validation"
    test = "test"


ConfigOrRun = Annotated[
    Path | None,
    typer.Argument(help="A configuration file, or the folder of a run.", show_default=False),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[key=value]...", help="Settings that replace the file's."),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object; everything else to standard error.")
]
SubsetOption = Annotated[
    SubsetName, typer.Option("--subset", "--split", help="Which subset of the data.")
]


def resolve_config(place: Path | None, overrides: list[str] | None) -> Config:
    """Read the configuration that the first two arguments of a command name.

    A run's folder is its ``output_dir``, wherever it was made.
    """
    if place is None or "=" in str(place):
        raise UserError(
            "no configuration given; name a file such as configs/demo.yaml, or a run's folder"
        )
    config = load_config(_find_config(place), overrides or ())
    if place.is_dir() and not any(o.startswith("output_dir=") for o in overrides or ()):
        return config.model_copy(update={"output_dir": place})
    return config


def _find_config(place: Path) -> Path:
    if not place.is_dir():
        return place
    if not (place / "config.yaml").is_file():
        raise UserError(
            f"{place}: is a folder but not a run (it has no config.yaml); give a configuration"
            " file such as configs/demo.yaml, or the output_dir of a training"
        )
    return place / "config.yaml"


def print_result(as_json: bool, content: dict[str, Any], text: str) -> None:
    """Print a command's result, for a program or for a person."""
    typer.echo(json.dumps(content) if as_json else text)


def metrics_table(metrics: dict[str, float]) -> str:
    """Write metrics a line each."""
    width = max(map(len, metrics))
    return "\n".join(f"  {name:{width}}  {value:8.4f}" for name, value in metrics.items())
