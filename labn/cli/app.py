"""The command line's app, and the arguments and printing that several commands share.

Modules of commands import `labn.config` where it is used, for its schemas take longer to build than
help takes to print.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from labn.errors import UserError

if TYPE_CHECKING:
    from labn.config import Config

Function = TypeVar("Function", bound=Callable[..., Any])


class _Command(TyperCommand):
    def get_params(self, ctx: Any) -> list[Any]:
        return _without_types_of_flags(super().get_params(ctx))


class Group(TyperGroup):
    """A group of commands."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, as help shows them."""
        return _without_types_of_flags(super().get_params(ctx))


def _without_types_of_flags(params: Sequence[Any]) -> list[Any]:
    """Let help show a flag without a type, which would read as if it took a value."""
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""
    return list(params)


class Commands(typer.Typer):
    """Commands whose help shows flags as flags."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[Function], Function]:
        """Return a decorator that adds a function as a command."""
        return super().command(name, **({"cls": _Command} | options))


app = Commands(
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


_OVERRIDE = re.compile(r"[\w.-]+=")


def _print_version(is_asked: bool | None) -> None:
    if is_asked:
        typer.echo(f"labn {importlib.metadata.version('labn')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool | None,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = None,
) -> None:
    """Train, search and audit LABN: image classifiers that show where they looked."""


class SubsetChoice(StrEnum):
    """A subset of a data set."""

    train = "train"
    validation = "validation"
    test = "test"


def _complete_key(incomplete: str) -> list[str]:
    from labn.config import known_keys

    return [f"{key}=" for key in known_keys() if key.startswith(incomplete)]


ConfigOrRun = Annotated[
    Path | None,
    typer.Argument(
        help="A configuration: a file, a shipped one's name (demo), or a run's folder.",
        show_default=False,
    ),
]
Run = Annotated[Path, typer.Argument(help="The folder of a run.", show_default=False)]
Images = Annotated[
    Path, typer.Argument(help="An image, or a folder of images.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[key=value]...",
        help="Settings that replace those of the file: `labn config keys`.",
        autocompletion=_complete_key,
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object; everything else to standard error.")
]
AllowChangedData = Annotated[
    bool,
    typer.Option(
        "--allow-changed-data",
        help="Continue although images of the run's data.csv are missing, which are left out, or"
        " have changed, which are used as they are now.",
    ),
]
SubsetOption = Annotated[
    SubsetChoice, typer.Option("--subset", "--split", help="Which subset of the data.")
]


def allow_changed(overrides: list[str] | None, is_allowed: bool) -> list[str]:
    """Return overrides, with the one that ``--allow-changed-data`` stands for."""
    return [*(overrides or []), *(["data.allow_changed=true"] if is_allowed else [])]


def resolve_config(path: Path | None, overrides: list[str] | None) -> Config:
    """Return the configuration that the first two arguments of a command specify.

    The folder of a run becomes its ``output_dir``, also after it was moved.
    """
    if path is None or is_override(path):
        raise UserError(
            "no configuration given; specify a file, a shipped one's name such as demo, or a run's"
            " folder"
        )
    from labn.config import load_config

    config = load_config(_find_config(path), overrides or ())
    if path.is_dir() and not any(o.startswith("output_dir=") for o in overrides or ()):
        return config.model_copy(update={"output_dir": path})
    return config


def require_run(path: Path) -> None:
    """Refuse a folder that is no run at once: opening one loads torch.

    Raises:
        UserError: it has no settings.
    """
    if not (path.expanduser() / "config.yaml").is_file():
        raise UserError(
            f"{path}: not a run (it has no config.yaml); give the output_dir of a training"
        )


def is_override(argument: Path) -> bool:
    """Return whether an argument is ``key=value``, rather than a path with such a name."""
    return _OVERRIDE.match(str(argument)) is not None and not argument.exists()


def _find_config(path: Path) -> Path:
    from labn.config.shipped import CONFIGS, find_config

    if not path.is_dir():
        return find_config(path, CONFIGS)
    if not (path / "config.yaml").is_file():
        raise UserError(
            f"{path}: is a folder but not a run (it has no config.yaml); pass a"
            " configuration file such as configs/demo.yaml, or the output_dir of a training run"
        )
    return path / "config.yaml"


_CONTROLS = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"
}


def print_result(as_json: bool, content: dict[str, Any], text: str) -> None:
    """Print a command's result, as JSON or as text."""
    typer.echo(json.dumps(content) if as_json else without_controls(text))


def without_controls(text: str) -> str:
    """Return a text whose control characters, as names of files may have, cannot act on a terminal.

    Line feeds and tabs stay.
    """
    return text.translate(_CONTROLS)


def metrics_table(metrics: dict[str, float]) -> str:
    """Return metrics as text, one per line."""
    width = max(map(len, metrics))
    return "\n".join(f"  {name:{width}}  {value:8.4f}" for name, value in metrics.items())
