"""The commands of Ray's launcher or kubectl that operate a cluster."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from labn.distributed.launch.cluster_files import ClusterFile
from labn.distributed.launch.tracker_server import PORT
from labn.errors import UserError

DASHBOARD_PORT = 8265
_LOGS = "tail -n {lines} {follow}/tmp/ray/session_latest/logs/monitor.log ~/labn/tracker/log"
_HEAD = "svc/labn-head-svc"


def up(file: ClusterFile) -> list[list[str]]:
    """Return the commands that start the cluster, or update it to its file."""
    if file.is_kubernetes:
        wanted = "labn in (storage, cluster)"
        return [["kubectl", "apply", "-f", str(file.path), "-l", wanted]]
    return [["ray", "up", "--yes", str(file.path)]]


def submit(file: ClusterFile, script: Path | None, arguments: Sequence[str]) -> list[list[str]]:
    """Return the commands that run a script on the head with these arguments.

    Arguments are quoted, since Ray joins them with spaces for the head's shell.

    Raises:
        UserError: the script does not exist, or is passed to KubeRay, whose job is in its file.
    """
    if file.is_kubernetes:
        if script is not None or arguments:
            raise UserError(
                f"{file.path}: a RayJob runs the file's spec.entrypoint; leave out"
                f" {' '.join(map(str, [script, *arguments]))}"
            )
        wanted = ["-f", str(file.path), "-l", "labn=search"]
        return [
            ["kubectl", "delete", "--ignore-not-found", *wanted],
            ["kubectl", "apply", *wanted],
        ]
    if script is None or not script.is_file():
        raise UserError(
            f"{script or 'no script'}: is no file; give one that runs on the head, such as"
            " tune/search.py"
        )
    quoted = [shlex.quote(argument) for argument in arguments]
    return [["ray", "submit", str(file.path), str(script), "--", *quoted]]


def tunnel(file: ClusterFile) -> list[list[str]]:
    """Return the commands that forward the tracker's and Ray's pages here until Ctrl-C."""
    ports = (PORT, DASHBOARD_PORT)
    if file.is_kubernetes:
        pairs = [f"{port}:{port}" for port in ports]
        return [["kubectl", "port-forward", "--address", "127.0.0.1", _HEAD, *pairs]]
    given = [word for port in ports for word in ("--port-forward", str(port))]
    return [["ray", "exec", str(file.path), *given, "sleep infinity"]]


def logs(file: ClusterFile, num_lines: int, follow: bool) -> list[list[str]]:
    """Return the commands that show the last log lines of the head's autoscaler and tracker."""
    if file.is_kubernetes:
        wanted = ["--tail", str(num_lines), *(["--follow"] if follow else [])]
        pods = ["-l", "ray.io/cluster=labn,ray.io/node-type=head", "--all-containers", "--prefix"]
        return [["kubectl", "logs", *pods, *wanted]]
    command = _LOGS.format(lines=num_lines, follow="--follow " if follow else "")
    return [["ray", "exec", str(file.path), command]]


def down(file: ClusterFile) -> list[list[str]]:
    """Return the commands that end the cluster; files on shared storage stay."""
    if file.is_kubernetes:
        wanted = "labn in (cluster, search)"
        return [["kubectl", "delete", "--ignore-not-found", "-f", str(file.path), "-l", wanted]]
    return [["ray", "down", "--yes", str(file.path)]]
