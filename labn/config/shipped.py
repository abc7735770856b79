"""The files that come with the package: configurations, clusters, scripts."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from pathlib import Path

from labn.errors import UserError
from labn.storage.files import write_atomically

CONFIGS, SEARCHES, ABLATIONS = "configs", "configs/search", "configs/ablation"
_INSTALLED = "share/labn"


def shipped_folder() -> Path:
    """Return the folder that holds ``configs``, ``cluster`` and ``tune``.

    It is the repository, or where a wheel puts its data files.

    Raises:
        UserError: the package was installed without them.
    """
    beside = Path(__file__).parents[2]
    # The repository's root; where `pip install --target` puts data files; where a wheel lists them.
    places = [beside, beside / _INSTALLED]
    for file in importlib.metadata.files("labn") or ():
        if file.match(f"{_INSTALLED}/{CONFIGS}/demo.yaml"):
            places.append(Path(str(file.locate())).resolve().parents[1])
    for place in places:
        if (place / CONFIGS / "demo.yaml").is_file():
            return place
    raise UserError("labn was installed without its configurations; install its wheel again")


def shipped_names(folder: str) -> list[str]:
    """Return the names of the shipped files of one folder, such as ``demo`` and ``idrid``."""
    return sorted(path.stem for path in (shipped_folder() / folder).glob("*.yaml"))


def find_config(path: Path, folder: str) -> Path:
    """Return a configuration's path; a bare name that is no file means the shipped one.

    Raises:
        UserError: it is neither a path that exists nor a shipped name.
    """
    if path.exists():
        return path
    names = shipped_names(folder)
    if str(path) in names:
        return shipped_folder() / folder / f"{path}.yaml"
    raise UserError(
        f"{path}: no such configuration file; give a path, or a shipped one's name"
        f" ({', '.join(names)}), which `labn init` writes out"
    )


def copy_shipped(patterns: Iterable[str], to: Path) -> tuple[list[Path], list[Path]]:
    """Copy shipped files; return those written and those that were there, which stay as they are.

    ``patterns`` are relative to the shipped folder.
    """
    source = shipped_folder()
    written, kept = [], []
    for path in sorted(path for pattern in patterns for path in source.glob(pattern)):
        target = to / path.relative_to(source)
        if target.exists():
            kept.append(target)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, path.read_bytes())
        target.chmod(path.stat().st_mode & 0o777)
        written.append(target)
    return written, kept
