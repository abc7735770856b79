"""What the files of a search and of a study share: a run's configuration that they build on.

Such a file names a ``base``, settings ``fixed`` in all of its runs, and its own ``output_dir``.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from labn.config.messages import describe, describe_unknown, shown
from labn.config.reading import check_paths, read_yaml, set_key
from labn.config.run import Config, known_keys
from labn.errors import UserError, did_you_mean


def apply_overrides(
    tree: dict[str, Any],
    overrides: Sequence[str],
    *,
    kind: str,
    own_keys: Collection[str],
    example: str,
) -> set[str]:
    """Set a file's own keys, or fix settings of its runs, by ``key=value``; give the keys.

    ``kind`` names what the file is of, ``example`` an override; both for messages. An
    ``output_dir`` is the file's own.

    Raises:
        UserError: an override is malformed, or its key unknown.
    """
    keys = set()
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(
                f"command line: {override!r}: overrides are written key=value, such as {example}"
            )
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError):
            raise UserError(
                f"command line: {key} = {shown(text)}: must be valid YAML; put text in quotes"
            ) from None
        if key.split(".")[0] in own_keys:
            set_key(tree, key, value)
        elif key in known_keys():
            tree["fixed"] = (tree.get("fixed") or {}) | {key: value}
        else:
            near = did_you_mean(key, own_keys) or f" {describe_unknown(key)}"
            raise UserError(
                f"command line: {key} = {shown(value)}: is a setting of neither a {kind} nor a"
                f" run.{near}"
            )
        keys.add(key)
    return keys


def absolute_places(base: str | dict[str, Any], output_dir: Path, path: Path) -> dict[str, Any]:
    """Give ``base`` and ``output_dir`` such that they mean the same in every process.

    A base's file is named as seen from the file at ``path``.
    """
    changes: dict[str, Any] = {"output_dir": output_dir.expanduser().absolute()}
    if isinstance(base, str):
        place = Path(base).expanduser()
        changes["base"] = str(place if place.is_absolute() else (path.parent / place).resolve())
    return changes


def resolve_base(
    base: str | dict[str, Any],
    fixed: Mapping[str, Any],
    output_dir: Path,
    path: Path,
    *,
    needs_data: bool = True,
) -> Config:
    """Read the run's configuration that the file at ``path`` builds on, with what it fixes.

    Raises:
        UserError: a key is unknown, a value breaks its rule, or a path is not there.
    """
    source = Path(base) if isinstance(base, str) else path
    tree = read_yaml(source) if isinstance(base, str) else copy.deepcopy(base)
    tree["output_dir"] = str(output_dir)
    for key, value in fixed.items():
        if key not in known_keys():
            raise UserError(f"{path}: fixed.{key} = {shown(value)}: {describe_unknown(key)}")
        set_key(tree, key, value)
    try:
        config = Config.model_validate(tree)
        if needs_data:
            check_paths(config, source, set(fixed))
    except ValidationError as error:
        message = describe(error, tree, source, set(fixed))
    except UserError as error:
        message = str(error)
    else:
        return config
    # What replaces the base's settings stands in this file, or was given for it.
    raise UserError(message.replace("command line: ", f"{path}: fixed.", 1))
