"""YAML files and values, read strictly: keys given once, numbers as they look."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from labn.errors import UserError

_NUMBERS = {
    "int": r"[-+]?(?:0|[1-9][0-9_]*|0b[01][01_]*|0x[0-9a-fA-F][0-9a-fA-F_]*)",
    "float": r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?"
    r"|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
}
"""YAML 1.1's numbers without those to the base of 8 or 60."""
_REPLACED = {*_NUMBERS, "timestamp", "merge", "value"}


class KeyProblem(yaml.MarkedYAMLError):
    """A key of a mapping that is given twice, or is not text."""


class _StrictLoader(yaml.SafeLoader):
    """A YAML loader that takes numbers as they look, and refuses a key given twice.

    PyYAML would take the last of such keys, 010 for 8, and 1:30 for 90; here these two are text.
    """


def _construct_mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        problem = None
        if key_node.tag != "tag:yaml.org,2002:str":
            problem = "a key must be plain text"
        elif key_node.value in seen:
            problem = f"the key {key_node.value!r} is given twice; keep one"
        if problem:
            raise KeyProblem(problem=problem, problem_mark=key_node.start_mark)
        seen.add(key_node.value)
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag.split(":")[-1] not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _pattern in _NUMBERS.items():
    _StrictLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_pattern})$"), list("-+.0123456789")
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the tree of a YAML file that holds keys and values.

    Raises:
        UserError: it cannot be read, is not YAML, or has a key twice.
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
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must hold keys and values, such as `output_dir: runs/demo`")
    return tree


def parse_value(text: str) -> Any:
    """Return the value of an override: YAML, but text that is not quoted is taken as it is.

    In a file, " #" would begin a comment there, and ": " a mapping.
    """
    text = text.strip()
    if text.startswith(("'", '"', "[", "{")) or "\n" in text:
        return yaml.load(text, _StrictLoader)
    loader = _StrictLoader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    return loader.construct_object(yaml.ScalarNode(tag, text), deep=True)
