"""The connection to Ray: a cluster that is there already, or one of this process's own."""

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
def connected(say: Callable[[str], None], check_local: Callable[[], None]) -> Iterator[None]:
    """Have Ray while entered: the one this process is connected to, else that of ``RAY_ADDRESS``.

    Where there is neither, Ray is started on this machine, ``check_local`` says whether it will do,
    and it ends with the block. A cluster may grow, so nothing is said against its size.
    """
    os.environ.update(_ENVIRONMENT)
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS", _LOCAL)
    say(f"starting Ray: {address}")
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
    """Put this process's handlers back, which Ray replaces by one that ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
