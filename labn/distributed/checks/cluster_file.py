"""Checks of a cluster's file, before anything is started or paid for."""

from __future__ import annotations

import re
from pathlib import Path

from labn.distributed.checks.kuberay import check_kubernetes
from labn.distributed.checks.launcher import check_launcher
from labn.distributed.checks.machine import Check
from labn.distributed.launch.cluster_files import PLACEHOLDER, ClusterFile, read_cluster

_VARIABLES = ("LABN_SHARED", "LABN_WHEEL", "LABN_PYTHON", "LABN_RAY", "LABN_TORCH")
_PLACEHOLDER = re.compile(rf"{PLACEHOLDER}\w*")


def check_cluster(path: Path) -> list[Check]:
    """Return all checks that this machine can make without contacting the cluster.

    Raises:
        UserError: the file cannot be read.
    """
    file = read_cluster(path)
    checks = _check_values(file)
    checks += check_kubernetes(file) if file.is_kubernetes else check_launcher(file)
    return checks


def _check_values(file: ClusterFile) -> list[Check]:
    """Return one failed check for each value that must be set and is not, or one that is ok."""
    missing = [
        (f"{key}: {match[0]}", f"set it at the top of {file.path}")
        for key, text in file.texts()
        for match in _PLACEHOLDER.finditer(text)
    ]
    if not file.is_kubernetes:
        exports, fix = file.exports(), "export it in setup_commands, as cluster/gpu.yaml does"
        missing += [(name, fix) for name in _VARIABLES if not exports.get(name)]
    checks = [Check("values", "fail", f"{what} is not set", fix) for what, fix in missing]
    return checks or [Check("values", "ok", "all are set")]
