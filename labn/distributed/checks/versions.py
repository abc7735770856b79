"""A comparison of the versions in a cluster's file with those installed here."""

from __future__ import annotations

import platform
from importlib.metadata import version as installed

from labn.distributed.checks.machine import Check


def check_versions(pinned: dict[str, str | None], where: dict[str, str]) -> Check:
    """Compare the nodes' versions with those here; ``where`` is the place of each in the file.

    A driver and its nodes must have the same versions: Ray refuses others, and Python's and torch's
    pickles differ. Names are python (major and minor version only), ray, torch and labn.
    """
    faults = []
    for name, place in where.items():
        here = platform.python_version() if name == "python" else installed(name)
        here = _shortened(name, here)
        there = pinned.get(name)
        if there is None:
            faults.append(f"{place} names no version of {name}: give {here}")
        elif _shortened(name, there) != here:
            faults.append(f"{place} has {name} {there}, but {here} is installed here")
    if faults:
        fix = "set the versions that are installed here, or install those here"
        return Check("versions", "fail", "; ".join(faults), fix)
    agreed = ", ".join(f"{name} {pinned[name]}" for name in where)
    return Check("versions", "ok", f"{agreed}, as here")


def _shortened(name: str, version: str) -> str:
    # torch's build tag, as in 2.14.1+cu130, may differ between nodes with and without a GPU.
    version = version.partition("+")[0]
    return ".".join(version.split(".")[:2]) if name == "python" else version
