"""Ray Train's group of workers: which losses count, and what a failed start releases."""

from __future__ import annotations

from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig

from labn.distributed.capacity import num_lost


class FailuresBesideLostNodes(ray.train.FailureConfig):
    """A limit of failures to which the loss of a node does not count.

    Ray itself leaves out only a loss that the cloud has announced. ``mailbox`` knows the nodes.
    """

    def __init__(self, max_failures: int, mailbox: Any) -> None:
        self._mailbox = mailbox
        super().__init__(max_failures=max_failures)

    @property
    def max_failures(self) -> int:
        """The limit now, by which Ray decides after each failure."""
        return self._most + num_lost(ray.get(self._mailbox.nodes.remote()))

    @max_failures.setter
    def max_failures(self, most: int) -> None:
        self._most = most


class ReleasingTorchConfig(TorchConfig):
    """Torch's process group for Ray Train, without a leak of Ray 2.60.

    If a node is lost while the group forms, Ray Train forgets the group without ending it. Its
    other workers and their placement group stay alive, and on a small cluster they hold all of the
    capacity that the next attempt waits for.
    """

    @property
    def backend_cls(self) -> type[Any]:
        """The class that sets up the group."""
        return _releasing(super().backend_cls)


def _releasing(backend: type[Any]) -> type[Any]:
    class Releasing(backend):  # type: ignore[misc]
        def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
            try:
                super().on_start(worker_group, backend_config)
            except BaseException:
                worker_group.abort()
                raise

    return Releasing
