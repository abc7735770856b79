"""The elements of every schema: the base class, numbers, locations, and dotted keys."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError, PydanticKnownError

from labn.storage.remote import is_remote

_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
"""A number that PyYAML reads as text, since it lacks the point or the exponent's sign."""


def _as_integer(value: object) -> object:
    """Refuse true, false and text, which Pydantic would take for numbers."""
    if isinstance(value, (bool, str)):
        raise PydanticKnownError("int_type")
    return value


def _as_number(value: object) -> object:
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)
    if isinstance(value, (bool, str)):
        raise PydanticKnownError("float_type")
    return value


def _as_location(value: object) -> object:
    """Return addresses as they are, since a path would drop one of their slashes."""
    if not isinstance(value, (str, Path)):
        raise PydanticCustomError("path_type", "Input is not a path")
    return value if is_remote(value) else Path(value)


def _as_base(value: object) -> object:
    if not isinstance(value, (str, dict)):
        raise ValueError("must be the path of a run's configuration, or its sections")
    return value


Integer = Annotated[int, BeforeValidator(_as_integer)]
Number = Annotated[float, BeforeValidator(_as_number)]
Count = Annotated[Integer, Field(ge=1)]
Whole = Annotated[Integer, Field(ge=0)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
InnerFraction = Annotated[Number, Field(gt=0, lt=1)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Location = Annotated[Path | str, BeforeValidator(_as_location)]
"""A path, or the address of a folder in object storage."""


class ConfigProblem(ValueError):
    """A broken rule that binds several keys; ``key`` is the one to fix."""

    def __init__(self, key: str, value: object, rule: str) -> None:
        super().__init__(f"{key} = {value}: {rule}")
        self.key, self.value, self.rule = key, value, rule


class Section(BaseModel):
    """Keys that belong together: frozen, all of them known, all numbers finite."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class ManyRuns(Section):
    """The settings that a search and a study share: the run's configuration to build on."""

    base: Annotated[str | dict[str, Any], BeforeValidator(_as_base)]
    """A run's configuration: its file's path relative to this file, or its sections."""
    fixed: dict[str, Any] = {}
    """Settings that replace the base's in every run, by dotted key."""
    output_dir: Path
    """The folder of all files; the same folder again resumes."""


def members(annotation: Any) -> list[type[Section]]:
    """Return the sections that a field may hold: none, one, or the members of a union."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [member for each in get_args(annotation) for member in members(each)]
    return []


def keys_of(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Yield every key below a section, dotted."""
    for name, field in section.model_fields.items():
        if inner := members(field.annotation):
            yield from keys_of(inner[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, keyed by dotted paths."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
