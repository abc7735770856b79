"""Whether the cluster has room for a trial, and for how many."""

from __future__ import annotations

from typing import Any

import ray

from labn.errors import UserError
from labn.search.settings import TrialConfig

_DRIVER = {"CPU": 0, "memory": 1_000_000}
"""Of a trial whose workers compute: no CPU, which one of them would lack; Ray refuses nothing."""


def resources(trial: TrialConfig) -> dict[str, float]:
    """Name what Tune reserves for a trial; the workers of a larger one reserve their own."""
    if trial.workers > 1:
        return dict(_DRIVER)
    return {"CPU": trial.cpus} | ({"GPU": trial.gpus} if trial.gpus else {})


def num_slots(trial: TrialConfig) -> int:
    """Count the processes of trials for which the nodes that are up now have room."""
    total = 0
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        has = node["Resources"] if node["Alive"] else {}
        slots = int(has.get("CPU", 0) / trial.cpus + 1e-9)
        if trial.gpus:
            slots = min(slots, _gpu_slots(has.get("GPU", 0), trial.gpus))
        total += slots
    return total


def _gpu_slots(num_gpus: float, share: float) -> int:
    # A fraction lies on one GPU; whole ones are counted out.
    return int(num_gpus) * int(1 / share + 1e-9) if share < 1 else int(num_gpus / share)


def max_concurrent(trial: TrialConfig) -> int | None:
    """Say how many trials may run at once; None: as many as Tune finds room for.

    Trials of several workers must be counted: were there more of them than fit, each could hold
    what another waits for.
    """
    if trial.workers == 1:
        return trial.max_concurrent
    fitting = max(1, num_slots(trial) // trial.workers)
    return fitting if trial.max_concurrent is None else min(fitting, trial.max_concurrent)


def check_room(trial: TrialConfig) -> None:
    """Refuse a trial that this machine can never hold.

    Raises:
        UserError: it needs more than there is.
    """
    if num_slots(trial) < trial.workers:
        raise UserError(
            f"trial: {demand(trial)}, but this machine has {supply()};"
            " give smaller trial.cpus, trial.gpus or trial.workers"
        )


def demand(trial: TrialConfig) -> str:
    """Say what a trial needs."""
    gpus = f" and {trial.gpus:g} GPUs" if trial.gpus else ""
    each = f"{trial.cpus:g} CPUs{gpus}"
    return f"needs {each}" if trial.workers == 1 else f"needs {trial.workers} x {each}"


def supply() -> str:
    """Say what the cluster has."""
    has: dict[str, Any] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return f"{has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs"
