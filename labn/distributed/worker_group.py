"""Ray Train's group of workers, with its resources released where its start fails."""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchConfig


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
