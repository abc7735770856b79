"""Checks of whether this machine is ready to train, with fixes."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sqlite3
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from labn.tracking.provenance import package_commit

Status = Literal["ok", "warn", "fail"]

MIN_PYTHON = (3, 11)
MIN_RAY = (2, 58)
"""The first version with all that is called: ``ray.train.get_preemption_info``."""
MIN_MEMORY_GB = 4.0
MIN_DISK_GB = 5.0
TRACKER_TIMEOUT_S = 3.0

_GB = 1e9
_MARKS: dict[Status, str] = {"ok": "ok", "warn": "warn", "fail": "FAIL"}


@dataclass(frozen=True)
class Check:
    """The result of one check; ``fix`` is one line of advice, unless the status is ok."""

    name: str
    status: Status
    detail: str
    fix: str | None = None


def run_checks(
    *, data_root: Path | str | None, tracking_uri: str, cache_dir: Path, output_dir: Path
) -> list[Check]:
    """Return the checks of all that a run needs; nothing is created, and Ray is not started."""
    checks = [
        _check_code(),
        _check_python(),
        _check_torch(),
        _check_accelerator(),
        _check_compiler(),
        _check_memory(),
    ]
    for key, folder in (("output_dir", output_dir), ("data.cache_dir", cache_dir)):
        checks += [_check_writable(key, folder), _check_disk(key, folder)]
    checks += [_check_ray(), check_tracker(tracking_uri)]
    if data_root is not None:
        checks.append(_check_data_root(data_root))
    return checks


def as_text(checks: Sequence[Check]) -> str:
    """Return one aligned line per check, followed by its fix where there is one."""
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        lines.append(f"{_MARKS[check.status]:4}  {check.name:{width}}  {check.detail}")
        if check.fix is not None:
            lines.append(f"{'':4}  {'':{width}}  -> {check.fix}")
    return "\n".join(lines)


def as_json(checks: Sequence[Check]) -> dict[str, Any]:
    """Return the checks as plain types, and the worst status among them."""
    statuses = {check.status for check in checks}
    worst = next((status for status in ("fail", "warn") if status in statuses), "ok")
    return {"status": worst, "checks": [asdict(check) for check in checks]}


def _check_code() -> Check:
    commit = package_commit()
    known = f"commit {commit}" if commit else "commit not known, because it was built without git"
    return Check("labn", "ok", f"{importlib.metadata.version('labn')}, {known}")


def _check_python() -> Check:
    detail = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < MIN_PYTHON:
        needed = ".".join(map(str, MIN_PYTHON))
        return Check("python", "fail", detail, f"install labn under Python {needed} or newer")
    return Check("python", "ok", detail)


def _check_torch() -> Check:
    try:
        import torch
    except (ImportError, OSError) as error:
        fix = "install PyTorch again, the build for this machine (https://pytorch.org)"
        return Check("torch", "fail", f"cannot be imported: {_one_line(error)}", fix)
    from labn.training.precision import cpu_has_bf16

    bf16 = (
        "bf16 in the CPU's hardware" if cpu_has_bf16() else "no bf16 detected in the CPU's hardware"
    )
    return Check("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads, {bf16}")


def _check_accelerator() -> Check:
    name = "accelerator"
    try:
        import torch
    except (ImportError, OSError):
        return Check(name, "fail", "not checked: torch cannot be imported", "fix torch first")
    devices = []
    if torch.cuda.is_available():
        bf16 = ", bf16" if torch.cuda.is_bf16_supported() else ""
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            devices.append(f"{properties.name} ({properties.total_memory / _GB:.1f} GB{bf16})")
    if devices:
        return Check(name, "ok", ", ".join(devices))
    detail = "no accelerator: training runs on the CPU"
    if shutil.which("nvidia-smi"):
        fix = "nvidia-smi is here but torch sees no GPU: check the driver and torch's CUDA build"
        return Check(name, "warn", detail, fix)
    return Check(name, "ok", detail)


def _check_compiler() -> Check:
    try:
        from labn.model.kernels import compiled
    except (ImportError, OSError):
        return Check("compiler", "warn", "not checked: torch cannot be imported", "fix torch first")
    if os.environ.get("LABN_COMPILE", "1") == "0":
        return Check("compiler", "ok", "not used: LABN_COMPILE=0; torch computes everything")
    found = compiled.compiler()
    if found is None:
        fix = "install g++ for a faster network on a CPU; the results are the same, to rounding"
        return Check("compiler", "warn", "none; torch computes everything", fix)
    return Check("compiler", "ok", f"{found}, for lambda layers and batch norm on a CPU")


def _check_memory() -> Check:
    try:
        import psutil
    except ImportError as error:
        fix = "install psutil"
        return Check("memory", "warn", f"not checked: {_one_line(error)}", fix)
    available_gb = psutil.virtual_memory().available / _GB
    detail = f"{available_gb:.1f} GB available"
    if available_gb < MIN_MEMORY_GB:
        fix = "close other programs, or lower train.batch_size and validation.batch_size"
        return Check("memory", "warn", f"{detail}, less than {MIN_MEMORY_GB:.0f}", fix)
    return Check("memory", "ok", detail)


def _check_disk(key: str, folder: Path) -> Check:
    name = f"{key} space"
    free_gb = shutil.disk_usage(_nearest(folder)).free / _GB
    detail = f"{free_gb:.1f} GB free"
    if free_gb < MIN_DISK_GB:
        fix = f"free some space, or set a folder on another disk with {key}=PATH"
        return Check(name, "warn", f"{detail}, less than {MIN_DISK_GB:.0f}", fix)
    return Check(name, "ok", detail)


def _check_writable(key: str, folder: Path) -> Check:
    place = _nearest(folder)
    if reason := _why_not_writable(place):
        fix = f"set a folder that you can write to with {key}=PATH"
        return Check(key, "fail", f"{folder}: cannot write to {place} ({reason})", fix)
    note = "" if place == folder.expanduser().absolute() else ", which a run creates"
    return Check(key, "ok", f"can write to {folder}{note}")


def _check_ray() -> Check:
    # Found but not imported: importing ray starts threads and takes seconds.
    if importlib.util.find_spec("ray") is None:
        detail = "not installed: no search, and no training on several workers"
        return Check("ray", "warn", detail, 'install "ray[train,tune,default]"')
    version = importlib.metadata.version("ray")
    if tuple(map(int, version.split(".")[:2])) < MIN_RAY:
        needed = ".".join(map(str, MIN_RAY))
        detail = f"{version}, older than {needed}, which first reports nodes that are taken back"
        return Check("ray", "fail", detail, f'install "ray[train,tune,default]>={needed}"')
    return Check("ray", "ok", f"{version}, installed (not started)")


def check_tracker(uri: str) -> Check:
    """Return whether a tracker exists and answers; nothing is created."""
    if uri == "none":
        return Check("tracking.uri", "ok", "none: runs are logged nowhere")
    scheme = uri.partition(":")[0] if ":" in uri else ""
    if scheme in ("http", "https"):
        return _check_server(uri)
    if scheme == "sqlite":
        return _check_sqlite(uri)
    if scheme in ("", "file"):
        fix = "MLflow no longer logs to folders; give tracking.uri=sqlite:///mlflow.db"
        return Check("tracking.uri", "fail", f"{uri} names a folder or file", fix)
    fix = f"make sure that every worker reaches it; labn checks sqlite and http(s), not {scheme}"
    return Check("tracking.uri", "warn", f"a {scheme} store, not checked", fix)


def _check_sqlite(uri: str) -> Check:
    path = Path(uri.removeprefix("sqlite:///")).expanduser().absolute()
    try:
        if path.exists():
            # Read-only, so that nothing is created. An empty file is a new database.
            store = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
            with contextlib.closing(store):
                store.execute("PRAGMA schema_version")
        reason = _why_not_writable(_nearest(path.parent))
    except sqlite3.Error as error:
        reason = _one_line(error)
    if reason:
        fix = "set a database file that you can write with tracking.uri=sqlite:///PATH"
        return Check("tracking.uri", "fail", f"{path}: {reason}", fix)
    return Check("tracking.uri", "ok", f"can write {path}")


def _check_server(uri: str) -> Check:
    try:
        parts = urlsplit(uri)
        # Without user and password, which must not be reported.
        server = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="")
        health = server._replace(path=f"{server.path.rstrip('/')}/health")
        with urllib.request.urlopen(health.geturl(), timeout=TRACKER_TIMEOUT_S):
            return Check("tracking.uri", "ok", f"{server.geturl()} answers")
    except urllib.error.HTTPError as error:
        error.close()
        detail = f"{health.geturl()} answers {error.code} {error.reason}"
        fix = "check the address; for a 403, set MLFLOW_SERVER_ALLOWED_HOSTS on the server"
    except (OSError, ValueError, HTTPException) as error:
        detail = f"the server does not answer: {_one_line(getattr(error, 'reason', error))}"
        fix = "start `mlflow server` there, check the address, or set tracking.uri=none"
    return Check("tracking.uri", "fail", detail, fix)


def _check_data_root(root: Path | str) -> Check:
    if isinstance(root, str):
        return _check_remote_data(root)
    folder = root.expanduser().absolute()
    if not folder.is_dir():
        fix = "set the folder of the data set with data.root=PATH"
        return Check("data.root", "fail", f"{root}: there is no folder {folder}", fix)
    return Check("data.root", "ok", f"{folder}; `labn data check` checks its content")


def _check_remote_data(root: str) -> Check:
    from labn.storage.remote import Folder, StorageError

    try:
        num_files = len(Folder(root).files())
    except StorageError as error:
        fix = "check the address; pass credentials in the environment"
        return Check("data.root", "fail", f"{root}: cannot be read ({error})", fix)
    if not num_files:
        fix = "set the folder of the data set with data.root=s3://BUCKET/FOLDER"
        return Check("data.root", "fail", f"{root}: holds no files", fix)
    return Check("data.root", "ok", f"{root}: {num_files} files, mirrored when they are used")


def _nearest(folder: Path) -> Path:
    """Return the folder, or the nearest folder above it that exists."""
    folder = folder.expanduser().absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def _why_not_writable(folder: Path) -> str | None:
    # Permission bits do not show read-only mounts, quotas and access lists.
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or type(error).__name__


def _one_line(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__
