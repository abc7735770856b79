"""The processes that train one network together, and their collective operations."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """One process, of rank 0 to ``size`` - 1, in a group that computes together.

    All methods but ``share`` are collective: every rank must call them, in the same order. A group
    of one calls nothing of ``torch.distributed``; a larger one needs its default process group.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and reports for all."""
        return self.rank == 0

    def share(self, num: int) -> slice:
        """Return this rank's share of ``num`` items, in the order of ranks, without padding.

        Shares differ by one at most; the first ranks have the larger ones.
        """
        each, rest = divmod(num, self.size)
        start = self.rank * each + min(self.rank, rest)
        return slice(start, start + each + (self.rank < rest))

    def total(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks, with the same bits on each."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def any(self, flag: bool, device: torch.device) -> bool:
        """Return whether the flag is set on any rank."""
        if self.size == 1:
            return flag
        return bool(self.total(torch.tensor(float(flag), device=device)) > 0)

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in the order of ranks, to every rank."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]  # none is left to be None

    def from_first(self, value: T) -> T:
        """Return the value of rank 0 to every rank; the others' are ignored."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def align_buffers(self, model: nn.Module) -> None:
        """Copy the buffers of rank 0 to every rank: running statistics depend on the images."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model with gradients averaged over the ranks in the backward pass."""
        if self.size == 1:
            return model
        device = next(model.parameters()).device
        with warnings.catch_warnings():
            # About a successor of broadcast_buffers that older versions lack.
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(
                model,
                device_ids=[device] if device.type == "cuda" else None,
                # Running statistics are aligned before they are used; a broadcast in the forward
                # pass would change them between the two passes of L_KL.
                broadcast_buffers=False,
            )


SINGLE = Group()
"""A group of one process."""


def no_exchange(network: nn.Module) -> AbstractContextManager[None]:
    """Return a context without gradient exchange; ``network`` is what ``wrap`` returned."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()
