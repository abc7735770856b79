"""The commands that run clusters: cluster check, up, submit, tunnel, logs, down; and tracker."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from labn.cli.app import Json, app, print_result
from labn.cli.signals import StopRequest
from labn.errors import RunFailed, UserError

cluster_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Clusters by Ray's launcher or KubeRay: `labn cluster check cluster/gpu.yaml`, then `up`.",
)
app.add_typer(cluster_app, name="cluster")

File = Annotated[
    Path, typer.Argument(help="A cluster's file, such as cluster/gpu.yaml.", show_default=False)
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the command, and stop there.")]


@cluster_app.command()
def check(file: File, as_json: Json = False) -> None:
    """Check a cluster's file before anything is started or paid for; exit 1 if it will not do.

    **Example**

        labn cluster check cluster/onprem.yaml
    """
    # Only here, for it loads Ray.
    from labn.distributed.checks.cluster_file import check_cluster
    from labn.distributed.checks.machine import as_json as checks_as_json
    from labn.distributed.checks.machine import as_text

    checks = check_cluster(file)
    print_result(as_json, checks_as_json(checks), as_text(checks))
    raise typer.Exit(1 if any(one.status == "fail" for one in checks) else 0)


@cluster_app.command()
def up(file: File, dry_run: DryRun = False) -> None:
    """Start a cluster, or bring it up to date with its file; its check must pass.

    Makes the token that all nodes share, in `~/.ray/auth_token`, where there is none.

    **Example**

        labn cluster up cluster/gpu.yaml
    """
    from labn.distributed.checks.cluster_file import check_cluster
    from labn.distributed.launch import commands
    from labn.distributed.launch.cluster_files import read_cluster

    faults = [one for one in check_cluster(file) if one.status == "fail"]
    if faults:
        first = faults[0]
        raise UserError(
            f"{file}: {first.detail}; {first.fix}"
            + (f" (and {len(faults) - 1} more: labn cluster check {file})" * (len(faults) > 1))
        )
    cluster = read_cluster(file)
    if not cluster.is_kubernetes and not dry_run:
        _make_token()
    _run(commands.up(cluster), dry_run)


def _make_token() -> None:
    place = Path("~/.ray/auth_token").expanduser()
    if not place.is_file():
        subprocess.run(
            ["ray", "get-auth-token", "--generate"], check=True, stdout=subprocess.DEVNULL
        )
        place.chmod(0o600)


@cluster_app.command(context_settings={"ignore_unknown_options": True})
def submit(
    file: File,
    script: Annotated[
        Path | None, typer.Argument(help="What runs on the head.", show_default=False)
    ] = None,
    arguments: Annotated[
        list[str] | None, typer.Argument(help="Its arguments.", show_default=False)
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Run a script on the head, and show what it says; arguments arrive as they are given.

    KubeRay's job stands in its file instead (`spec.entrypoint` of the RayJob).

    **Example**

        labn cluster submit cluster/gpu.yaml tune/search.py -- --config /mnt/labn/my.yaml
        --address auto 'space.model.theta_alpha={type: float, low: 0.1, high: 0.9}'
    """
    from labn.distributed.launch import commands
    from labn.distributed.launch.cluster_files import read_cluster

    _run(commands.submit(read_cluster(file), script, arguments or []), dry_run)


@cluster_app.command()
def tunnel(file: File, dry_run: DryRun = False) -> None:
    """Make the tracker answer at http://127.0.0.1:5000, and Ray at :8265, until Ctrl-C.

    **Example**

        labn cluster tunnel cluster/gpu.yaml
    """
    from labn.distributed.launch import commands
    from labn.distributed.launch.cluster_files import read_cluster

    typer.echo("tracker: http://127.0.0.1:5000   Ray: http://127.0.0.1:8265   Ctrl-C ends it")
    _run(commands.tunnel(read_cluster(file)), dry_run)


@cluster_app.command()
def logs(
    file: File,
    lines: Annotated[int, typer.Option(min=1, help="How many of each log.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", help="Go on, until Ctrl-C.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Show what the head's autoscaler and tracker said last: why a node does not come.

    **Example**

        labn cluster logs cluster/gpu.yaml --follow
    """
    from labn.distributed.launch import commands
    from labn.distributed.launch.cluster_files import read_cluster

    _run(commands.logs(read_cluster(file), lines, follow), dry_run)


@cluster_app.command()
def down(file: File, dry_run: DryRun = False) -> None:
    """End a cluster; what lies on its shared storage stays.

    **Example**

        labn cluster down cluster/gpu.yaml
    """
    from labn.distributed.launch import commands
    from labn.distributed.launch.cluster_files import read_cluster

    _run(commands.down(read_cluster(file)), dry_run)


def _run(steps: Sequence[Sequence[str]], dry_run: bool) -> None:
    """Print commands and run them; a failing one ends it."""
    for step in steps:
        typer.echo(f"$ {shlex.join(step)}", err=True)
        if dry_run:
            continue
        try:
            code = subprocess.run(step).returncode
        except FileNotFoundError:
            raise UserError(f"{step[0]}: is not installed here; install it") from None
        except KeyboardInterrupt:
            raise typer.Exit(0) from None
        if code:
            raise RunFailed(f"`{shlex.join(step)}` ended with {code}; it said why above")


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
    from labn.distributed.launch.tracker_server import serve, start_in_background

    home = home.expanduser()
    if background:
        arguments = ["--shared", str(shared), "--host", host, "--home", str(home)]
        start_in_background(arguments, home / "log")
        return
    with StopRequest("stopping\n") as stop:
        serve(shared, home, host, lambda text: typer.echo(text, err=True), stop.is_requested)
