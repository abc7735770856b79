"""The commands that manage clusters: cluster check, up, submit, tunnel, logs, down; and tracker."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from labn.cli.app import Commands, Group, Json, app, print_result
from labn.cli.init import write_shipped
from labn.cli.signals import StopRequest
from labn.errors import RunFailed, UserError

cluster_app = Commands(
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Clusters by Ray's launcher or KubeRay: `labn cluster check cluster/gpu.yaml`, then `up`.",
)
app.add_typer(cluster_app, name="cluster")

File = Annotated[
    Path, typer.Argument(help="A cluster's file, such as cluster/gpu.yaml.", show_default=False)
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the command without running it.")]


@cluster_app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where to write them.")] = Path(),
) -> None:
    """Write the shipped files of clusters, the scripts, and the configurations that nodes get.

    **Example**

        labn cluster init
    """
    from labn.config.shipped import CONFIGS

    write_shipped(["cluster/*", "tune/*.py", f"{CONFIGS}/**/*.yaml"], folder)


@cluster_app.command()
def check(file: File, as_json: Json = False) -> None:
    """Check a cluster's file before anything is started or paid for; exit with 1 if it fails.

    **Example**

        labn cluster check cluster/onprem.yaml
    """
    # Imported here, since it loads Ray.
    from labn.distributed.checks.cluster_file import check_cluster
    from labn.distributed.checks.machine import as_json as checks_as_json
    from labn.distributed.checks.machine import as_text

    checks = check_cluster(file)
    print_result(as_json, checks_as_json(checks), as_text(checks))
    raise typer.Exit(1 if any(one.status == "fail" for one in checks) else 0)


@cluster_app.command()
def up(file: File, dry_run: DryRun = False) -> None:
    """Start a cluster, or bring it up to date with its file; its check must pass.

    Creates the token that all nodes share, `~/.ray/auth_token`, if it does not exist.

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
        _create_token()
    _run(commands.up(cluster), dry_run)


def _create_token() -> None:
    path = Path("~/.ray/auth_token").expanduser()
    if not path.is_file():
        subprocess.run(
            ["ray", "get-auth-token", "--generate"], check=True, stdout=subprocess.DEVNULL
        )
        path.chmod(0o600)


@cluster_app.command(context_settings={"ignore_unknown_options": True})
def submit(
    file: File,
    script: Annotated[Path | None, typer.Argument(help="The script.", show_default=False)] = None,
    arguments: Annotated[
        list[str] | None, typer.Argument(help="The script's arguments.", show_default=False)
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Run a script on the head, and show its output; arguments are passed unchanged.

    On KubeRay the file names the job instead (`spec.entrypoint` of the RayJob).

    **Example**

        labn cluster submit cluster/gpu.yaml tune/search.py -- --config /mnt/labn/my.yaml
        --address auto 'space.model.theta_alpha={type: float, low: 0.1, high: 0.9}'
    """
    from labn.distributed.launch import commands
    from labn.distributed.launch.cluster_files import read_cluster

    _run(commands.submit(read_cluster(file), script, arguments or []), dry_run)


@cluster_app.command()
def tunnel(file: File, dry_run: DryRun = False) -> None:
    """Forward the tracker to http://127.0.0.1:5000, and Ray to :8265, until Ctrl-C.

    **Example**

        labn cluster tunnel cluster/gpu.yaml
    """
    from labn.distributed.launch import commands
    from labn.distributed.launch.cluster_files import read_cluster

    typer.echo("tracker: http://127.0.0.1:5000   Ray: http://127.0.0.1:8265   Ctrl-C stops it")
    _run(commands.tunnel(read_cluster(file)), dry_run)


@cluster_app.command()
def logs(
    file: File,
    lines: Annotated[int, typer.Option(min=1, help="The last lines of each log.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", help="Print new lines until Ctrl-C.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Show the newest logs of the head's autoscaler and tracker: why a node does not start.

    **Example**

        labn cluster logs cluster/gpu.yaml --follow
    """
    from labn.distributed.launch import commands
    from labn.distributed.launch.cluster_files import read_cluster

    _run(commands.logs(read_cluster(file), lines, follow), dry_run)


@cluster_app.command()
def down(file: File, dry_run: DryRun = False) -> None:
    """Shut a cluster down; its shared storage is kept.

    **Example**

        labn cluster down cluster/gpu.yaml
    """
    from labn.distributed.launch import commands
    from labn.distributed.launch.cluster_files import read_cluster

    _run(commands.down(read_cluster(file)), dry_run)


def _run(steps: Sequence[Sequence[str]], dry_run: bool) -> None:
    """Print and run commands, up to the first that fails."""
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
            raise RunFailed(
                f"`{shlex.join(step)}` failed with exit code {code}; see its output above"
            )


@cluster_app.command()
def tracker(
    shared: Annotated[Path, typer.Option(help="The folder that all nodes share.")],
    host: Annotated[str, typer.Option(help="This machine's address on the other nodes.")],
    home: Annotated[Path, typer.Option(help="The folder of its database, on this machine.")] = Path(
        "~/labn/tracker"
    ),
    background: Annotated[
        bool, typer.Option("--background", help="Return once it responds.")
    ] = False,
) -> None:
    """Run MLflow's server on a cluster's head, with files on shared storage, while Ray runs.

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
