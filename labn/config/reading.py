"""Conversion of YAML and ``key=value`` to a validated run, search or study, and back."""

from __future__ import annotations

import copy
import json
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from labn.config.ablation import StudyConfig
from labn.config.messages import Sources, describe, describe_unknown, shown, source_of
from labn.config.run import (
    BEST_FILE,
    DEFAULT_CACHE,
    EARLIER_VALUES,
    TRACKER_FILE,
    Config,
    known_keys,
)
from labn.config.search import SearchConfig
from labn.config.section import ManyRuns, Section, flatten
from labn.config.strict_yaml import KeyProblem, parse_value, read_yaml
from labn.errors import UserError
from labn.storage.files import cache_folder, expanded
from labn.storage.remote import is_remote

logger = logging.getLogger(__name__)

AnySection = TypeVar("AnySection", bound=Section)
AnyRuns = TypeVar("AnyRuns", bound=ManyRuns)

_COMMAND_LINE = "command line: "
_PATHS = (
    "base", "data.cache_dir", "data.root", "model.pretrained", "output_dir", "train.storage",
)  # fmt: skip


NEEDED_PATHS = ("data.root", "model.pretrained")
"""The keys whose paths a run reads before it has a network of its own."""

_KINDS: dict[str, tuple[str, str, type[Section]]] = {
    "data": ("a run", "train", Config),
    "space": ("a search", "search", SearchConfig),
    "conditions": ("an ablation", "ablate", StudyConfig),
}
"""The key that only the files of one command have."""


def load_config(
    path: Path, overrides: Sequence[str] = (), *, needs: Collection[str] = NEEDED_PATHS
) -> Config:
    """Return the run of a YAML file with ``key=value`` overrides, validated as a whole.

    ``needs`` are the keys whose paths must exist.

    Raises:
        UserError: names file, key, value, rule and fix, on one line.
    """
    tree = read_yaml(path)
    _check_kind(path, tree, Config)
    given = _parse_overrides(overrides, example="train.epochs=20")
    for key, value in given.items():
        if key not in known_keys():
            raise _unknown(key, value, Config)
        set_key(tree, key, value)
    sources = {"": f"{path}: "} | dict.fromkeys(given, _COMMAND_LINE)
    _check_homes(tree, sources)
    _keep_tracker(tree)
    if "tracking.uri" not in given:
        _keep_tracker_of_record(tree, path)
    _keep_earlier_values(tree)
    config = validate(Config, tree, sources)
    check_paths(config, sources, needs)
    return config


def load_search(path: Path, overrides: Sequence[str] = ()) -> SearchConfig:
    """Return the search of a YAML file; ``key=value`` replaces its keys or fixes its runs'.

    Paths in the result are absolute, so that they mean the same in every process.

    Raises:
        UserError: names file, key, value, rule and fix, on one line.
    """
    return _load_many(SearchConfig, path, overrides, example="trials=8")


