"""The capacity of the cluster: whether a run fits, and how many fit at once."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import yaml

from labn.config.workers import Workers
from labn.errors import UserError

_DRIVER = {"CPU": 0, "node:__internal_head__": 0.001}
"""Reserved for a driver: a share of the head, which is no spot machine, and none of the CPUs."""


def resources(workers: Workers) -> dict[str, float]:
    """Return what a run's own process reserves; several workers reserve theirs separately."""
    if workers.num > 1:
        return dict(_DRIVER)
    return {"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {})


def live_nodes() -> list[dict[str, Any]]:
    """Return Ray's descriptions of the nodes that are up."""
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def node_name(node: str) -> str:
    """Return the host name of a live node by its id; empty if there is no such node."""
    names = (one["NodeManagerHostname"] for one in live_nodes() if one["NodeID"] == node)
    return next(names, "")


def num_lost(nodes: Collection[str]) -> int:
    """Return how many of these nodes, by Ray's ids, are no longer up."""
    return len(set(nodes) - {node["NodeID"] for node in live_nodes()}) if nodes else 0


def num_slots(workers: Workers) -> int:
    """Return how many processes of such runs fit on the nodes that are up."""
    return sum(_slots(node["Resources"], workers) for node in live_nodes())


def _slots(has: dict[str, float], workers: Workers) -> int:
    wanted = {"CPU": workers.cpus, **workers.resources}
    slots = [int(has.get(name, 0) / amount + 1e-9) for name, amount in wanted.items() if amount]
    if workers.gpus >= 1:
        slots.append(int(has.get("GPU", 0) / workers.gpus))
    elif workers.gpus:
        # A fraction of a GPU must lie on one GPU.
        slots.append(int(has.get("GPU", 0)) * int(1 / workers.gpus + 1e-9))
    return min(slots, default=0)


def max_concurrent(workers: Workers, at_most: int | None = None) -> int | None:
    """Return how many runs may be started at once now, or None for as many as Ray can place.

    Ray places no more runs of one process than fit, so on a cluster that may grow they are not
    counted: what they wait for is what the autoscaler adds. The drivers of several workers fit
    without limit, so there one run more is started than fits.
    """
    if workers.num == 1 and _may_grow():
        return at_most
    fitting = max(1, num_slots(workers) // workers.num + _may_grow())
    return fitting if at_most is None else min(fitting, at_most)


def bootstrap_file() -> dict[str, Any]:
    """Return the cluster's file on a head that Ray's launcher has started; elsewhere nothing."""
    place = Path("~/ray_bootstrap_config.yaml").expanduser()
    tree = yaml.safe_load(place.read_text(encoding="utf-8")) if place.is_file() else None
    return tree or {}


def _may_grow() -> bool:
    """Return whether an autoscaler may rent nodes, or start pods, for what waits."""
    provider = bootstrap_file().get("provider") or {"type": "local"}
    return "KUBERNETES_SERVICE_HOST" in os.environ or provider["type"] != "local"


def check_capacity(workers: Workers, keys: Sequence[str]) -> None:
    """Refuse a run that this machine can never hold.

    ``keys`` are what sets its number of workers, and the resources of each, as the user knows them.

    Raises:
        UserError: the run needs more than the machine has.
    """
    least = replace(workers, num=workers.least or workers.num)
    if num_slots(least) < least.num:
        given = " " if keys[0].startswith("--") else " = "
        raise UserError(
            f"{keys[0]}{given}{least.num}: {demand(least)}, but this machine has {supply(least)};"
            f" reduce {', '.join(keys[:-1])} or {keys[-1]}"
        )


def demand(workers: Workers) -> str:
    """Return what a run needs, as text."""
    gpus = {"GPUs": workers.gpus} if workers.gpus else {}
    wanted = {"CPUs": workers.cpus, **gpus, **workers.resources}
    each = " and ".join(f"{amount:g} {name}" for name, amount in wanted.items())
    return f"needs {each}" if workers.num == 1 else f"needs {workers.num} x {each}"


def supply(workers: Workers) -> str:
    """Return what the cluster has of the resources that a run may need, as text."""
    has: dict[str, Any] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    names = {"CPU": "CPUs", "GPU": "GPUs"} | {name: name for name in workers.resources}
    return " and ".join(f"{has.get(key, 0):g} {name}" for key, name in names.items())
