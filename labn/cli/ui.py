"""The command that opens the tracker: ui."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Annotated

import typer

from labn.cli.app import app
from labn.cli.signals import StopRequest
from labn.errors import RunFailed, UserError

_POLL_S = 0.2


@app.command()
def ui(
    path: Annotated[
        Path | None,
        typer.Argument(
            help="A folder of a run, search or study, or a configuration.",
            show_default="the tracker of MLFLOW_TRACKING_URI, or else sqlite:///mlflow.db",
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
    host: Annotated[str, typer.Option(help="0.0.0.0 admits other machines.")] = "127.0.0.1",
) -> None:
    """Serve MLflow's page for the tracker of a run until Ctrl-C, and print what to open.

    **Examples**

        labn ui

        labn ui runs/ablation-demo --port 5001
    """
    from labn.tracking import redact
    from labn.tracking import server as browsing

    uri, run_id = _tracker_of(path)
    if uri == "none":
        raise UserError(
            f"{path or 'MLFLOW_TRACKING_URI'}: names no tracker, so there is nothing to show"
        )
    if browsing.is_server(uri):
        address = redact(uri).rstrip("/")
        typer.echo(f"MLflow: {address}")
        typer.echo(f"  its experiments: {address}/#/experiments?workflowType=machine_learning")
        return
    pages = browsing.pages(uri, run_id)
    _check_free(host, port)
    with StopRequest("stopping\n") as stop, browsing.serving(uri, host, port) as server:
        typer.echo(f"MLflow: http://{host}:{port}")
        for name, page in pages.items():
            typer.echo(f"  {name}: http://{host}:{port}{page}")
        typer.echo("Ctrl-C stops it", err=True)
        while not stop.is_requested():
            if server.poll() is not None:
                raise RunFailed(f"MLflow's server ended by itself ({server.returncode})")
            time.sleep(_POLL_S)


def _tracker_of(path: Path | None) -> tuple[str, str | None]:
    """Return the tracker's address of a folder's or a file's run, or the default; and its run."""
    from labn.config.run import default_tracking_uri
    from labn.config.strict_yaml import read_yaml
    from labn.runs.folder import RunFolder

    if path is None:
        return default_tracking_uri(), None
    if path.is_dir():
        folder, file = RunFolder(path), path / "config.yaml"
        if not folder.tracker_file.is_file() and not file.is_file():
            raise UserError(
                f"{path}: neither a run, a search nor a study; pass the output_dir of one"
            )
    else:
        file = path
        folder = RunFolder(Path(str(read_yaml(file).get("output_dir", ""))))
    if folder.tracker_file.is_file():
        return str(json.loads(folder.tracker_file.read_text())["uri"]), folder.tracker_run_id
    tracking = read_yaml(file).get("tracking") or {}
    given = tracking.get("uri") if isinstance(tracking, dict) else None
    return str(given or default_tracking_uri()), None


def _check_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        # As servers do; otherwise a port that was just released would seem taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"--host {host} --port {port}: not available ({error.strerror});"
                f" specify another, such as --port {port % 65535 + 1}"
            ) from None