def load_study(path: Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Return the ablation study of a YAML file, as ``load_search`` does for a search."""
    return _load_many(StudyConfig, path, overrides, example="seeds=[0,1]")


def _check_kind(path: Path, tree: Mapping[str, Any], schema: type[Section]) -> None:
    """Check that a file is not of another command."""
    for key, (kind, command, own) in _KINDS.items():
        if key in tree and schema is not own:
            raise UserError(f"{path}: is the configuration of {kind}; use `labn {command} {path}`")


def _load_many(
    schema: type[AnyRuns], path: Path, overrides: Sequence[str], *, example: str
) -> AnyRuns:
    tree = read_yaml(path)
    _check_kind(path, tree, schema)
    given = _parse_overrides(overrides, example)
    fixed = {}
    for key, value in given.items():
        if key.split(".")[0] in schema.model_fields:
            set_key(tree, key, value)
        elif key in known_keys():
            fixed[key] = value
        else:
            raise _unknown(key, value, schema, Config)
    if fixed and isinstance(others := tree.get("fixed") or {}, dict):
        for key in others if "fixed" in given else ():
            if key in fixed:
                raise UserError(
                    f"{_COMMAND_LINE}{key} = {shown(fixed[key])}: is also set by"
                    f" fixed = {shown(others)}; keep one of the two"
                )
        tree["fixed"] = others | fixed
    sources = {"": f"{path}: "} | dict.fromkeys(given, _COMMAND_LINE)
    _check_homes(tree, sources)
    runs = validate(schema, tree, sources)
    changes: dict[str, Any] = {"output_dir": runs.output_dir.expanduser().absolute()}
    if isinstance(runs.base, str):
        place = Path(runs.base).expanduser()
        changes["base"] = str(place if place.is_absolute() else (path.parent / place).resolve())
    runs = runs.model_copy(update=changes)
    if fixed:
        # Now, while the source of these values is known to be the command line.
        resolve_base(runs, path, given=fixed)
    return runs


def resolve_base(
    runs: ManyRuns, path: Path, *, given: Collection[str] = (), needs_data: bool = True
) -> Config:
    """Return the run's configuration that the file at ``path`` builds on, with its fixed settings.

    ``given`` are the keys of ``fixed`` that the command line has set.

    Raises:
        UserError: a key is unknown, a value breaks its rule, or a path does not exist.
    """
    if isinstance(runs.base, str):
        tree, sources = read_yaml(Path(runs.base)), {"": f"{runs.base}: "}
    else:
        tree, sources = copy.deepcopy(runs.base), {"": f"{path}: base."}
    tree["output_dir"] = str(runs.output_dir)
    for key, value in runs.fixed.items():
        sources[key] = _COMMAND_LINE if key in given else f"{path}: fixed."
        if key not in known_keys():
            raise UserError(f"{sources[key]}{key} = {shown(value)}: {describe_unknown(key)}")
        set_key(tree, key, value)
    _check_homes(tree, sources)
    _keep_tracker(tree)
    _keep_earlier_values(tree)
    config = validate(Config, tree, sources)
    if needs_data:
        check_paths(config, sources)
    return config


def fill_earlier_values(tree: dict[str, Any], record: Mapping[str, Any]) -> None:
    """Set the keys that are newer than a run's recorded settings, or had another default then.

    Settings that no release has recorded, which lack keys of the first one too, change nothing.
    """
    recorded = flatten(record)
    is_record = recorded.keys() >= set(known_keys()) - EARLIER_VALUES.keys()
    if is_record and not recorded.keys() >= EARLIER_VALUES.keys():
        for key in EARLIER_VALUES.keys() - flatten(tree).keys():
            set_key(tree, key, recorded.get(key, EARLIER_VALUES[key]))


def _keep_earlier_values(tree: dict[str, Any]) -> None:
    """Resume the runs in the output folder, if any, with the settings that they started with."""
    fill_earlier_values(tree, tree)
    place = Path(str(tree.get("output_dir"))).expanduser()
    for pattern in ("config.yaml", "trials/*/**/config.yaml", "*/seed-*/config.yaml"):
        for file in sorted(place.glob(pattern))[:1]:
            fill_earlier_values(tree, read_yaml(file))


def _keep_tracker(tree: dict[str, Any]) -> None:
    """Set the tracker to that of the folder's entry, unless the settings name one."""
    place = Path(str(tree.get("output_dir"))).expanduser() / TRACKER_FILE
    tracking = tree.get("tracking", {})
    if isinstance(tracking, dict) and "uri" not in tracking and place.is_file():
        set_key(tree, "tracking.uri", json.loads(place.read_text(encoding="utf-8"))["uri"])


def _keep_tracker_of_record(tree: dict[str, Any], path: Path) -> None:
    """Set a tracker whose path is relative in a run's own record to the absolute one in use."""
    tracking, place = tree.get("tracking"), path.with_name(TRACKER_FILE)
    uri = str(tracking.get("uri")) if isinstance(tracking, dict) else ""
    if path.name == "config.yaml" and place.is_file() and re.match(r"sqlite:///(?![/~])", uri):
        set_key(tree, "tracking.uri", json.loads(place.read_text(encoding="utf-8"))["uri"])


def _check_homes(tree: dict[str, Any], sources: Sources) -> None:
    """Refuse paths in home folders that do not exist; move the cache out of one not writable."""
    flat = flatten(tree)
    cache = flat.get("data.cache_dir", str(DEFAULT_CACHE))
    if isinstance(cache, str) and isinstance(tree.get("data"), dict):
        place = cache_folder(Path(cache))
        if cache.startswith("~/") and place != expanded(cache):
            logger.warning("data.cache_dir = %s: cannot be written; %s is used", cache, place)
            set_key(tree, "data.cache_dir", str(place))
            flat["data.cache_dir"] = str(place)
    for key in _PATHS:
        text = flat.get(key)
        if isinstance(text, str) and "\0" in text:
            raise UserError(f"{source_of(key, sources)}{key}: a path must not contain a null byte")
        if isinstance(text, str) and expanded(text) is None:
            home = text.partition("/")[0]
            raise UserError(
                f"{source_of(key, sources)}{key} = {text}: there is no home folder {home}; give a"
                f" full path, {key}=/PATH"
            )


def validate(schema: type[AnySection], tree: Mapping[str, Any], sources: Sources) -> AnySection:
    """Return a section of a schema from plain values.

    Raises:
        UserError: names source, key, value, rule and fix, on one line.
    """
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise UserError(describe(error, tree, sources, schema)) from None


def dump_config(config: Config) -> str:
    """Return a configuration as YAML that ``load_config`` reads back unchanged."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _parse_overrides(overrides: Sequence[str], example: str) -> dict[str, Any]:
    """Return the values of ``key=value`` by dotted key, read as files are."""
    given: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(
                f"{_COMMAND_LINE}{override!r}: overrides are written key=value, such as {example}"
            )
        where = f"{_COMMAND_LINE}{key} = {shown(text)}"
        try:
            value = parse_value(text)
        except KeyProblem as error:
            raise UserError(f"{where}: {error.problem}") from None
        except yaml.YAMLError:
            raise UserError(f"{where}: must be valid YAML; put text in quotes") from None
        for other in given:
            if f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}."):
                twin = f"{other} = {shown(given[other])}"
                raise UserError(f"{where}: is also set by {twin}; keep one of the two")
        given[key] = value
    return given


def _unknown(key: str, value: object, *schemas: type[Section]) -> UserError:
    return UserError(f"{_COMMAND_LINE}{key} = {shown(value)}: {describe_unknown(key, *schemas)}")


def set_key(tree: dict[str, Any], key: str, value: object) -> None:
    """Set a value by its dotted key, and create the sections above it."""
    *parents, leaf = key.split(".")
    branch: Any = tree
    for parent in parents:
        if branch.get(parent) is None:
            branch[parent] = {}
        branch = branch[parent]
        if not isinstance(branch, dict):
            return  # validation will report that this must be a section
    branch[leaf] = value


def check_paths(config: Config, sources: Sources, needs: Collection[str] = NEEDED_PATHS) -> None:
    """Refuse needed paths that do not exist, before any work is done.

    Raises:
        UserError: a path is missing.
    """
    for key, value, kind in (
        ("data.root", config.data.root, "folder"),
        ("model.pretrained", config.model.pretrained, "file or run"),
    ):
        if value is None or is_remote(value) or key not in needs:
            continue
        place = Path(value).expanduser()
        is_run = (place / BEST_FILE).is_file()
        if not (place.is_dir() if kind == "folder" else place.is_file() or is_run):
            raise UserError(
                f"{source_of(key, sources)}{key} = {value}: no such {kind} (looked in"
                f" {Path.cwd()}); give {key}=PATH"
            )
