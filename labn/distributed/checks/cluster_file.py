"""Checks of a cluster's file, before anything is started or paid for."""

from __future__ import annotations

import re
from pathlib import Path

from labn.distributed.checks.kuberay import check_kubernetes
from labn.distributed.checks.launcher import check_launcher
from labn.distributed.checks.machine import Check
from labn.distributed.launch.cluster_files import PLACEHOLDER, ClusterFile, read_cluster

_PLACEHOLDER = re.compile(rf"{PLACEHOLDER}\w*")


def check_cluster(path: Path) -> list[Check]:
    """Return all checks that this machine can make without contacting the cluster.

    Raises:
        UserError: the file cannot be read.
    """
    file = read_cluster(path)
    checks = [_check_placeholders(file)]
    checks += check_kubernetes(file) if file.is_kubernetes else check_launcher(file)
    return checks


def _check_placeholders(file: ClusterFile) -> Check:
    found = [
        f"{key} ({match[0]})" for key, text in file.texts() for match in _PLACEHOLDER.finditer(text)
    ]
    if found:
        fix = f"set them at the top of {file.path}"
        return Check("values", "fail", f"not set: {', '.join(found)}", fix)
    return Check("values", "ok", "all are set")
