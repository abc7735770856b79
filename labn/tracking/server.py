"""The tracker in a browser: the pages of a store, and MLflow's server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from labn.errors import RunFailed, UserError
from labn.tracking.mlflow_tracker import unreachable_as_user_error
from labn.tracking.provenance import redact
from labn.tracking.store import opening, resolve_uri, sqlite_path, store_url
from labn.tracking.views import link_to_all_runs, links

_START_S, _STOP_S, _POLL_S = 90, 10, 0.2
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # No jobs are used here, and each kind of job starts a process.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""The environment's proxy would not reach a server of this machine."""


def pages(uri: str, run_id: str | None) -> dict[str, str]:
    """Return the pages of a store by what they show, as paths behind the server's address.

    They are those of a run, if one is given, and of the experiments, the last changed first.

    Raises:
        UserError: the store is a file that does not exist, or cannot be opened.
    """
    path = sqlite_path(uri)
    if path is not None and not path.is_file():
        raise UserError(
            f"tracking.uri = {uri}: no such file ({path}); train something first, or pass a run's"
            " folder or configuration"
        )
    with unreachable_as_user_error(uri), opening(resolve_uri(uri)):
        from mlflow import MlflowClient

        client = MlflowClient(store_url(uri))
        experiments = client.search_experiments(order_by=["last_update_time DESC"])
        found = links(client, run_id) if run_id else {}
        return found | {
            one.name: link_to_all_runs(client, one) for one in experiments if one.name != "Default"
        }


def is_server(uri: str) -> bool:
    """Return whether a tracker is a server already, so that none needs to be started."""
    return uri.startswith(("http://", "https://"))


@contextmanager
def serving(uri: str, host: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run MLflow's server on a store in a ``with`` block, and end its processes afterwards.

    Raises:
        RunFailed: it does not answer.
    """
    environment = os.environ | _ENVIRONMENT | {"MLFLOW_BACKEND_STORE_URI": store_url(uri)}
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    process = subprocess.Popen(
        [*command, "--host", host, "--port", str(port)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # so that its workers can be ended with it
    )
    try:
        _wait_until_answered(process, uri, host, port)
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _wait_until_answered(process: subprocess.Popen[bytes], uri: str, host: str, port: int) -> None:
    reachable = "127.0.0.1" if host == "0.0.0.0" else host
    end_s = time.monotonic() + _START_S
    while time.monotonic() < end_s and process.poll() is None:
        with suppress(OSError):  # not yet: refused, reset, or too slow
            _direct.open(f"http://{reachable}:{port}/health", timeout=2).close()
            return
        time.sleep(_POLL_S)
    raise RunFailed(
        f"MLflow's server on {redact(uri)} does not answer at {host}:{port}; see why by"
        f" `mlflow server --backend-store-uri {redact(uri)} --port {port}`"
    )
