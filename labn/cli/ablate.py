"""The command that runs a study of conditions: ablate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labn.cli.app import Json, Overrides, app, print_result
from labn.cli.progress import ConsoleReporter, starting
from labn.cli.signals import StopRequest

if TYPE_CHECKING:
    from labn.sweeps.ablation.ablation_report import StudySummary
    from labn.sweeps.ablation.ablation_study import AblationStudy

_NOTICE = "stopping: runs are saved and can be resumed (again to stop at once)\n"


@app.command()
def ablate(
    study: Annotated[Path, typer.Argument(help="A study's file.", show_default=False)],
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the conditions and runs only.")
    ] = False,
    serial: Annotated[
        bool, typer.Option("--serial", help="One run after the other in this process, without Ray.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train and score every condition of a study from every seed, and report the differences.

    Conditions are named sets of settings; runs are Ray tasks, in parallel. The same command again
    resumes where it stopped, and retries failed runs. `key=value` replaces keys of the study
    (`seeds=[0,1]`), or fixes a setting of all its runs (`data.root=~/idrid`). Uses the Ray cluster
    that `RAY_ADDRESS` names, else this machine.

    **Examples**

        labn ablate configs/ablation/demo.yaml

        labn ablate configs/ablation/idrid.yaml data.root=~/idrid each_run.gpus=1

        labn ablate configs/ablation/demo.yaml --dry-run
    """
    with starting():
        from labn.config.shipped import ABLATIONS, find_config
        from labn.sweeps.ablation.ablation_study import read_study

    read = read_study(find_config(study, ABLATIONS), overrides or [])
    if dry_run:
        content = _plan(read)
        print_result(as_json, content, _plan_as_text(content))
        return
    with starting():  # Ray, whose handler of SIGTERM must be replaced afterwards
        from labn.sweeps.ablation.ablation_driver import run_study

    with ConsoleReporter() as reporter, StopRequest(_NOTICE) as stop:
        summary = run_study(read, reporter, stop.is_requested, is_serial=serial)
    print_result(as_json, summary.as_json(), summary_as_text(summary))


def _plan(study: AblationStudy) -> dict[str, Any]:
    return {
        "study": study.settings.title,
        "output_dir": str(study.settings.output_dir),
        "conditions": study.differing(),
        "runs": [
            {
                "condition": run.condition,
                "seed": run.seed,
                "fold": run.fold,
                "folder": str(run.config.output_dir),
                "is_finished": study.is_finished(run),
            }
            for run in study.runs()
        ],
    }


def _plan_as_text(plan: dict[str, Any]) -> str:
    from labn.sweeps.ablation.ablation_study import settings_as_text

    runs = plan["runs"]
    num_left = sum(not run["is_finished"] for run in runs)
    lines = [f"{plan['study']}: {len(runs)} runs in {plan['output_dir']}, {num_left} left to do"]
    width = max(map(len, plan["conditions"]))
    for name, settings in plan["conditions"].items():
        own = [run for run in runs if run["condition"] == name]
        lines.append(f"  {name:{width}}  {settings_as_text(settings)}; {_seeds_as_text(own)}")
    return "\n".join(lines)


def _seeds_as_text(runs: list[dict[str, Any]]) -> str:
    """Return the seeds of one condition's runs, with their folds, and which are finished."""
    folds = dict.fromkeys(run["fold"] for run in runs)
    if folds == {None: None}:
        marked = (f"{run['seed']}{' (finished)' if run['is_finished'] else ''}" for run in runs)
        return f"seeds {', '.join(marked)}"
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(run["seed"] for run in runs))
    text = f"seeds {seeds}, each on folds {', '.join(map(str, folds))}"
    finished = (run for run in runs if run["is_finished"])
    done = ", ".join(f"seed {run['seed']} fold {run['fold']}" for run in finished)
    return f"{text} (finished: {done})" if done else text


def summary_as_text(summary: StudySummary) -> str:
    """Return a study's outcome as text."""
    from labn.config.run import TRACKER_FILE

    num_finished = sum(run["state"] == "finished" for run in summary.runs)
    lines = [f"{summary.folder}: {num_finished} of {len(summary.runs)} runs finished"]
    width = max(map(len, summary.means))
    for name, metrics in summary.means.items():
        scores = "  ".join(f"{key} {value:.3f}" for key, value in metrics.items())
        lines.append(f"  {name:{width}}  {scores}")
    if summary.files:
        lines.append(f"report: {summary.files[0]}")
    if (summary.folder / TRACKER_FILE).is_file():
        lines.append(f"in the tracker: labn ui {summary.folder}")
    return "\n".join(lines)
