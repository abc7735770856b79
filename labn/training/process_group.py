"""The processes that train one network together: which shares they take, how results are joined."""

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
    """One process of ``size`` that compute together; its ``rank`` is 0 to size - 1.

    All methods but ``share`` are collective: every rank must call them, in the same order. A group
    of one calls nothing of ``torch.distributed``; a larger one needs its default process group.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process keeps files and speaks for all."""
        return self.rank == 0

    def share(self, num: int) -> slice:
        """Name this rank's part of ``num`` things, in the order of ranks, without padding.

        The parts differ by one at most; the first ranks have the larger ones.
        """
        each, rest = divmod(num, self.size)
        start = self.rank * each + min(self.rank, rest)
        return slice(start, start + each + (self.rank < rest))

    def total(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the ranks; each gets the sum, to the same bits."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def any(self, flag: bool, device: torch.device) -> bool:
        """Say whether the flag is set on any rank."""
        if self.size == 1:
            return flag
        return bool(self.total(torch.tensor(float(flag), device=device)) > 0)

    def gather(self, part: T) -> list[T]:
        """Give every rank the parts of all, in the order of ranks."""
        if self.size == 1:
            return [part]
        parts: list[T | None] = [None] * self.size
        dist.all_gather_object(parts, part)
        return parts  # type: ignore[return-value]  # none is left to be None

    def from_first(self, value: T) -> T:
        """Give every rank the value of rank 0; the others' are ignored."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def align_buffers(self, model: nn.Module) -> None:
        """Give every rank the buffers of rank 0: running statistics differ with the images."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Have the backward pass of every rank leave the mean gradient of all."""
        if self.size == 1:
            return model
        device = next(model.parameters()).device
        with warnings.catch_warnings():
            # Of a successor to broadcast_buffers, which older versions do not know.
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(
                model,
                device_ids=[device] if device.type == "cuda" else None,
                # Running statistics are aligned before they are used; a broadcast in the forward
                # pass would change them between the two passes of L_KL.
                broadcast_buffers=False,
            )


SINGLE = Group()
"""A process on its own."""


def no_exchange(network: nn.Module) -> AbstractContextManager[None]:
    """Leave gradients on the ranks that compute them; ``network`` is what ``wrap`` returned."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()
