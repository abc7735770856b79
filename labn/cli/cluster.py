"""The commands that run clusters: cluster check, up, submit, tunnel, logs, down."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from labn.cli.app import app
from labn.cli.signals import StopRequest

cluster_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Clusters by Ray's launcher: `labn cluster check cluster/gpu.yaml`, then `up`.",
)
app.add_typer(cluster_app, name="cluster")


@cluster_app.command()
def tracker(
    shared: Annotated[Path, typer.Option(help="The folder that all nodes share.")],
    host: Annotated[str, typer.Option(help="This machine, as the other nodes call it.")],
    home: Annotated[Path, typer.Option(help="Where its database lies, on this machine.")] = Path(
        "~/labn/tracker"
    ),
    background: Annotated[
        bool, typer.Option("--background", help="Come back once it answers.")
    ] = False,
) -> None:
    """On a cluster's head: MLflow's server, with its files on shared storage; it ends with Ray.

    **Example**

        labn cluster tracker --shared /mnt/labn --host 10.0.0.10 --background
    """
    from labn.cluster.tracker import serve, start_in_background

    home = home.expanduser()
    if background:
        arguments = ["--shared", str(shared), "--host", host, "--home", str(home)]
        start_in_background(arguments, home / "log", host)
        return
    with StopRequest("stopping\n") as stop:
        serve(shared, home, host, lambda text: typer.echo(text, err=True), stop.is_requested)
