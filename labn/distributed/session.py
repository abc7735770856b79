"""The connection to Ray: an existing cluster, or a local one of this process."""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray._private.services import find_bootstrap_address

from labn.errors import UserError
from labn.storage.files import can_make, expanded

_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LOCAL = "local"
_ANSWER_S = 10.0
_TOKEN = "RAY_AUTH_TOKEN"
_SOCKET = "ray/session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store"
_LONGEST_SOCKET = 107
"""Bytes in the path of a socket, by the system's definition."""


@contextmanager
def connected(message: Callable[[str], None], check_local: Callable[[], None]) -> Iterator[None]:
    """Connect to Ray for the block, unless connected: to ``RAY_ADDRESS``, else to a local Ray.

    A local Ray is started here, checked by ``check_local``, and ends with the block. The size of a
    cluster is not checked, since a cluster may grow.

    Raises:
        UserError: no cluster answers at ``RAY_ADDRESS``.
    """
    os.environ.update(_ENVIRONMENT)
    if ray.is_initialized():
        yield
        return
    given = os.environ.get("RAY_ADDRESS", "").strip() or _LOCAL
    message(f"starting Ray: {given}")
    address = given if given == _LOCAL else _running_cluster(given)
    temporary = None
    if address == _LOCAL:
        _provide_token()
        temporary = _short_folder()
    with warnings.catch_warnings(), _own_handlers():
        warnings.simplefilter("ignore")
        ray.init(
            address,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            _temp_dir=temporary,
        )
    try:
        if address == _LOCAL:
            check_local()
        yield
    finally:
        ray.shutdown()


def _running_cluster(given: str) -> str:
    """Return the address of a cluster that answers; Ray itself would wait for minutes.

    ``auto`` is the cluster that this machine has joined, not any Ray of another process, which
    Ray would take.
    """
    address = find_bootstrap_address(None) if given == "auto" else given
    if address is None:
        raise _unreachable(given, "this machine has joined no cluster")
    place = re.fullmatch(r"(?:ray://)?\[?([^/\]]+)\]?:(\d+)", address)
    if place is None:
        raise _unreachable(given, "must be HOST:PORT, auto or local")
    try:
        socket.create_connection((place[1], int(place[2])), _ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(given, f"no cluster answers at {address} ({error})") from None
    return address


def _unreachable(given: str, reason: str) -> UserError:
    return UserError(
        f"RAY_ADDRESS = {given}: {reason}; start the cluster, fix the address, or unset RAY_ADDRESS"
        " to use this machine alone"
    )


def _provide_token() -> None:
    """Give a local Ray a token of its own where it cannot write one into the home folder."""
    folder = expanded("~/.ray")
    if folder is None or not ((folder / "auth_token").exists() or can_make(folder)):
        os.environ.setdefault(_TOKEN, secrets.token_hex(32))


def _short_folder() -> str | None:
    """Return a folder in which the paths of Ray's sockets fit; None: Ray's own choice."""
    given = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if len(os.fsencode(Path(given, _SOCKET))) <= _LONGEST_SOCKET:
        return None
    return f"/tmp/ray-{os.getuid()}"


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
