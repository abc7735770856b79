"""The processes of one run: their number and resources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import model_validator

from labn.config.section import ConfigProblem, Count, NonNegative, Positive, Section

Placement = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]
"""Placement of workers on few nodes or on many; STRICT: on one, or each on its own."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The number of processes and the resources of each; ``gpus`` may be a fraction.

    With ``least``, there are as many as there is capacity for, from that up to ``num``, and the
    number may change during the run.
    """

    num: int
    least: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    placement: Placement = "PACK"
    resources: Mapping[str, float] = field(default_factory=dict)
    """Other resources of each, by Ray's names."""


class ProcessesConfig(Section):
    """The resources of each run of many."""

    cpus: Positive = 1.0
    """CPUs of each process."""
    gpus: NonNegative = 0.0
    """GPUs of each process; 0.25 puts four on one."""
    workers: Count = 1
    """Processes; more than one train together through Ray Train."""

    @model_validator(mode="after")
    def _check_gpus(self) -> ProcessesConfig:
        if fault := fault_of_gpus(self.gpus, self.workers):
            raise ConfigProblem("gpus", f"{self.gpus:g}", fault)
        return self

    @property
    def processes(self) -> Workers:
        """The processes of one run."""
        return Workers(num=self.workers, cpus=self.cpus, gpus=self.gpus)


def fault_of_sharing(batch_size: int, workers: Workers) -> str | None:
    """Return why batches cannot be shared among workers; None if they can.

    A fixed number must divide the batch, so that all do equal work. A changing one need not:
    shares that differ by one image result in the same gradients.
    """
    if workers.least is None:
        return check_divides(batch_size, workers.num)
    if workers.num <= batch_size:
        return None
    return (
        f"leaves some of {workers.num} workers without an image; give at most {batch_size} workers,"
        " or a larger train.batch_size"
    )


def fault_of_gpus(gpus: float, num_workers: int) -> str | None:
    """Return why this many processes cannot train together with so many GPUs each."""
    if num_workers < 2 or gpus == 0 or gpus >= 1:
        return None
    return (
        f"{num_workers} workers of one run need a whole GPU each, since NCCL refuses two processes"
        " on one GPU; give each worker 1 GPU, or the run 1 worker"
    )


def check_divides(batch_size: int, num_workers: int) -> str | None:
    """Return why a batch cannot be cut into this many equal shares; None if it can."""
    if batch_size % num_workers == 0:
        return None
    below = [n for n in range(1, num_workers) if batch_size % n == 0][-1:]
    above = [n for n in range(num_workers + 1, batch_size + 1) if batch_size % n == 0][:1]
    lower = batch_size // num_workers * num_workers
    sizes = " or ".join(str(size) for size in (lower, lower + num_workers) if size)
    workers = " or ".join(map(str, below + above))
    return (
        f"does not divide among {num_workers} workers; give train.batch_size={sizes}, or {workers}"
        " workers"
    )
