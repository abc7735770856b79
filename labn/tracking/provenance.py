"""Provenance of a run: code, versions and command line, without secrets."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

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

    ``git.commit`` and ``git.dirty`` describe the checkout around the working directory, and
    ``labn.commit`` this package; they are absent if there is none, as is the version of a library
    that is not installed. ``waiting`` is what the environment says on how threads wait.
    """
    versions = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    here, own = _described(Path.cwd()), package_commit()
    commit, _, dirty = (here or "").partition("-")
    return (
        ({"git.commit": commit, "git.dirty": "true" if dirty else "false"} if here else {})
        | ({"labn.commit": own} if own else {})
        | {f"version.{name}": version for name, version in versions.items()}
        | ({"waiting": waiting} if (waiting := _waiting()) else {})
        | {"command": redact(shlex.join(sys.argv))}
    )


def _waiting() -> str:
    policy, spins = (os.environ.get(name, "") for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"))
    return ", ".join(filter(None, [policy.lower(), spins and f"{spins} spins"]))


def package_commit() -> str | None:
    """Return the commit of this package's code, with ``-dirty`` if that was changed since.

    A wheel carries it; otherwise it is that of the package's own checkout, if there is one.
    """
    package = Path(__file__).parents[1]
    if (recorded := package / "commit.txt").is_file():
        return recorded.read_text(encoding="utf-8").strip()
    # A checkout around an installed package would be another project's.
    return _described(package.parent) if (package.parent / ".git").exists() else None


def _described(folder: Path) -> str | None:
    """Return the commit of the checkout around a folder, with ``-dirty`` if it was changed."""
    describe = ("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")
    try:
        answer = subprocess.run(
            ("git", "--no-optional-locks", "-C", folder, *describe),
            capture_output=True,
            check=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
