"""The commit of the code in a wheel and a source distribution: setuptools loads this file alone.

A source tree without git records none. An editable installation needs none: it is a checkout.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

_ROOT = Path(__file__).parents[2]


def _write_commit(package: Path) -> None:
    if not (_ROOT / ".git").exists():
        return  # the commit of a repository around this folder would be another project's
    describe = ("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")
    try:
        answer = subprocess.run(
            ("git", "-C", _ROOT, *describe), capture_output=True, check=True, text=True
        )
    except (OSError, subprocess.SubprocessError):
        return
    (package / "commit.txt").write_text(answer.stdout, encoding="utf-8")


class BuildPy(build_py):
    """The step that copies the package, which also records the commit."""

    def run(self) -> None:
        """Copy the package."""
        super().run()
        if not self.editable_mode:
            _write_commit(Path(self.build_lib, "labn"))


class Sdist(sdist):
    """The step that makes a source distribution, which also records the commit."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Copy the files."""
        super().make_release_tree(base_dir, files)
        _write_commit(Path(base_dir, "labn"))
