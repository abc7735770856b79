"""Checks that every node of a cluster reaches the data, the output folder and the tracker."""

from __future__ import annotations

import os
import platform
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from labn.config import Config
from labn.config.workers import Workers
from labn.distributed.checks.machine import check_tracker
from labn.errors import UserError
from labn.tracking import redact

_PATIENCE_S = 120
_PACKAGES = ("ray", "torch", "labn")


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """The requirements of a run, a search or a study on the nodes of a cluster."""

    output_dir: Path
    data_root: Path | str | None
    """A string is the address of object storage, which each node reads by itself."""
    tracking_uri: str
    workers: Workers

    @classmethod
    def of(cls, config: Config, workers: Workers) -> Requirements:
        """Return the requirements of runs with this configuration's paths."""
        return cls(
            output_dir=config.output_dir.expanduser().absolute(),
            data_root=config.data.root,
            tracking_uri=config.tracking.uri,
            workers=workers,
        )


@dataclass
class Report:
    """The report of one node; ``gpu`` and ``tracker`` are faults of its GPUs and its tracker."""

    address: str
    versions: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    output_fault: str | None = None
    sees_data: bool = True
    tracker: str | None = None
    gpu: str | None = None
    failure: str | None = None


def check_nodes(required: Requirements, message: Callable[[str], None]) -> None:
    """Check every node of the cluster that this process is connected to.

    The output must lie in the folder that ``LABN_SHARED`` names, where that is set, as on a
    cluster's head. A single node is not checked further. Nodes that join later are not checked.

    Raises:
        UserError: a node lacks something; of several faults the others are reported before.
    """
    shared, output_dir = os.environ.get("LABN_SHARED"), required.output_dir
    if shared and not output_dir.is_relative_to(shared):
        raise UserError(
            f"output_dir = {output_dir}: other nodes do not see it;"
            f" use a folder in {shared}, such as output_dir={shared}/runs/{output_dir.name}"
        )
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    if len(nodes) < 2:
        return
    message(f"checking {len(nodes)} nodes")
    token = secrets.token_hex(8)
    place = output_dir / f".preflight-{token}"
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        place.write_text(token)
    except OSError as error:
        raise UserError(
            f"output_dir = {output_dir}: cannot be written ({error.strerror}); use another folder"
        ) from None
    try:
        reports = _inspect_nodes(nodes, required, place)
    finally:
        place.unlink(missing_ok=True)
    faults = find_faults(reports, required, token, own_versions())
    for fault in faults[1:]:
        message(fault)
    if faults:
        more = f" (and {len(faults) - 1} more, above)" if len(faults) > 1 else ""
        raise UserError(faults[0] + more)


def own_versions() -> dict[str, str]:
    """Return the versions that must be the same on all nodes."""
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}


def _inspect_nodes(
    nodes: Sequence[dict[str, Any]], required: Requirements, place: Path
) -> list[Report]:
    inspect: Any = ray.remote(num_cpus=0, max_retries=0)(_inspect_node)
    pending = {}
    for node in nodes:
        trains = node["Resources"].get("CPU", 0) >= required.workers.cpus
        has_gpus = required.workers.gpus > 0 and node["Resources"].get("GPU", 0) > 0
        if required.workers.gpus > 0:
            trains = trains and has_gpus
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        pending[node["NodeManagerAddress"], node["NodeID"]] = inspect.options(
            scheduling_strategy=strategy
        ).remote(node["NodeManagerAddress"], required, place, trains, has_gpus)
    reports = []
    for (address, _), reference in pending.items():
        try:
            reports.append(ray.get(reference, timeout=_PATIENCE_S))
        # The node cannot report: labn is not installed there, or the node is gone.
        except Exception as error:  # noqa: BLE001
            lines = str(error).strip().splitlines() or [type(error).__name__]
            reports.append(Report(address, failure=lines[-1]))
    return reports


def _inspect_node(
    address: str, required: Requirements, place: Path, trains: bool, has_gpus: bool
) -> Report:
    """Return the report of the node on which this task runs."""
    report = Report(address, versions=own_versions())
    try:
        report.token = place.read_text()
        mine = place.with_name(f"{place.name}-{secrets.token_hex(4)}")
        mine.write_text("")
        mine.unlink()
    except OSError as error:
        report.output_fault = error.strerror or type(error).__name__
    if trains and isinstance(required.data_root, Path):
        report.sees_data = required.data_root.is_dir()
    if trains and required.tracking_uri.startswith(("http://", "https://")):
        check = check_tracker(required.tracking_uri)
        report.tracker = check.detail if check.status == "fail" else None
    if has_gpus:
        report.gpu = _why_no_gpu()
    return report


def _why_no_gpu() -> str | None:
    import torch

    if not torch.cuda.is_available():
        return "torch sees none"
    try:
        torch.zeros(1, device="cuda").add_(1).item()
    except RuntimeError as error:
        return " ".join(str(error).split())
    return None


def find_faults(
    reports: Sequence[Report], required: Requirements, token: str, versions: dict[str, str]
) -> list[str]:
    """Return one line per fault: the node, what is wrong, and the fix."""
    faults = []
    for report in reports:
        node = f"node {report.address}"
        if report.failure is not None:
            faults.append(
                f"{node}: cannot run our code ({report.failure}); is labn installed there? see"
                " `ray list nodes`, and start the cluster again"
            )
            continue
        for name, here in versions.items():
            there = report.versions.get(name, "none")
            if there != here:
                faults.append(
                    f"{node}: {name} is {there}, here {here}; install the same on all nodes"
                )
        if report.output_fault is not None or report.token != token:
            reason = report.output_fault or "another folder of that name"
            faults.append(
                f"output_dir = {required.output_dir}: {node} cannot use it ({reason}); give a"
                " folder on storage that all nodes share and may write"
            )
        if not report.sees_data:
            faults.append(
                f"data.root = {required.data_root}: {node} does not see it; put the data on storage"
                " that all nodes share"
            )
        if report.tracker is not None:
            faults.append(
                f"tracking.uri = {redact(required.tracking_uri)}: {node}: {report.tracker};"
                " start the tracker on the head, with an address that nodes reach"
            )
        if report.gpu is not None:
            faults.append(
                f"{node}: its GPUs cannot be used ({report.gpu}); see `nvidia-smi` there, and"
                " whether torch is a build for its driver"
            )
    if required.tracking_uri.startswith("sqlite:") and len(reports) > 1:
        faults.append(
            f"tracking.uri = {required.tracking_uri}: a file that several nodes would write; give a"
            " server's address, or none"
        )
    return faults
