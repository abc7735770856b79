"""The capacity of the cluster: whether a run fits, and how many fit at once."""

from __future__ import annotations

from typing import Any

import ray

from labn.config.workers import Workers
from labn.errors import UserError

_DRIVER = {"CPU": 0, "memory": 1_000_000}
"""Reserved for a driver: no CPU, which its workers need, but not nothing, which Ray refuses."""


def resources(workers: Workers) -> dict[str, float]:
    """Return what a run's own process reserves; several workers reserve theirs separately."""
    if workers.num > 1:
        return dict(_DRIVER)
    return {"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {})


def num_slots(workers: Workers) -> int:
    """Return how many processes of such runs fit on the nodes that are up."""
    total = 0
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        has = node["Resources"] if node["Alive"] else {}
        slots = int(has.get("CPU", 0) / workers.cpus + 1e-9)
        if workers.gpus:
            slots = min(slots, _gpu_slots(has.get("GPU", 0), workers.gpus))
        total += slots
    return total


def _gpu_slots(num_gpus: float, share: float) -> int:
    # A fraction of a GPU must lie on one GPU.
    return int(num_gpus) * int(1 / share + 1e-9) if share < 1 else int(num_gpus / share)


def max_concurrent(workers: Workers, at_most: int | None = None) -> int | None:
    """Return how many runs may train at once, or None for as many as Ray can place.

    Runs of several workers must be counted: if more started than fit, each could hold the resources
    that another waits for.
    """
    if workers.num == 1:
        return at_most
    fitting = max(1, num_slots(workers) // workers.num)
    return fitting if at_most is None else min(fitting, at_most)


def check_capacity(workers: Workers, section: str) -> None:
    """Refuse a run that this machine can never hold; ``section`` is that of its settings.

    Raises:
        UserError: the run needs more than the machine has.
    """
    if num_slots(workers) < workers.num:
        raise UserError(
            f"{section}: {demand(workers)}, but this machine has {supply(workers)};"
            f" reduce {section}.cpus, {section}.gpus or {section}.workers"
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
