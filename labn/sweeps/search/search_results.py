"""The summary of a search, as data and as Markdown."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, TypedDict

from optuna.trial import FrozenTrial

from labn.config.search import SearchConfig
from labn.sweeps.search.optuna_study import (
    STATES,
    SearchStudy,
    epochs_of,
    is_feasible,
    metrics_of,
    reason_of,
    spread_of,
    time_of,
)
from labn.sweeps.search.space import Parameters
from labn.sweeps.search.status import parameters_as_text
from labn.sweeps.search.study_storage import storage_url
from labn.sweeps.search.trial import trial_folder
from labn.tracking import redact


class TrialRow(TypedDict):
    """A trial; ``metrics`` are those of its best epoch, or of its last where it was pruned."""

    number: int
    state: str
    is_feasible: bool
    point: Parameters
    metrics: dict[str, float]
    spread: dict[str, float]
    num_epochs: int
    time_s: float | None
    reason: str
    folder: str


class SearchResults(TypedDict):
    """The summary of a search so far. ``best`` and ``front`` are numbers of trials."""

    output_dir: str
    storage: str
    study: str
    sampler: str
    maximise: list[str]
    constraint: dict[str, Any] | None
    counts: dict[str, int]
    num_epochs: int
    best: int | None
    front: list[int]
    trials: list[TrialRow]
    figures: list[str]


def summarise(search: SearchConfig, study: SearchStudy, figures: list[Path]) -> SearchResults:
    """Return the summary of a study."""
    rows = [_row(search, study, trial) for trial in study.trials]
    best = study.best()
    constraint = search.objective.constraint
    return SearchResults(
        output_dir=str(search.output_dir),
        storage=redact(storage_url(search)),
        study=study.optuna.study_name,
        sampler=search.sampler.name,
        maximise=list(study.objectives),
        constraint=constraint.model_dump() if constraint else None,
        counts=dict(Counter(row["state"] for row in rows)),
        num_epochs=sum(row["num_epochs"] for row in rows),
        best=None if best is None else best.number,
        front=[trial.number for trial in study.front()] if len(study.objectives) > 1 else [],
        trials=rows,
        figures=[str(path) for path in figures],
    )


def _row(search: SearchConfig, study: SearchStudy, trial: FrozenTrial) -> TrialRow:
    epochs = epochs_of(trial)
    return TrialRow(
        number=trial.number,
        state=STATES[trial.state],
        is_feasible=is_feasible(trial),
        point=study.parameters(trial),
        metrics=metrics_of(trial),
        spread=spread_of(trial),
        num_epochs=max(epochs, default=0),
        time_s=time_of(trial),
        reason=reason_of(trial),
        folder=str(trial_folder(search, trial.number)),
    )


def as_markdown(summary: SearchResults) -> str:
    """Return a summary as Markdown, the best trials first."""
    counts = ", ".join(f"{count} {state}" for state, count in summary["counts"].items())
    lines = [
        f"# Search {summary['study']}",
        "",
        f"{counts}; {summary['num_epochs']} epochs in all; sampler {summary['sampler']}.",
        _verdict(summary),
        "",
    ]
    keys = list(dict.fromkeys(key for row in summary["trials"] for key in row["point"]))
    names = ["val_pid", "val_auroc", "val_accuracy"]
    lines.append("| " + " | ".join(["trial", "state", *names, "epochs", *keys, "note"]) + " |")
    lines.append("| " + " | ".join(["--:", ":--", *["--:"] * (4 + len(keys)), ":--"]) + " |")
    lines += [_line(row, names, keys) for row in _ranked(summary)]
    return "\n".join(lines) + "\n"


def _verdict(summary: SearchResults) -> str:
    if summary["best"] is None:
        return "No trial finished within the constraint."
    row = next(row for row in summary["trials"] if row["number"] == summary["best"])
    text = f"Best: trial {row['number']}, {parameters_as_text(row['point'])}."
    if summary["front"]:
        text += f" Pareto front: trials {', '.join(map(str, summary['front']))}."
    num_scored = sum(summary["counts"].get(state, 0) for state in ("finished", "pruned"))
    if num_scored > 1 and not row["spread"]:
        text += (
            f" Its score is the highest of {num_scored} trials with one seed each, so it is"
            " partly luck: `labn search CONFIG --retrain-best K` trains the best with new seeds."
        )
    return text


def _ranked(summary: SearchResults) -> list[TrialRow]:
    order = ["finished", "pruned", "interrupted", "failed"]
    name = summary["maximise"][0]

    def rank(row: TrialRow) -> tuple[int, bool, float]:
        place = order.index(row["state"])
        return place, not row["is_feasible"], -row["metrics"].get(name, float("-inf"))

    return sorted(summary["trials"], key=rank)


def _line(row: TrialRow, names: list[str], keys: list[str]) -> str:
    scores = [_score(row, name) for name in names]
    values = [_value(row["point"].get(key)) for key in keys]
    note = row["reason"] or ("" if row["is_feasible"] else "violates the constraint")
    cells = [str(row["number"]), row["state"], *scores, str(row["num_epochs"]), *values,
             note.replace("|", "/")]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _score(row: TrialRow, name: str) -> str:
    if name not in row["metrics"]:
        return ""
    spread = f" ± {row['spread'][name]:.3f}" if name in row["spread"] else ""
    return f"{row['metrics'][name]:.3f}{spread}"


def _value(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
