"""The summary in a search's folder, and what other searches take from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labn.errors import UserError

if TYPE_CHECKING:
    from labn.sweeps.search.search_results import SearchResults


def best_parameters(folder: Path, count: int) -> dict[int, dict[str, Any]]:
    """Return the parameters of a search's best finished trials, by their numbers, the best first.

    Raises:
        UserError: there is no search, or no finished trial that satisfies its constraint.
    """
    summary = read_summary(folder)
    trials = [one for one in summary["trials"] if one["state"] == "finished" and one["is_feasible"]]
    if not trials:
        raise UserError(
            f"{folder}: no trial has finished and satisfies the constraint; give another search"
        )
    metric = summary["maximise"][0]
    trials.sort(key=lambda trial: -trial["metrics"][metric])
    return {trial["number"]: dict(trial["point"]) for trial in trials[:count]}


def read_summary(folder: Path) -> SearchResults:
    """Return the summary in a search's folder.

    Raises:
        UserError: there is none.
    """
    file = folder.expanduser() / "summary.json"
    if not file.is_file():
        raise UserError(f"{folder}: holds no search (no summary.json); give a search's output_dir")
    try:
        content: SearchResults = json.loads(file.read_text(encoding="utf-8"))
        is_search = {"counts", "trials"} <= content.keys()
    except (ValueError, AttributeError, OSError):
        is_search = False
    if not is_search:
        raise UserError(
            f"{folder}: its summary.json is not a search's, but maybe a run's or a study's; give a"
            " search's output_dir"
        )
    return content
