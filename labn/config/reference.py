"""Every key of a schema, described: its type, range, default and meaning."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from labn.config.ablation import StudyConfig
from labn.config.run import Config
from labn.config.search import SearchConfig
from labn.config.section import Section

SCHEMAS: dict[str, type[Section]] = {
    "train": Config,
    "search": SearchConfig,
    "ablate": StudyConfig,
}
"""The schemas, by the command that takes their files."""
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
"""Pydantic's names, which it keeps where a validator of ours comes before the rule."""
_TYPES = {
    "integer": "whole number", "number": "number", "string": "text", "object": "keys and values",
    "null": "null",
}  # fmt: skip


@dataclass(frozen=True)
class Key:
    """One key: its dotted name, and the rest as text."""

    name: str
    type: str
    default: str
    meaning: str


def describe_keys(schema: type[Section]) -> list[Key]:
    """Return every key of a schema, in the order of its file."""
    tree = schema.model_json_schema()
    return list(_walk(tree, tree.get("$defs", {}), ""))


def as_markdown() -> str:
    """Return the page of all keys."""
    lines = ["# Settings", "", "Every key of a file, by the command that takes it; made by"
             " `labn config keys --markdown`."]  # fmt: skip
    for command, schema in SCHEMAS.items():
        lines += ["", f"## labn {command}", "", "| key | type | default | meaning |"]
        lines.append("| --- | --- | --- | --- |")
        for key in describe_keys(schema):
            cells = (f"`{key.name}`", key.type, f"`{key.default}`", key.meaning)
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _walk(tree: Mapping[str, Any], sections: Mapping[str, Any], prefix: str) -> Iterator[Key]:
    for name, own in tree["properties"].items():
        section = _section_of(own, sections)
        if section is not None:
            yield from _walk(section, sections, f"{prefix}{name}.")
            continue
        default = json.dumps(own["default"]) if "default" in own else "-"
        meaning = " ".join(own.get("description", "").split())
        yield Key(f"{prefix}{name}", _type_of(own, sections), default.strip('"'), meaning)


def _section_of(own: Mapping[str, Any], sections: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the section that a key holds, with its own keys; None for a value."""
    for one in (own, *own.get("allOf", ()), *own.get("anyOf", ())):
        section: Mapping[str, Any] = sections.get(one.get("$ref", "").rpartition("/")[2], {})
        if "properties" in section:
            return section
    return None


def _type_of(own: Mapping[str, Any], sections: Mapping[str, Any]) -> str:
    """Return a value's type and range as text."""
    if "$ref" in own:
        return _type_of(sections[own["$ref"].rpartition("/")[2]], sections)
    if "anyOf" in own:
        return " or ".join(dict.fromkeys(_type_of(one, sections) for one in own["anyOf"]))
    if "enum" in own or "const" in own:
        return " | ".join(map(str, own.get("enum", [own.get("const")])))
    if own.get("type") == "boolean":
        return "true | false"
    if own.get("type") == "array":
        return f"list of {_type_of(own.get('items', {}), sections)}"
    kind = "path" if own.get("format") == "path" else _TYPES.get(own.get("type", ""), "value")
    bounds = [f"{sign} {own[name]:g}" for name, sign in _BOUNDS.items() if name in own]
    return " ".join([kind, ", ".join(bounds)]).strip()
