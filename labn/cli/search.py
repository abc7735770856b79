"""The commands that search for settings: search, and search export."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from labn.cli.ablate import summary_as_text
from labn.cli.app import Commands, Group, Json, Overrides, app, is_override, print_result
from labn.cli.progress import ConsoleReporter, starting
from labn.cli.signals import StopRequest

_NOTICE = "stopping: trials resume from their last checkpoints (again to stop at once)\n"


_WATCH_S, _SILENT_S = 2.0, 60.0
"""Seconds between looks at a search's status, and of silence that are reported."""


class _DefaultCommand(Group):
    """A group that runs `run` if the first word names no command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert the command that was left out."""
        if args and args[0] not in self.commands:
            args = ["run", *args]
        return super().parse_args(ctx, args)


search_app = Commands(
    cls=_DefaultCommand,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Search for the settings with the best validation scores: `labn search CONFIG`.",
)
app.add_typer(search_app, name="search")


class Format(StrEnum):
    """The format of a summary."""

    json = "json"
    markdown = "markdown"


@search_app.command()
def run(
    config: Annotated[
        Path | None,
        typer.Argument(help="A search's file.", show_default="configs/search/cluster.yaml"),
    ] = None,
    overrides: Overrides = None,
    confirm_best: Annotated[
        int,
        typer.Option(
            "--retrain-best", min=0, help="Then retrain this many of the best, and the base."
        ),
    ] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="New seeds for each that is retrained.")] = 3,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what is searched, and how, only.")
    ] = False,
    show_settings: Annotated[
        bool, typer.Option("--settings", help="Show the settings of every trial.")
    ] = False,
    watched: Annotated[
        Path | None,
        typer.Option("--watch", help="Show the search in this output_dir until it ends, only."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Search by Ray Tune and Optuna; the same command again resumes where it stopped.

    `key=value` replaces settings of the search (`trials=8`), or fixes one of its runs
    (`data.root=~/idrid`). Uses the Ray cluster that `RAY_ADDRESS` names, else this machine.
    `labn search run` without a file searches on the data that `LABN_DATA` names, else on the
    embedded set. `labn search export` prints the summary of a search.

    **Examples**

        labn search configs/search/demo.yaml

        labn search demo --dry-run

        labn search configs/search/idrid.yaml data.root=~/idrid trials=40 trial.gpus=0.5

        labn search configs/search/demo.yaml --retrain-best 1 --seeds 3

        labn search --watch runs/search-demo
    """
    if watched is not None:
        _watch(watched, show_settings, as_json)
        return
    with starting():  # Ray and Optuna
        from labn.cli.search_display import SearchDisplay
        from labn.config import load_search
        from labn.config.shipped import SEARCHES, find_config
        from labn.sweeps.search import confirm
        from labn.sweeps.search.default_search import default_search
        from labn.sweeps.search.search_driver import run_search
        from labn.sweeps.search.search_plan import plan_as_text, plan_search

    given = overrides or []
    with ExitStack() as stack:
        if config is None or is_override(config):
            given = [*([] if config is None else [str(config)]), *given]
            config, given = stack.enter_context(default_search(given, _say))
        config = find_config(config, SEARCHES)
        search = load_search(config, given)
        if dry_run:
            content = plan_search(search, config)
            print_result(as_json, content, plan_as_text(content))
            return
        with SearchDisplay(show_settings=show_settings) as display, StopRequest(_NOTICE) as stop:
            summary = run_search(search, config, display, stop.is_requested)
        if not confirm_best:
            print_result(as_json, dict(summary), _as_text(summary))
            return
        with ConsoleReporter() as reporter, StopRequest(_NOTICE) as stop:
            confirmation = confirm.confirm_best(
                search, config, num_best=confirm_best, num_seeds=seeds, reporter=reporter,
                should_stop=stop.is_requested,
            )  # fmt: skip
    text = f"{summary_as_text(confirmation.study)}\n{confirmation.verdict}"
    content = {"retrained": confirmation.as_json()}
    print_result(as_json, dict(summary) | content, f"{_as_text(summary)}\n{text}")


@search_app.command()
def export(
    study: Annotated[Path, typer.Argument(help="A search's output_dir.", show_default=False)],
    to: Annotated[Format, typer.Option(help="The format.")] = Format.json,
) -> None:
    """Print the summary of a search: every trial with its settings, scores and state.

    **Example**

        labn search export runs/search-demo --to markdown
    """
    from labn.sweeps.search.search_results import as_markdown
    from labn.sweeps.search.summary_file import read_summary

    summary = read_summary(study)
    print_result(to is Format.json, dict(summary), as_markdown(summary).rstrip())


def _watch(folder: Path, show_settings: bool, as_json: bool) -> None:
    """Show the status in a search's folder until its process ends; in JSON, once."""
    from labn.cli.search_display import SearchDisplay, status_as_text
    from labn.sweeps.search.status import SearchStatus

    status, age_s = SearchStatus.read(folder)
    was_silent = False
    with SearchDisplay(show_settings=show_settings) as display:
        while not status.has_ended and not as_json:
            if age_s > _SILENT_S and not was_silent:
                display.message(f"no news for {age_s:.0f} s: its process may have died")
            was_silent = age_s > _SILENT_S
            display.show(status)
            time.sleep(_WATCH_S)
            status, age_s = SearchStatus.read(folder)
    ended = "" if not status.has_ended else "; it has ended: `labn search export` prints it"
    print_result(as_json, asdict(status), f"{status_as_text(status)}{ended}")


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _as_text(summary: Mapping[str, Any]) -> str:
    folder = summary["output_dir"]
    counts = ", ".join(f"{count} {state}" for state, count in summary["counts"].items())
    lines = [f"{folder}: {counts}; {summary['num_epochs']} epochs"]
    if summary["best"] is None:
        lines.append("no finished trial meets the constraint")
    else:
        row = next(row for row in summary["trials"] if row["number"] == summary["best"])
        scores = [f"{name} {row['metrics'][name]:.4f}" for name in summary["maximise"]]
        lines.append(f"best: trial {row['number']}, {', '.join(scores)}")
        lines += [f"  {key}: {value}" for key, value in row["point"].items()]
        lines.append(f"train it: labn train {folder}/best.yaml")
    lines.append(f"table: {folder}/summary.md; figures: {folder}/figures")
    # Which takes a journal by its path.
    lines.append(f"browse: optuna-dashboard {summary['storage'].removeprefix('journal:')}")
    return "\n".join(lines)
