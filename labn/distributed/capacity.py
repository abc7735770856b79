"""Whether the cluster has room for a run, and for how many at once."""

from __future__ import annotations

from typing import Any

import ray

from labn.config.workers import Workers
from labn.errors import UserError

_DRIVER = {"CPU": 0, "memory": 1_000_000}
"""Of a run whose workers compute: no CPU, which one of them would lack; Ray refuses nothing."""


def resources(workers: Workers) -> dict[str, float]:
    """Name what is reserved for a run's own process; the workers of a larger one reserve theirs."""
    if workers.num > 1:
        return dict(_DRIVER)
    return {"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {})


def num_slots(workers: Workers) -> int:
    """Count the processes of such runs for which the nodes that are up now have room."""
    total = 0
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        has = node["Resources"] if node["Alive"] else {}
        slots = int(has.get("CPU", 0) / workers.cpus + 1e-9)
        if workers.gpus:
            slots = min(slots, _gpu_slots(has.get("GPU", 0), workers.gpus))
        total += slots
    return total


def _gpu_slots(num_gpus: float, share: float) -> int:
    # A fraction lies on one GPU; whole ones are counted out.
    return int(num_gpus) * int(1 / share + 1e-9) if share < 1 else int(num_gpus / share)


def max_concurrent(workers: Workers, at_most: int | None = None) -> int | None:
    """Say how many runs may go on at once; None: as many as Ray finds room for.

    Runs of several workers must be counted: were there more of them than fit, each could hold what
    another waits for.
    """
    if workers.num == 1:
        return at_most
    fitting = max(1, num_slots(workers) // workers.num)
    return fitting if at_most is None else min(fitting, at_most)


def check_capacity(workers: Workers, section: str) -> None:
    """Refuse a run that this machine can never hold; ``section`` is where its settings stand.

    Raises:
        UserError: it needs more than there is.
    """
    if num_slots(workers) < workers.num:
        raise UserError(
            f"{section}: {demand(workers)}, but this machine has {supply(workers)};"
            f" give smaller {section}.cpus, {section}.gpus or {section}.workers"
        )


def demand(workers: Workers) -> str:
    """Say what a run needs."""
    gpus = {"GPUs": workers.gpus} if workers.gpus else {}
    wanted = {"CPUs": workers.cpus, **gpus, **workers.resources}
    each = " and ".join(f"{amount:g} {name}" for name, amount in wanted.items())
    return f"needs {each}" if workers.num == 1 else f"needs {workers.num} x {each}"


def supply(workers: Workers) -> str:
    """Say what the cluster has of what a run may need."""
    has: dict[str, Any] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    names = {"CPU": "CPUs", "GPU": "GPUs"} | {name: name for name in workers.resources}
    return " and ".join(f"{has.get(key, 0):g} {name}" for key, name in names.items())
