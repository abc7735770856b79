"""The command that trains a network: train."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labn.cli.app import (
    AllowChangedData,
    ConfigOrRun,
    Json,
    Overrides,
    allow_changed,
    app,
    metrics_table,
    print_result,
    resolve_config,
)
from labn.cli.progress import ConsoleReporter, starting
from labn.cli.signals import StopRequest
from labn.errors import Interrupted, RunFailed, UserError

if TYPE_CHECKING:
    from labn.config import Config
    from labn.config.workers import Workers
    from labn.runs.hooks import Summary


class Placement(StrEnum):
    """The placement of workers on few nodes or many; strict: on one, or each on its own."""

    PACK = "PACK"
    SPREAD = "SPREAD"
    STRICT_PACK = "STRICT_PACK"
    STRICT_SPREAD = "STRICT_SPREAD"


@app.command()
def train(
    config_or_run: ConfigOrRun = None,
    overrides: Overrides = None,
    resume: Annotated[
        Path | None, typer.Option(help="Resume the run in this folder.", show_default=False)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show settings, network, data and schedule only.")
    ] = False,
    workers: Annotated[
        str | None,
        typer.Option(
            metavar="N or MIN:MAX",
            help="Train on N processes, by Ray; MIN:MAX, as capacity allows.",
            show_default="this one",
        ),
    ] = None,
    cpus_per_worker: Annotated[float, typer.Option(help="CPUs of each worker.")] = 1,
    gpus_per_worker: Annotated[float, typer.Option(help="GPUs of each worker.")] = 0,
    resource: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=AMOUNT",
            help="Other resources of each worker, by Ray's names.",
            show_default=False,
        ),
    ] = None,
    placement: Annotated[
        Placement, typer.Option(help="Workers on few nodes, or on many; STRICT: or not at all.")
    ] = Placement.PACK,
    force: Annotated[
        bool, typer.Option("--force", help="Take bf16 even where no instruction computes in it.")
    ] = False,
    allow_changed_data: AllowChangedData = False,
    as_json: Json = False,
) -> None:
    """Train a network, on this machine or with `--workers` on a Ray cluster.

    The run's files go to `output_dir`. The same command again resumes where it stopped.
    `--workers` shares each batch among processes of this machine, or of the cluster that
    `RAY_ADDRESS` names; the result equals that of one process.

    **Examples**

        labn train configs/demo.yaml

        labn train configs/idrid.yaml data.root=~/idrid train.seed=3 output_dir=runs/idrid-3

        labn train configs/idrid.yaml data.root=~/idrid --dry-run

        labn train --resume runs/idrid-3

        labn train configs/idrid.yaml data.root=/shared/idrid --workers 4 --gpus-per-worker 1

        labn train configs/idrid.yaml data.root=s3://bucket/idrid --workers 2:8
    """
    if resume is not None and config_or_run is not None:
        # With --resume, the first argument is a setting too.
        overrides = [str(config_or_run), *(overrides or [])]
    if force:
        overrides = [*(overrides or []), "train.force_precision=true"]
    overrides = allow_changed(overrides, allow_changed_data)
    config = resolve_config(resume or config_or_run, overrides)
    if dry_run:
        _print_plan(config, as_json)
        return
    given = None
    if workers is not None:
        from labn.config.workers import Workers

        least, most = _parse_workers(workers)
        given = Workers(
            num=most,
            least=least,
            cpus=cpus_per_worker,
            gpus=gpus_per_worker,
            placement=placement.value,
            resources=_parse_resources(resource or []),
        )
    _train(config, given, as_json)


def _train(config: Config, workers: Workers | None, as_json: bool) -> None:
    with starting():
        from labn.runs.folder import RunFolder
        from labn.runs.train import train_run

        if workers is not None:
            from labn.distributed.train_driver import train_distributed  # loads Ray

    with ConsoleReporter() as reporter, StopRequest() as stop:
        try:
            if workers is None:
                summary = train_run(config, reporter, stop.is_requested)
            else:
                summary = train_distributed(config, workers, reporter, stop.is_requested)
        except Interrupted:
            if not RunFolder(config.output_dir).config_file.is_file():
                raise RunFailed("stopped as asked, before anything was trained") from None
            raise RunFailed(
                f"stopped as asked; everything is saved: resume with"
                f" `labn train --resume {config.output_dir}`"
            ) from None
    pictures = "\n".join(f"  {path}" for path in summary.pictures)
    print_result(
        as_json,
        vars(summary),
        f"{summary.run}: best epoch {summary.best_epoch} of {summary.num_epochs}\n"
        f"{metrics_table(summary.metrics)}\npictures:\n{pictures}\n{_tracker_hint(summary)}",
    )


def _parse_workers(text: str) -> tuple[int | None, int]:
    """Return N, or MIN:MAX, as (none or MIN, N or MAX)."""
    match = re.fullmatch(r"(?:(\d+):)?(\d+)", text)
    least, most = (int(match[1]) if match[1] else None, int(match[2])) if match else (0, 0)
    if most < 1 or (least is not None and not 1 <= least <= most):
        raise UserError(
            f"--workers {text}: must be a number of at least 1, or two with MIN <= MAX, such as 2:4"
        )
    return least, most


def _parse_resources(given: list[str]) -> dict[str, float]:
    resources = {}
    for text in given:
        name, _, amount = text.partition("=")
        try:
            resources[name] = float(amount)
        except ValueError:
            resources[name] = 0.0
        if not name or not 0 < resources[name] < float("inf"):
            raise UserError(
                f"--resource {text}: must be NAME=AMOUNT with a positive amount, such as"
                " accelerator_type:A100=0.001"
            )
    return resources


def _print_plan(config: Config, as_json: bool) -> None:
    with starting():
        from labn.cli.plan import plan_as_text
        from labn.runs.plan import plan_run

    with ConsoleReporter() as reporter:
        plan = plan_run(config, reporter)
    print_result(as_json, vars(plan), plan_as_text(plan))


def _tracker_hint(summary: Summary) -> str:
    tracker = summary.tracker
    if tracker["run_id"] is None:
        return "not tracked (tracking.uri=none)"
    uri = tracker["uri"] or ""
    if uri.startswith("http"):
        return f"tracked at {uri}, run {tracker['run_id']}"
    return f"see it in the tracker: labn ui {summary.run}"
