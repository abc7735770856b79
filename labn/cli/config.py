"""The commands that describe settings: config show, keys, explain."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from labn.cli.app import (
    Commands,
    ConfigOrRun,
    Group,
    Json,
    Overrides,
    app,
    print_result,
    resolve_config,
)
from labn.errors import UserError

if TYPE_CHECKING:
    from labn.config.reference import Key

config_app = Commands(
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="What can be set, and what is set: `labn config explain loss.theta_b`.",
)
app.add_typer(config_app, name="config")


@config_app.command()
def show(config_or_run: ConfigOrRun = None, overrides: Overrides = None) -> None:
    """Print a configuration with every default and override filled in.

    **Example**

        labn config show demo train.epochs=3
    """
    from labn.config import dump_config

    typer.echo(dump_config(resolve_config(config_or_run, overrides)), nl=False)


@config_app.command()
def keys(
    beginning: Annotated[str, typer.Argument(help="Of the keys to list.")] = "",
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print docs/settings.md, of all files.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the keys of a run's configuration: type, range, default.

    **Example**

        labn config keys loss.
    """
    from labn.config.messages import describe_unknown
    from labn.config.reference import SCHEMAS, as_markdown, describe_keys

    if markdown:
        typer.echo(as_markdown(), nl=False)
        return
    found = [key for key in describe_keys(SCHEMAS["train"]) if key.name.startswith(beginning)]
    if not found:
        raise UserError(f"{beginning}: {describe_unknown(beginning)}")
    width = max(len(key.name) for key in found)
    lines = [f"{key.name:{width}}  {key.type}; default {key.default}" for key in found]
    print_result(as_json, {"keys": [dataclasses.asdict(key) for key in found]}, "\n".join(lines))


@config_app.command()
def explain(key: str, as_json: Json = False) -> None:
    """Say what a key of a run, a search or an ablation means.

    **Example**

        labn config explain loss.theta_b
    """
    from labn.config.messages import describe_unknown
    from labn.config.reference import SCHEMAS, describe_keys

    found = {
        command: one
        for command, schema in SCHEMAS.items()
        for one in describe_keys(schema)
        if one.name == key
    }
    if not found:
        raise UserError(f"{key}: {describe_unknown(key, *SCHEMAS.values())}")
    text = "\n".join(_as_text(command, one) for command, one in found.items())
    content = {command: dataclasses.asdict(one) for command, one in found.items()}
    print_result(as_json, content, text)


def _as_text(command: str, key: Key) -> str:
    return f"{key.name} (labn {command}): {key.type}; default {key.default}\n  {key.meaning}"
