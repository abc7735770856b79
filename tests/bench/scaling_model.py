"""A model of the time and GPU hours of a search on a cluster. Plain sums, no measurement."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run on one GPU."""

    hours: float
    """To the last epoch."""
    steps: int
    """Training steps in all."""
    fixed_share: float
    """Share of a whole batch's step that does not depend on the number of images of a worker."""
    gradient_bytes: int
    norm_layers: int
    """Batch norms, each with statistics over all GPUs, forwards and backwards."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Properties of a cluster."""

    bandwidth_bytes_s: float
    latency_s: float
    """Of one message between two nodes."""
    node_start_s: float
    """From the request for machines to working machines, once per search."""
    trial_start_s: float
    """From a trial's start to its first step."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """Size of a search."""

    trials: int
    grace_epochs: int
    reduction: float
    epochs: int

    @property
    def mean_share(self) -> float:
        """Share of a whole run that a trial takes on average, where each rung keeps 1/reduction."""
        total, alive, start = 0.0, 1.0, 0.0
        rung = float(self.grace_epochs)
        while rung < self.epochs:
            total += alive * (rung - start)
            alive, start = alive / self.reduction, rung
            rung *= self.reduction
        return (total + alive * (self.epochs - start)) / self.epochs


def run_hours(run: Run, cluster: Cluster, workers: int) -> float:
    """Return the hours of a run on ``workers`` GPUs, each on a node of its own."""
    step_s = run.hours * 3600 / run.steps
    computing_s = step_s * (run.fixed_share + (1 - run.fixed_share) / workers)
    return (computing_s + all_reduce_s(run, cluster, workers)) * run.steps / 3600


def all_reduce_s(run: Run, cluster: Cluster, workers: int) -> float:
    """Return a step's seconds of exchange: a ring for the gradients, one message per batch norm."""
    if workers == 1:
        return 0.0
    ring = 2 * (workers - 1)
    gradients_s = ring * (run.gradient_bytes / workers / cluster.bandwidth_bytes_s)
    messages = ring * (1 + 2 * run.norm_layers)
    return gradients_s + messages * cluster.latency_s


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of a search."""

    hours: float
    """From the command to the summary, at most."""
    gpu_hours: float
    """Hours for which GPUs are held, while they work or wait for their node."""
    at_once: int
    """Trials that run at the same time."""


def search_cost(run: Run, cluster: Cluster, search: Search, gpus: int, workers: int) -> Cost:
    """Return the cost of a search on ``gpus`` GPUs, ``workers`` of them per trial.

    Free GPUs start the next trial at once; at the end the search waits for the longest trial, a
    whole run. The time is an upper bound (Graham 1966). Idle nodes are released meanwhile.
    """
    at_once = min(gpus // workers, search.trials)
    if at_once == 0:
        return Cost(hours=math.inf, gpu_hours=math.inf, at_once=0)
    whole = run_hours(run, cluster, workers)
    start = cluster.trial_start_s / 3600
    busy = search.trials * (whole * search.mean_share + start)
    hours = busy / at_once + (1 - 1 / at_once) * (whole + start)
    nodes = cluster.node_start_s / 3600
    return Cost(
        hours=hours + nodes,
        gpu_hours=busy * workers + at_once * workers * nodes,
        at_once=at_once,
    )
