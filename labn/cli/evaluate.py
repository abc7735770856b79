"""The command that scores a trained network and its explanations."""

from __future__ import annotations

import json
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from labn.cli.app import (
    AllowChangedData,
    Json,
    Overrides,
    Run,
    SubsetChoice,
    SubsetOption,
    allow_changed,
    app,
    metrics_table,
    print_result,
    require_run,
)
from labn.cli.progress import ConsoleReporter, starting
from labn.errors import UserError

_OF_ONE_METHOD = re.compile(r"_(id|pid\w*_m\d+|localisation|map)_")


class PidBaseline(StrEnum):
    """The bias image, the mean training colour, black, or the blurred image itself."""

    bias = "bias"
    zero = "zero"
    black = "black"
    blur = "blur"


class PidProtocol(StrEnum):
    """The paper's definition, or the authors' code."""

    exact = "exact"
    released = "released"


@app.command()
def evaluate(
    run: Run,
    overrides: Overrides = None,
    subset: SubsetOption = SubsetChoice.test,
    data: Annotated[
        str | None,
        typer.Option(help="The data's folder, if it is no longer data.root.", show_default=False),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="LABN, lambda attention, RISE, Grad-CAM, input gradient, random, centre, edges,"
            " integrated gradients, gradient SHAP, SmoothGrad, occlusion, guided backpropagation,"
            " Score-CAM, lambda rollout, greedy, or all; comma-separated.",
            show_default="the first eight",
        ),
    ] = None,
    patch_sizes: Annotated[
        str | None,
        typer.Option(help="Sides of PID's patches, in pixels.", show_default="2,4,8,16"),
    ] = None,
    points: Annotated[
        int | None,
        typer.Option(help="Points of a curve.", show_default="validation.pid_num_points"),
    ] = None,
    baseline: Annotated[
        PidBaseline | None,
        typer.Option(
            help="What PID shows in place of removed patches.",
            show_default="bias, or black with --protocol released",
        ),
    ] = None,
    protocol: Annotated[
        PidProtocol,
        typer.Option(help="Of PID: exact, or as the authors' code computes published numbers."),
    ] = PidProtocol.exact,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Add points where curves bend, until each area is accurate to this.",
            show_default="--points, evenly spaced",
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Besides PID: ROAD, IDSDS, infidelity, average drop, average gain, sparseness,"
            " entropy, sensitivity, shift, flip, spread, relevance mass, relevance rank, top-k,"
            " IoU, field distance, all, or quantus:NAME; comma-separated.",
            show_default="none",
        ),
    ] = None,
    num_masks: Annotated[int, typer.Option(help="Masks of RISE.")] = 500,
    max_images: Annotated[
        int | None,
        typer.Option(help="Score only the first positives by name.", show_default="all"),
    ] = None,
    failure_pid: Annotated[float, typer.Option(help="An explanation fails below this PID.")] = 0.2,
    over_attended: Annotated[
        float, typer.Option(help="OA: more than this share of the image is attended.")
    ] = 0.5,
    insufficiently_attended: Annotated[
        float, typer.Option(help="IA: less than this share of the image is attended.")
    ] = 0.001,
    allow_changed_data: AllowChangedData = False,
    as_json: Json = False,
) -> None:
    """Score a run's best epoch on a subset of its data: classification, explanations, failures.

    Every positive image is explained by each method and scored by ID and by PID at each patch
    size. The same command again resumes where it stopped. Tables, scores and pictures go to
    `RUN/evaluation/SUBSET`, or to `SUBSET-TERMS` for scores on other terms than a run's usual ones.

    **Examples**

        labn evaluate runs/demo

        labn evaluate runs/idrid --subset validation --methods LABN,RISE --max-images 8

        labn evaluate runs/idrid --data ~/idrid --points 33 --baseline blur

        labn evaluate runs/demo --tolerance 0.005 --failure-pid 0.3
    """
    require_run(run)
    # Before torch is loaded, so that a misspelt number is refused at once.
    given = {
        "methods": None if methods is None else tuple(methods.split(",")),
        "patch_sizes": None if patch_sizes is None else _whole_numbers(patch_sizes),
        "num_points": points,
        "baseline": None if baseline is None else baseline.value,
        "protocol": protocol.value,
        "num_masks": num_masks,
        "metrics": None if metrics is None else tuple(metrics.split(",")),
        "tolerance": tolerance,
        "max_images": max_images,
    }
    choices: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if data is not None:
        # As JSON, so that every path is read as text.
        overrides = [*(overrides or []), f"data.root={json.dumps(data)}"]
    overrides = allow_changed(overrides, allow_changed_data)
    with starting():
        from labn.runs.evaluation.evaluate_run import evaluate_run

    choices |= _thresholds(failure_pid, over_attended, insufficiently_attended)
    with ConsoleReporter() as reporter:
        scores = evaluate_run(run, subset.value, overrides, reporter, choices)
    content = {
        "run": str(run),
        "split": subset.value,
        "metrics": scores.metrics,
        "folder": str(scores.folder),
        "pictures": [str(path) for path in scores.pictures],
        "tables": [str(path) for path in scores.tables],
    }
    print_result(as_json, content, _scores_as_text(scores.metrics, scores.tables, scores.pictures))


def _thresholds(
    failure_pid: float, over_attended: float, insufficiently_attended: float
) -> dict[str, Any]:
    from labn.metrics.failures import ErrorThresholds

    try:
        thresholds = ErrorThresholds(
            pid=failure_pid,
            over_attended=over_attended,
            insufficiently_attended=insufficiently_attended,
        )
    except ValueError as error:
        raise UserError(
            f"--failure-pid {failure_pid:g} --over-attended {over_attended:g}"
            f" --insufficiently-attended {insufficiently_attended:g}: {error}"
        ) from None
    return {"thresholds": thresholds}


def _whole_numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise UserError(
            f"--patch-sizes {text}: must be whole numbers, comma-separated, such as 2,4,8,16"
        ) from None


def _scores_as_text(metrics: dict[str, float], tables: list[Path], pictures: list[Path]) -> str:
    # The tables hold the metrics of single methods.
    shown = {name: value for name, value in metrics.items() if not _OF_ONE_METHOD.search(name)}
    texts = [path.read_text(encoding="utf-8") for path in tables]
    listed = "\n".join(f"  {path}" for path in pictures)
    return "\n".join([metrics_table(shown), "", *texts, f"pictures:\n{listed}"])
