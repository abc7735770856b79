"""Provenance of a run: code, versions and command line, without secrets."""

from __future__ import annotations

import platform
import re
import shlex
import subprocess
import sys
from importlib import metadata

_DISTRIBUTIONS = ("torch", "mlflow", "numpy", "labn")
# The second form is a password with an unescaped slash, which SQLAlchemy accepts.
_USER_INFO = re.compile(r"(?<=://)(?:[^\s/?#]*|[^\s/:@]*:[^\s@]*)@")
_SECRET_FIELD = re.compile(
    r"(?<=[?&;])([\w.-]*(?:password|passwd|pwd|secret|token|key|signature|sig)[\w.-]*)=[^\s&;#'\"]*",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Return a text without user, password and secret query values in its URLs."""
    return _SECRET_FIELD.sub(r"\1=***", _USER_INFO.sub("", text))


def environment_tags() -> dict[str, str]:
    """Return tags that describe the code and libraries of this process.

    ``git.commit`` and ``git.dirty`` describe the checkout around the working directory; they are
    absent if there is none, as is the version of a library that is not installed.
    """
    versions = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return (
        _git_tags()
        | {f"version.{name}": version for name, version in versions.items()}
        | {"command": redact(shlex.join(sys.argv))}
    )


def _git_tags() -> dict[str, str]:
    describe = ("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")
    try:
        answer = subprocess.run(
            ("git", "--no-optional-locks", *describe),
            capture_output=True,
            check=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    commit, _, dirty = answer.stdout.strip().partition("-")
    return {"git.commit": commit, "git.dirty": "true" if dirty else "false"}
