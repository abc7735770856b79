"""What is wrong with a configuration, in one line: source, key, value, rule, and the mend."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from labn.config.run import Config, ConfigProblem, flatten, known_keys
from labn.errors import did_you_mean


def _sections() -> list[str]:
    """List the keys that hold others, dotted; "" holds all."""
    parents = (key.split(".")[:n] for key in known_keys() for n in range(key.count(".") + 1))
    return list(dict.fromkeys(".".join(parent) for parent in parents))


def describe_unknown(key: str) -> str:
    """Say why a key cannot be set, and which can."""
    if key in known_keys():
        section, _, leaf = key.rpartition(".")
        return f"must be nested: in a file, write {leaf} under {section}"
    if key in _sections():
        return f"must be one key of this section: {_listed(key)}"
    section = key.rpartition(".")[0]
    while section not in _sections():
        section = section.rpartition(".")[0]
    candidates = {*_sections(), *known_keys()} - {section, ""}
    nearest = max(sorted(candidates), key=lambda candidate: _likeness(key, candidate))
    if _likeness(key, nearest):
        return f'unknown key. Did you mean "{nearest}"?'
    return f"unknown key. Known{f' in {section}' if section else ''}: {_listed(section)}"


def _likeness(key: str, other: str) -> float:
    """Score how likely one key was written for the other; 0 for too little."""
    leaf, other_leaf = key.rpartition(".")[2], other.rpartition(".")[2]
    whole = difflib.SequenceMatcher(None, key, other).ratio()
    last = difflib.SequenceMatcher(None, leaf, other_leaf).ratio()
    is_part = len(leaf) > 2 and leaf in other_leaf
    initials = "".join(word[:1] for word in other_leaf.split("_"))
    is_short = len(leaf) > 1 and initials.startswith(leaf)
    is_alike = last >= 0.75 or (last > 0.6 and whole > 0.8)
    return 2 * whole + last if is_part or is_short or is_alike else 0.0


def _listed(section: str) -> str:
    """List the names of the keys and sections directly in a section."""
    prefix = f"{section}." if section else ""
    inside = (key.removeprefix(prefix) for key in known_keys() if key.startswith(prefix))
    return ", ".join(dict.fromkeys(key.split(".")[0] for key in inside))


def describe(
    error: ValidationError, tree: Mapping[str, Any], path: Path, overridden: set[str]
) -> str:
    """Say one thing that is wrong in one line, and how many more there are."""
    # A misspelt key often makes another one missing: it is the one to name.
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    if isinstance(cause := first.get("ctx", {}).get("error"), ConfigProblem):
        key, value, rule = cause.key, cause.value, cause.rule
    else:
        key = _key_of(first)
        value = flatten(tree).get(key, first["input"])
        rule = _rule(first, key)
    source = "command line" if key in overridden else str(path)
    given = "" if first["type"] == "missing" else f" = {shown(value)}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{source}: {key}{given}: {rule}{more}"


def _key_of(problem: ErrorDetails) -> str:
    """Name what the user wrote: without the member of a union or tuple that did not fit."""
    parts = [str(part) for part in problem["loc"]]
    whole = ".".join(parts)
    if problem["type"] == "extra_forbidden":
        return whole
    known = {*known_keys(), *_sections()}
    return next(
        (key for n in range(len(parts), 0, -1) if (key := ".".join(parts[:n])) in known), whole
    )


def shown(value: object) -> str:
    """Write a value on one line, as YAML has it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return " ".join(str(value).split())


_WANTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "float_parsing": "a valid number",
    "float_type": "a valid number",
    "int_from_float": "a valid integer",
    "int_parsing": "a valid integer",
    "int_type": "a valid integer",
    "path_type": "a path (digits go in quotes)",
    "string_type": "text (digits go in quotes)",
    "tuple_type": "a list, such as [1, 2]",
}
"""What must be, by Pydantic's name of the error, where its own words are for programmers."""


def _rule(problem: ErrorDetails, key: str) -> str:
    kind = problem["type"]
    if kind == "extra_forbidden":
        return describe_unknown(key)
    if kind == "model_type":
        return f"must be a section, with keys of its own: {_listed(key)}"
    if kind == "missing" and key in _sections():
        return f"required section is missing; its keys: {_listed(key)}"
    if kind == "missing":
        return f"required key is missing; add it to the file or give {key}=VALUE"
    if kind == "literal_error":
        options = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
        nearest = did_you_mean(str(problem["input"]), options)
        return f"must be one of {', '.join(options)}.{nearest}"
    default = _default(key)
    example = "" if default is None else f"; for example {key}={shown(default)}"
    if kind == "value_error":
        return problem["msg"].removeprefix("Value error, ") + example
    wanted = _WANTED.get(kind, problem["msg"].removeprefix("Input should be "))
    return f"must be {wanted}{example}"


def _default(key: str) -> object:
    section: type[BaseModel] = Config
    *parents, leaf = key.split(".")
    for parent in parents:
        annotation = (
            section.model_fields[parent].annotation if parent in section.model_fields else None
        )
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return None
        section = annotation
    field = section.model_fields.get(leaf)
    if field is None or field.is_required() or isinstance(field.default, BaseModel):
        return None
    return field.default
