"""Checks of a file of Ray's launcher, such as cluster/gpu.yaml, gcp.yaml and onprem.yaml."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shutil
from pathlib import Path
from typing import Any

from labn.distributed.checks.machine import Check
from labn.distributed.checks.ray_schema import why_not_launchable
from labn.distributed.checks.versions import check_versions
from labn.distributed.launch.cluster_files import ClusterFile

TOKEN = "~/.ray/auth_token"
_WHEEL = re.compile(r"labn-([^-]+)-py3-none-any\.whl")
_MODULES = {"aws": ("boto3", "boto3"), "gcp": ("googleapiclient", "google-api-python-client")}
_MAX_IDLE_MINUTES = 60
_WORLD = ("0.0.0.0/0", "::/0")


def check_launcher(file: ClusterFile) -> list[Check]:
    """Return the checks of schema, files, versions, storage, token, ports, idle nodes and tools."""
    tree = file.tree
    return [
        _check_schema(tree),
        _check_files(file),
        _check_key(tree),
        _check_versions(file),
        _check_storage(file),
        _check_token(tree),
        _check_ports(file),
        _check_idle(tree),
        _check_tools(_provider(tree)),
    ]


def _provider(tree: dict[str, Any]) -> dict[str, Any]:
    provider = tree.get("provider")
    return provider if isinstance(provider, dict) else {}


def _check_schema(tree: dict[str, Any]) -> Check:
    noise = io.StringIO()
    with contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
        fault = why_not_launchable(tree)
    if fault:
        fix = "fix that key; https://docs.ray.io has the list: cluster YAML configuration options"
        return Check("schema", "fail", fault, fix)
    return Check("schema", "ok", "valid for Ray's launcher")


def _check_files(file: ClusterFile) -> Check:
    mounts = file.tree.get("file_mounts") or {}
    if not isinstance(mounts, dict):
        detail = f"file_mounts = {mounts!r}: must map paths on nodes to paths here"
        return Check("files", "fail", detail, "write one per line, such as ~/labn/dist: dist")
    for there, here in mounts.items():
        place = Path(str(here)).expanduser()
        if there == TOKEN or place.exists():
            continue
        fix = "run this in the project's folder, or fix the path"
        if place.name == "dist":
            fix = "build what nodes install: pip wheel . --no-deps -w dist"
        return Check("files", "fail", f"file_mounts.{there} = {here}: does not exist here", fix)
    wheel = file.exports().get("LABN_WHEEL", "")
    folders = [Path(str(here)).expanduser() for here in mounts.values()]
    if wheel and not any((folder / wheel).is_file() for folder in folders):
        detail = f"LABN_WHEEL = {wheel}: is in no folder of file_mounts"
        return Check(
            "files", "fail", detail, "build it: pip wheel . --no-deps -w dist, or fix the name"
        )
    return Check("files", "ok", f"{len(mounts)} paths exist and will be copied")


def _check_key(tree: dict[str, Any]) -> Check:
    auth = tree.get("auth")
    given = auth.get("ssh_private_key") if isinstance(auth, dict) else None
    if not given:
        if _provider(tree).get("type") == "local":
            fix = "name the private key that opens all machines, such as ~/.ssh/id_ed25519"
            return Check("ssh key", "fail", "auth.ssh_private_key is not set", fix)
        return Check("ssh key", "ok", "Ray makes one in ~/.ssh")
    place = Path(str(given)).expanduser()
    if not place.is_file():
        detail = f"auth.ssh_private_key = {given}: does not exist here"
        return Check("ssh key", "fail", detail, "name a private key: ssh-keygen makes one")
    if place.stat().st_mode & 0o077:
        detail = f"auth.ssh_private_key = {given}: others may read it, so ssh refuses it"
        return Check("ssh key", "fail", detail, f"chmod 600 {given}")
    return Check("ssh key", "ok", str(given))


def _check_versions(file: ClusterFile) -> Check:
    exports = file.exports()
    wheel = _WHEEL.fullmatch(exports.get("LABN_WHEEL", ""))
    pinned = {
        "python": exports.get("LABN_PYTHON"),
        "ray": exports.get("LABN_RAY"),
        "torch": exports.get("LABN_TORCH"),
        "labn": wheel[1] if wheel else None,
    }
    names = {"python": "PYTHON", "ray": "RAY", "torch": "TORCH", "labn": "WHEEL"}
    return check_versions(pinned, {name: f"LABN_{key}" for name, key in names.items()})


def _check_storage(file: ClusterFile) -> Check:
    exports, kind = file.exports(), _provider(file.tree).get("type")
    shared = exports.get("LABN_SHARED", "")
    if not shared.startswith("/"):
        detail = f"LABN_SHARED = {shared or 'nothing'}: must be an absolute path, the same on all"
        return Check("storage", "fail", detail, "export LABN_SHARED=/mnt/labn in setup_commands")
    if kind != "local" and ":/" not in exports.get("LABN_NFS", ""):
        detail = f"LABN_NFS = {exports.get('LABN_NFS', 'nothing')}: nothing shared is mounted there"
        return Check("storage", "fail", detail, "give HOST:/PATH of a file system that nodes share")
    starts = " ".join(file.commands()["head_start_ray_commands"])
    if "labn cluster tracker" not in starts:
        fix = "add `labn cluster tracker --shared $LABN_SHARED ...` to head_start_ray_commands"
        return Check("storage", "fail", "the head starts no tracker", fix)
    tracker = starts[starts.index("labn cluster tracker") :]
    if not re.search(
        r"--shared[ =](\$\{?LABN_SHARED\}?|" + re.escape(shared) + r")(/|\s|$)", tracker
    ):
        detail = "the tracker keeps its files where only the head sees them"
        return Check("storage", "fail", detail, "pass it --shared $LABN_SHARED")
    source = "mounted by you on each machine" if kind == "local" else exports["LABN_NFS"]
    return Check("storage", "ok", f"{shared} ({source}); the tracker keeps its files there")


def _check_token(tree: dict[str, Any]) -> Check:
    mounts = tree.get("file_mounts") or {}
    if TOKEN not in mounts:
        fix = f"add {TOKEN}: {TOKEN} to file_mounts"
        return Check("token", "fail", "nodes do not receive a token, so anyone may run code", fix)
    place = Path(str(mounts[TOKEN])).expanduser()
    if not place.is_file():
        detail = f"{mounts[TOKEN]}: does not exist yet"
        return Check(
            "token", "warn", detail, "labn cluster up makes it, or: ray get-auth-token --generate"
        )
    if place.stat().st_mode & 0o077:
        detail = f"{mounts[TOKEN]}: others on this machine may read it"
        return Check("token", "warn", detail, f"chmod 600 {mounts[TOKEN]}")
    return Check("token", "ok", "one for all nodes")


def _check_ports(file: ClusterFile) -> Check:
    faults = []
    for key, commands in file.commands().items():
        for command in commands:
            if match := re.search(r"--(dashboard-host|host)[ =](0\.0\.0\.0|::)", command):
                faults.append(f"{key}: {match[0]} listens on all addresses")
    group = _provider(file.tree).get("security_group") or {}
    for rule in group.get("IpPermissions") or []:
        ranges = [one.get("CidrIp") for one in rule.get("IpRanges") or []]
        ranges += [one.get("CidrIpv6") for one in rule.get("Ipv6Ranges") or []]
        if any(one in _WORLD for one in ranges):
            ports = f"{rule.get('FromPort', 'all')}-{rule.get('ToPort', 'all')}"
            faults.append(f"provider.security_group opens ports {ports} to the world")
    if faults:
        fix = "leave it out, and reach the pages through ssh: labn cluster tunnel"
        return Check("ports", "fail", "; ".join(faults), fix)
    return Check("ports", "ok", "none is opened; pages are reached by labn cluster tunnel")


def _check_idle(tree: dict[str, Any]) -> Check:
    if _provider(tree).get("type") == "local":
        return Check("idle nodes", "ok", "your own machines: none is paid for")
    minutes = tree.get("idle_timeout_minutes")
    if not isinstance(minutes, int | float) or not 0 < minutes <= _MAX_IDLE_MINUTES:
        detail = (
            f"idle_timeout_minutes = {minutes}: machines that do nothing stay, and are paid for"
        )
        return Check("idle nodes", "fail", detail, "give a number of minutes up to 60, such as 5")
    kept = [
        f"{name} ({kind['min_workers']})"
        for name, kind in (tree.get("available_node_types") or {}).items()
        if isinstance(kind, dict) and kind.get("min_workers")
    ]
    if kept:
        detail = f"min_workers keeps machines while they do nothing: {', '.join(kept)}"
        return Check("idle nodes", "warn", detail, "set min_workers: 0, unless you mean it")
    return Check("idle nodes", "ok", f"released after {minutes:g} minutes")


def _check_tools(provider: dict[str, Any]) -> Check:
    missing = [name for name in ("ssh", "rsync") if shutil.which(name) is None]
    if missing:
        detail = f"not found here: {', '.join(missing)}"
        return Check("tools", "fail", detail, "install them; Ray's launcher runs them")
    module, package = _MODULES.get(str(provider.get("type")), ("", ""))
    if module and importlib.util.find_spec(module) is None:
        detail = f"{package} is not installed here; without it nothing can be rented"
        return Check("tools", "warn", detail, f"pip install {package}")
    return Check("tools", "ok", "ssh and rsync are here" + (f", {package} too" if module else ""))
