"""The commands and their files."""

from __future__ import annotations

import inspect
import pkgutil
from importlib import import_module

import labn.cli
from labn.cli.app import app


def commands():
    """Yield each command's first word, and the module of its function."""
    for module in pkgutil.iter_modules(labn.cli.__path__, "labn.cli."):
        import_module(module.name)
    for command in app.registered_commands:
        yield command.name or command.callback.__name__, inspect.getmodule(command.callback)
    for group in app.registered_groups:
        for command in group.typer_instance.registered_commands:
            yield group.name, inspect.getmodule(command.callback)


def test_each_command_is_in_the_file_of_its_name():
    assert {name for name, _ in commands()} >= {"train", "evaluate", "search", "data", "cluster"}
    assert {name: module.__name__.rpartition(".")[2] for name, module in commands()} == {
        name: name for name, _ in commands()
    }
