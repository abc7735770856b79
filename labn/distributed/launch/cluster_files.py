"""Files that describe clusters, for Ray's launcher and for KubeRay."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from labn.errors import UserError

PLACEHOLDER = "CHANGE_ME"
"""The prefix of values that the user must set."""

COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
_ASSIGNMENT = re.compile(r"([A-Z][A-Z0-9_]*)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class ClusterFile:
    """A cluster's file, read but not checked; a KubeRay file has several documents."""

    path: Path
    documents: list[dict[str, Any]]

    @property
    def is_kubernetes(self) -> bool:
        """Whether the file is for kubectl rather than for Ray's launcher."""
        return any("apiVersion" in document for document in self.documents)

    @property
    def tree(self) -> dict[str, Any]:
        """The one document of a file of Ray's launcher."""
        return self.documents[0]

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Return the Kubernetes objects of a kind."""
        return [document for document in self.documents if document.get("kind") == kind]

    def commands(self) -> dict[str, list[str]]:
        """Return the shell commands that nodes run, by key."""
        found = {}
        for key in COMMANDS:
            given = self.tree.get(key) or []
            found[key] = [str(one) for one in given] if isinstance(given, list) else []
        return found

    def exports(self) -> dict[str, str]:
        """Return the variables that the setup commands export, such as ``LABN_SHARED``."""
        values = {}
        for command in self.commands()["setup_commands"]:
            for word in _words(command.split(";")[0]):
                if match := _ASSIGNMENT.fullmatch(word):
                    values[match[1]] = match[2]
        return values

    def texts(self) -> Iterator[tuple[str, str]]:
        """Yield every text of the file with its dotted key."""
        for document in self.documents:
            yield from _texts(document, str(document.get("kind", "")))


def read_cluster(path: Path) -> ClusterFile:
    """Return a cluster's file.

    Raises:
        UserError: the file does not exist, or is not YAML, or not a mapping.
    """
    try:
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give a cluster's file, such as"
            " cluster/gpu.yaml"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from None
    documents = [document for document in documents if document is not None]
    if not documents or not all(isinstance(document, dict) for document in documents):
        raise UserError(f"{path}: must be a mapping of keys to values; see cluster/gpu.yaml")
    file = ClusterFile(path, documents)
    if not file.is_kubernetes and len(documents) > 1:
        raise UserError(f"{path}: has {len(documents)} documents; Ray's launcher reads one")
    return file


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, content in value.items():
            inner = f"{key}.{name}" if key else str(name)
            yield inner, str(name)
            yield from _texts(content, inner)
    elif isinstance(value, list):
        for number, content in enumerate(value):
            yield from _texts(content, f"{key}[{number}]")
    elif isinstance(value, str):
        yield key, value
