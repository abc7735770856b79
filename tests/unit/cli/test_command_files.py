"""The commands and their files."""

from __future__ import annotations

import inspect

import labn.cli  # noqa: F401
from labn.cli import (  # noqa: F401
    ablate,
    cluster,
    data,
    doctor,
    evaluate,
    explain,
    report,
    sanity,
    search,
    train,
    ui,
)
from labn.cli.app import app


def commands():
    """Yield each command's first word, and the module of its function."""
    for command in app.registered_commands:
        yield command.name or command.callback.__name__, inspect.getmodule(command.callback)
    for group in app.registered_groups:
        for command in group.typer_instance.registered_commands:
            yield group.name, inspect.getmodule(command.callback)


def test_each_command_is_in_the_file_of_its_name():
    elsewhere = {
        name: module.__name__
        for name, module in commands()
        if module.__name__.rpartition(".")[2] != name
    }
    assert elsewhere == {}
