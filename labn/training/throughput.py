"""How fast a group trains, and which of its ranks holds up the others."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from labn.training.process_group import Group

T = TypeVar("T")


class Pace:
    """Counts the images and the seconds of one epoch, or of the part of it that this process did.

    Ranks wait for each other in every step, so that all take the time of the slowest. What tells
    them apart is the time of their ``own_work``: loading and the forward pass (as far as the host
    waits for it: on a GPU, only its queueing).
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self.start()

    def start(self) -> None:
        """Begin anew."""
        self._start_s = time.perf_counter()
        self._own_s, self._num_own, self._num_all = 0.0, 0, 0

    @contextmanager
    def own_work(self, num_images: int = 0) -> Iterator[None]:
        """Measure work during which no other rank is waited for."""
        start_s = time.perf_counter()
        yield
        self._own_s += time.perf_counter() - start_s
        self._num_own += num_images

    def loading(self, batches: Iterator[T]) -> Iterator[T]:
        """Pass on batches, whose loading is own work."""
        while True:
            with self.own_work():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def count(self, num_images: int) -> None:
        """Hear how many images the whole group has trained on since the last time."""
        self._num_all += num_images

    @property
    def images_per_s(self) -> float:
        """Images a second of the whole group, all it waits for included."""
        return self._num_all / max(time.perf_counter() - self._start_s, 1e-9)

    def of_ranks(self) -> dict[str, float]:
        """Give the group's images a second, each rank's in its own work, and the slowest rank.

        Every rank must call it.
        """
        speeds = self._group.gather(self._num_own / max(self._own_s, 1e-9))
        metrics = {"images_per_s": self.images_per_s, "world_size": float(self._group.size)}
        if len(speeds) == 1:
            return metrics
        metrics |= {f"images_per_s_rank_{rank}": speed for rank, speed in enumerate(speeds)}
        return metrics | {"slowest_rank": float(speeds.index(min(speeds)))}
