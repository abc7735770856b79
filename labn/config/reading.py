"""From YAML and ``key=value`` to a validated configuration, and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from labn.config.messages import describe, describe_unknown, shown
from labn.config.run import Config, known_keys
from labn.errors import UserError
from labn.storage.remote import is_remote


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply ``key=value`` overrides, and validate the whole.

    Raises:
        UserError: names file, key, value, rule and mend, on one line.
    """
    tree = read_yaml(path)
    overridden = set()
    for override in overrides:
        key, value = _parse_override(override)
        set_key(tree, key, value)
        overridden.add(key)
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(describe(error, tree, path, overridden)) from None
    check_paths(config, path, overridden)
    return config


def dump_config(config: Config) -> str:
    """Write a configuration as YAML that ``load_config`` reads back to the same."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


class _StrictLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice, which PyYAML would silently take the last of."""


def _construct_mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        problem = None
        if key_node.tag != "tag:yaml.org,2002:str":
            problem = "a key must be plain text"
        elif key_node.value in seen:
            problem = f"the key {key_node.value!r} is given twice"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
        seen.add(key_node.value)
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds keys and values.

    Raises:
        UserError: it cannot be read, is not YAML, or gives a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a configuration ({error})") from None
    try:
        tree = yaml.load(text, _StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UserError(f"{path}: {where}not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        # ValueError: what looks like a date, and is none.
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(
            f"{path}: must hold keys and values, such as `output_dir: runs/demo` on a line"
        )
    return tree


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(
            f"command line: {override!r}: overrides are written key=value, such as train.epochs=20"
        )
    if key not in known_keys():
        raise UserError(f"command line: {key} = {shown(text)}: {describe_unknown(key)}")
    try:
        return key, yaml.load(text, _StrictLoader)
    except (yaml.YAMLError, ValueError):
        raise UserError(
            f"command line: {key} = {shown(text)}: must be valid YAML; put text in quotes"
        ) from None


def set_key(tree: dict[str, Any], key: str, value: object) -> None:
    """Set a value by its dotted key, and make the sections above it."""
    *parents, leaf = key.split(".")
    branch: Any = tree
    for parent in parents:
        if branch.get(parent) is None:
            branch[parent] = {}
        branch = branch[parent]
        if not isinstance(branch, dict):
            return  # validation will say that this must be a section
    branch[leaf] = value


def check_paths(config: Config, path: Path, overridden: set[str]) -> None:
    """Refuse paths that are named but not there, before any work is done.

    Raises:
        UserError: names the one that is missing.
    """
    for key, value, kind in (
        ("data.root", config.data.root, "folder"),
        ("model.pretrained", config.model.pretrained, "file"),
    ):
        if value is None or is_remote(value):
            continue
        place = Path(value).expanduser()
        if not (place.is_dir() if kind == "folder" else place.is_file()):
            source = "command line" if key in overridden else str(path)
            raise UserError(
                f"{source}: {key} = {value}: no such {kind} (looked in {Path.cwd()});"
                f" give {key}=PATH"
            )
