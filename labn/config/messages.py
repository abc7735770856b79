"""Messages on a wrong file or override, on one line: source, key, value, rule, and the fix."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from labn.config.run import Config, known_keys
from labn.config.section import ConfigProblem, ManyRuns, Section, keys_of, members
from labn.errors import did_you_mean

Sources = Mapping[str, str]
"""The prefix of a key in messages, by the key or a section above it; "" is for all others."""


def _sections(schema: type[Section]) -> list[str]:
    """Return the dotted keys that hold others; "" holds all."""
    keys = list(keys_of(schema))
    parents = (key.split(".")[:n] for key in keys for n in range(key.count(".") + 1))
    return list(dict.fromkeys(".".join(parent) for parent in parents))


def describe_unknown(key: str, *schemas: type[Section]) -> str:
    """Return why a key of these schemas (default: a run's) cannot be set, and which keys can."""
    schemas = schemas or (Config,)
    keys = [known for schema in schemas for known in keys_of(schema)]
    sections = [known for schema in schemas for known in _sections(schema)]
    if key in keys:
        section, _, leaf = key.rpartition(".")
        return f"must be nested: in a file, write {leaf} under {section}"
    if key in sections:
        return f"must be one key of this section: {_listed(key, keys)}"
    if key in known_keys() and issubclass(schemas[0], ManyRuns):
        return "is a key of the runs: in a file, write it under fixed"
    section = key.rpartition(".")[0]
    while section not in sections:
        section = section.rpartition(".")[0]
    candidates = {*sections, *keys} - {section, ""}
    nearest = max(sorted(candidates), key=lambda candidate: _likeness(key, candidate))
    if _likeness(key, nearest):
        return f'unknown key. Did you mean "{nearest}"?'
    return f"unknown key. Known{f' in {section}' if section else ''}: {_listed(section, keys)}"


def _likeness(key: str, other: str) -> float:
    """Return how likely one key was meant by the other; 0 if it is unlikely."""
    leaf, other_leaf = key.rpartition(".")[2], other.rpartition(".")[2]
    whole = difflib.SequenceMatcher(None, key, other).ratio()
    last = difflib.SequenceMatcher(None, leaf, other_leaf).ratio()
    is_part = len(leaf) > 2 and leaf in other_leaf
    initials = "".join(word[:1] for word in other_leaf.split("_"))
    is_short = len(leaf) > 1 and initials.startswith(leaf)
    is_alike = last >= 0.75 or (last > 0.6 and whole > 0.8)
    return 2 * whole + last if is_part or is_short or is_alike else 0.0


def _listed(section: str, keys: list[str]) -> str:
    """Return the names of the keys and sections directly in a section."""
    prefix = f"{section}." if section else ""
    inside = (key.removeprefix(prefix) for key in keys if key.startswith(prefix))
    return ", ".join(dict.fromkeys(key.split(".")[0] for key in inside))


def describe(
    error: ValidationError, tree: Mapping[str, Any], sources: Sources, schema: type[Section]
) -> str:
    """Return one line on the first problem, and the number of further ones."""
    # A misspelt key often makes another one missing; report the misspelt one.
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    places = [_locate(problem, schema) for problem in problems]
    first, place = problems[0], places[0]
    if isinstance(cause := first.get("ctx", {}).get("error"), ConfigProblem):
        key, value, rule = ".".join([*place.parts, cause.key]), cause.value, cause.rule
    else:
        key, value, rule = place.key, place.value_in(tree), _rule(first, place, schema)
    given = "" if value is _ABSENT else f" = {shown(value)}"
    num_more = len({place.parts for place in places}) - 1
    more = f" (and {num_more} more)" if num_more else ""
    return f"{source_of(key, sources)}{key}{given}: {rule}{more}"


def source_of(key: str, sources: Sources) -> str:
    """Return the prefix of a key in messages."""
    while key and key not in sources:
        key = key.rpartition(".")[0]
    return sources[key]


_ABSENT = object()


@dataclass(frozen=True)
class _Place:
    """The location of a problem: the keys down to it, the section of the last, what it may hold."""

    parts: tuple[str, ...]
    section: type[Section]
    inner: tuple[type[Section], ...]

    @property
    def key(self) -> str:
        return ".".join(self.parts)

    def value_in(self, tree: Any) -> Any:
        """Return the user's value at this location."""
        for part in self.parts:
            if not isinstance(tree, Mapping) or part not in tree:
                return _ABSENT
            tree = tree[part]
        return tree


def _locate(problem: ErrorDetails, schema: type[Section]) -> _Place:
    """Return the location as the user wrote it, without members of unions and indices of lists."""
    parts: list[str] = []
    section: type[Section] = schema
    annotation: Any = None
    inner = [schema]
    for part in map(str, problem["loc"]):
        if len(inner) > 1:  # the part is the type of a member, which is no key
            inner = [one for one in inner if part in get_args(one.model_fields["type"].annotation)]
            continue
        if inner:
            section = inner[0]
            field = section.model_fields.get(part)
            annotation = field.annotation if field else None
        elif get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
        else:
            break
        parts.append(part)
        inner = members(annotation)
    if problem["type"].startswith("union_tag") and isinstance(problem["input"], Mapping):
        parts.append("type")
    return _Place(tuple(parts), section, tuple(inner))


def shown(value: object) -> str:
    """Return a value on one line, as in YAML."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return " ".join(str(list(value) if isinstance(value, tuple) else value).split())


_WANTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a mapping from keys to values; {} is an empty one",
    "float_type": "a valid number",
    "int_from_float": "a valid integer",
    "int_parsing_size": "a valid integer",
    "int_type": "a valid integer",
    "list_type": "a list",
    "path_type": "a path (digits go in quotes)",
    "string_type": "text (digits go in quotes)",
    "tuple_type": "a list",
}
"""Expected values by Pydantic's name of the error, where its own text is for programmers."""


def _rule(problem: ErrorDetails, place: _Place, schema: type[Section]) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        if ".".join(place.parts[:-1]) in _sections(schema):
            return describe_unknown(place.key, schema)
        return describe_unknown(place.parts[-1], place.section)
    if kind == "union_tag_not_found":
        return f"required key is missing; it {_one_of(_types(place))}"
    if kind == "union_tag_invalid":
        return _one_of(_types(place), context["tag"])
    if kind == "literal_error":
        return _one_of(re.findall(r"'([^']*)'", context["expected"]), problem["input"])
    is_settable = place.key in {*keys_of(schema), *_sections(schema)}
    names = ", ".join(dict.fromkeys(name for one in place.inner for name in one.model_fields))
    if kind in ("model_type", "model_attributes_type"):
        return f"must be a section, with keys of its own: {names}"
    if kind == "missing" and names:
        return f"required section is missing; its keys: {names}"
    if kind == "missing":
        return "required key is missing; add it to the file" + (
            f" or give {place.key}=VALUE" if is_settable else ""
        )
    example = _example(place) if is_settable else ""
    if kind == "value_error":
        return problem["msg"].removeprefix("Value error, ") + example
    return f"must {_wanted(problem, example)}{example}"


def _types(place: _Place) -> list[str]:
    """Return the types by which a file chooses a member of a union."""
    return [name for one in place.inner for name in get_args(one.model_fields["type"].annotation)]


def _one_of(options: list[str], value: object = None) -> str:
    """Return the rule that lists the allowed values, with the nearest to the one given."""
    near = "" if value is None else f".{did_you_mean(str(value), options)}"
    return f"must be one of {', '.join(options)}{near}"


def _wanted(problem: ErrorDetails, example: str) -> str:
    """Return the expected value, in terms of the file."""
    kind, value = problem["type"], problem["input"]
    if kind == "too_short":
        return "not be empty"
    if kind == "too_long":
        return f"hold at most {problem['ctx']['max_length']} values"
    if kind not in _WANTED:
        return f"be {problem['msg'].removeprefix('Input should be ')}"
    if isinstance(value, bool):
        return "not be true or false"
    if kind in ("list_type", "tuple_type") and not example:
        return "be a list, such as [1, 2]"
    if kind in ("int_type", "float_type") and isinstance(value, str):
        return f"be {_WANTED[kind]}{_unlike_number(value.strip())}"
    return f"be {_WANTED[kind]}"


def _unlike_number(text: str) -> str:
    """Return what keeps text from being a number, if that is how it is written."""
    if re.fullmatch(r"[-+]?0+\d+", text):
        return ", without leading zeros"
    return ", without quotes" if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)", text) else ""


def _example(place: _Place) -> str:
    """Return an example that sets a key to its default."""
    field = place.section.model_fields[place.parts[-1]]
    # A default from a factory may hold a secret, such as a tracker's password.
    if field.is_required() or field.default_factory or field.default in (None, (), {}):
        return ""
    if isinstance(field.default, Section):
        return ""
    return f"; for example {place.key}={shown(field.default)}"
