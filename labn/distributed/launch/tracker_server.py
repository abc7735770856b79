"""The tracker of a cluster: an MLflow server on the head, which ends with Ray."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from labn.distributed.launch.tracker_database import MirroredDatabase
from labn.errors import RunFailed, UserError
from labn.storage.files import locked, write_atomically
from labn.tracking.server import serving

PORT = 5000
RAY_PORT = 6379
_COPY_S, _POLL_S = 10.0, 2.0
_MAX_MISSES = 3
"""How many polls in a row Ray must miss to count as ended."""
_TAKE_OVER_S, _READY_S = 30, 120


def serve(
    shared: Path,
    home: Path,
    host: str,
    message: Callable[[str], None],
    should_stop: Callable[[], bool],
    port: int = PORT,
    ray_port: int = RAY_PORT,
) -> None:
    """Serve MLflow at ``host`` and on 127.0.0.1, until asked to stop or until Ray's head ends.

    Files go to ``shared/mlflow``, the database to ``home``, with a copy in ``shared/mlflow`` at
    most 10 s old. A tracker that already runs in ``home`` is ended first.

    Raises:
        UserError: ``shared`` cannot be written.
        RunFailed: MLflow does not answer.
    """
    folder = shared / "mlflow"
    try:
        (folder / "artifacts").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--shared {shared}: cannot be written ({error.strerror}); mount the shared storage"
        ) from None
    with _exclusive(home):
        database = MirroredDatabase(home / "mlflow.db", folder / "mlflow.db")
        message(f"database: {database.open()}")
        os.environ["MLFLOW_ARTIFACTS_DESTINATION"] = str(folder / "artifacts")
        # For ssh tunnels, in addition to the address that other nodes use.
        os.environ["MLFLOW_GUNICORN_OPTS"] = f"--bind 127.0.0.1:{port}"
        with serving(f"sqlite:///{database.file}", host, port) as server:
            message(f"MLflow answers at http://{host}:{port}; files: {folder}")
            _watch(database, server, (host, ray_port), should_stop)
        database.save_copy()
        message("ended")


def _watch(
    database: MirroredDatabase,
    server: subprocess.Popen[bytes],
    ray: tuple[str, int],
    should_stop: Callable[[], bool],
) -> None:
    misses, copied_s = 0, time.monotonic()
    while misses < _MAX_MISSES and not should_stop():
        if server.poll() is not None:
            raise RunFailed(f"MLflow's server ended by itself ({server.returncode})")
        misses = 0 if _listens(*ray) else misses + 1
        if time.monotonic() - copied_s >= _COPY_S:
            database.save_copy()
            copied_s = time.monotonic()
        time.sleep(_POLL_S)


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=_POLL_S).close()
    except OSError:
        return False
    return True


@contextmanager
def _exclusive(home: Path) -> Iterator[None]:
    """Lock the folder for the block, ending the tracker that holds it, if any."""
    lock, holder = home / ".lock", home / "pid"
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(lock, timeout_s=0))
        except TimeoutError:
            ended = holder.read_text()
            os.kill(int(ended), signal.SIGTERM)
            waiting = f"{home}: waiting for the tracker of process {ended} to end"
            try:
                stack.enter_context(locked(lock, waiting, timeout_s=_TAKE_OVER_S))
            except TimeoutError:
                raise RunFailed(
                    f"{home}: the tracker of process {ended} does not end; end it"
                ) from None
        write_atomically(holder, str(os.getpid()))
        yield


def start_in_background(arguments: list[str], log: Path) -> None:
    """Start ``labn cluster tracker`` so that it outlives this shell; wait until it answers.

    Raises:
        RunFailed: it does not answer; the message ends with the last line of its log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as into:
        process = subprocess.Popen(
            [sys.executable, "-m", "labn", "cluster", "tracker", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=into,
            stderr=into,
            start_new_session=True,
        )
    end_s = time.monotonic() + _READY_S
    while time.monotonic() < end_s and process.poll() is None:
        if "MLflow answers" in log.read_text():
            return
        time.sleep(0.2)
    lines = log.read_text().strip().splitlines() or ["no output"]
    raise RunFailed(f"the tracker did not start: {lines[-1]} (log: {log})")
