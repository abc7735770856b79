"""Ray Train's group of workers, made to give back what it holds where its start fails."""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchConfig


class ReleasingTorchConfig(TorchConfig):
    """Torch's process group for Ray Train, without Ray 2.60's leak.

    Where a node is lost while the group forms, Ray Train counts the group as started and forgets
    it: its other workers and their placement group live on, and with them, on a small cluster, all
    the room that the next attempt waits for.
    """

    @property
    def backend_cls(self) -> type[Any]:
        """Name what sets up the group."""
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
