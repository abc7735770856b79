"""The shipped cluster files with sample values, in a project with the files that they copy."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FILES = ("gpu.yaml", "gcp.yaml", "onprem.yaml", "kuberay.yaml")
VALUES = {
    "CHANGE_ME_GROUP": "labn",
    "CHANGE_ME_FILE_SYSTEM": "fs-0123456789abcdef0",
    "CHANGE_ME_PROJECT": "my-project-1",
    "CHANGE_ME_FILESTORE_ADDRESS": "10.1.2.3",
    "CHANGE_ME_HEAD": "10.0.0.10",
    "CHANGE_ME_WORKER": "10.0.0.11",
    "CHANGE_ME_USER": "me",
    "CHANGE_ME_KEY": "~/.ssh/id_ed25519",
    "CHANGE_ME_STORAGE_CLASS": "efs",
}


def lay_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the shipped files, fill them in, and create the user's files: key, token, wheel."""
    shutil.copytree(ROOT / "cluster", folder / "cluster")
    shutil.copytree(ROOT / "configs", folder / "configs")
    (folder / "dist").mkdir()
    (folder / f"dist/labn-{version('labn')}-py3-none-any.whl").touch()
    for secret in (".ssh/id_ed25519", ".ray/auth_token"):
        place = folder / "home" / secret
        place.parent.mkdir(parents=True)
        place.touch()
        place.chmod(0o600)
    monkeypatch.setenv("HOME", str(folder / "home"))
    monkeypatch.chdir(folder)
    for name in FILES:
        place = folder / "cluster" / name
        text = place.read_text()
        for placeholder, value in VALUES.items():
            text = text.replace(placeholder, value)
        place.write_text(text)
    return folder / "cluster"


def change(place: Path, *changes: tuple[str, str]) -> Path:
    """Replace texts of a file, each of which must occur."""
    text = place.read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    place.write_text(text)
    return place
