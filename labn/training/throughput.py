"""The throughput of a training group, and its slowest rank."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor, nn

from labn.model.network import LABNOutput
from labn.training.process_group import Group

BatchT = TypeVar("BatchT", bound=Sized)


class Throughput:
    """The images and seconds of one epoch, or of what this process did of it.

    Ranks wait for each other in every step, so that all take the time of the slowest. They differ
    in the time of their ``own_work``: loading and the forward pass (as far as the host waits for
    it: on a GPU, only its queueing).
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self.start()

    def start(self) -> None:
        """Start counting from zero."""
        self._start_s = time.perf_counter()
        self._own_s, self._num_own, self._num_all = 0.0, 0, 0

    @contextmanager
    def own_work(self) -> Iterator[None]:
        """Measure work that does not wait for another rank."""
        start_s = time.perf_counter()
        yield
        self._own_s += time.perf_counter() - start_s

    def loading(self, batches: Iterator[BatchT]) -> Iterator[BatchT]:
        """Yield this rank's batches, whose loading is own work, and count their images."""
        while True:
            with self.own_work():
                batch = next(batches, None)
            if batch is None:
                return
            self._num_own += len(batch)
            yield batch

    def forward_of(self, network: nn.Module) -> nn.Module:
        """Return the network with its forward pass measured as own work."""
        return _Measured(network, self)

    def count(self, num_images: int) -> None:
        """Add images that the whole group has trained on since the last call."""
        self._num_all += num_images

    @property
    def images_per_s(self) -> float:
        """Images per second of the whole group, waiting included."""
        return self._num_all / max(time.perf_counter() - self._start_s, 1e-9)

    def by_rank(self) -> dict[str, float]:
        """Return images per second, of the group and of each rank's own work, and the slowest rank.

        Every rank must call it.
        """
        speeds = self._group.gather(self._num_own / max(self._own_s, 1e-9))
        metrics = {"images_per_s": self.images_per_s, "world_size": float(self._group.size)}
        if len(speeds) == 1:
            return metrics
        metrics |= {f"images_per_s_rank_{rank}": speed for rank, speed in enumerate(speeds)}
        return metrics | {"slowest_rank": float(speeds.index(min(speeds)))}


class _Measured(nn.Module):
    def __init__(self, network: nn.Module, throughput: Throughput) -> None:
        super().__init__()
        self._network, self._throughput = network, throughput

    def forward(self, images: Tensor) -> LABNOutput:
        with self._throughput.own_work():
            output: LABNOutput = self._network(images)
        return output
