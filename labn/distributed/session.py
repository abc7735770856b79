"""The connection to Ray: an existing cluster, or a local one of this process."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray

_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LOCAL = "local"


@contextmanager
def connected(message: Callable[[str], None], check_local: Callable[[], None]) -> Iterator[None]:
    """Connect to Ray for the block, unless connected: to ``RAY_ADDRESS``, else to a local Ray.

    A local Ray is started here, checked by ``check_local``, and ends with the block. The size of a
    cluster is not checked, since a cluster may grow.
    """
    os.environ.update(_ENVIRONMENT)
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS", _LOCAL)
    message(f"starting Ray: {address}")
    with warnings.catch_warnings(), _own_handlers():
        warnings.simplefilter("ignore")
        ray.init(address, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    try:
        if address == _LOCAL:
            check_local()
        yield
    finally:
        ray.shutdown()


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Restore this process's signal handlers after the block: Ray's would end it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
