"""The report of a study, as Markdown, LaTeX, JSON, figures and one HTML page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from labn.report.html import page
from labn.report.tables import as_markdown
from labn.runs.comparison.compare import Comparison, compare_runs
from labn.runs.comparison.comparison_report import write_report
from labn.runs.comparison.comparison_tables import tables
from labn.runs.comparison.read_runs import read_runs
from labn.runs.evaluation.options import EvaluationOptions, prefix_of, without_absent_methods
from labn.runs.folder import RunFolder
from labn.runs.reporter import Reporter
from labn.storage.files import write_atomically, write_json
from labn.sweeps.ablation.ablation_figures import draw_study, headline_score
from labn.sweeps.ablation.ablation_study import AblationRun, AblationStudy, settings_as_text
from labn.sweeps.worker import Outcome

_MEANS = ("pid", "pid_random", "pid_matched", "p_image", "p_bias", "auroc", "accuracy", "tss")
_OWN_METHOD = "LABN"


@dataclass(frozen=True)
class StudySummary:
    """The runs of a study, their states, and the files of the report.

    ``note`` is Markdown: the conditions, and the table that compares them.
    """

    title: str
    folder: Path
    conditions: dict[str, dict[str, Any]]
    runs: list[dict[str, Any]]
    means: dict[str, dict[str, float]]
    note: str
    files: list[Path] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the summary as plain values."""
        return {
            "study": self.title,
            "output_dir": str(self.folder),
            "conditions": self.conditions,
            "runs": self.runs,
            "means": self.means,
            "files": [str(path) for path in self.files],
        }


def summarise(study: AblationStudy, reporter: Reporter) -> StudySummary:
    """Write the report on a study's finished runs to ``report`` in its folder; return a summary.

    Raises:
        UserError: the files of a run cannot be read.
    """
    settings = study.settings
    outcomes = {run.name: run.outcome for run in study.runs()}
    finished = [run for run in study.runs() if study.is_finished(run)]
    # The first condition comes first: the others are tested against it.
    order = list(study.conditions)
    finished.sort(key=lambda run: (order.index(run.condition), settings.seeds.index(run.seed)))
    # What is measured over all folds is not compared with what is measured over some.
    counts = Counter((run.condition, run.seed) for run in finished)
    compared = [r for r in finished if counts[r.condition, r.seed] == len(study.folds)]
    summary = StudySummary(
        title=settings.title,
        folder=settings.output_dir,
        conditions=study.differing(),
        runs=[_run_row(run, outcomes[run.name], run in finished) for run in study.runs()],
        means=_means(study, finished, outcomes),
        note=_conditions_as_markdown(study),
    )
    if compared:
        reporter.message("writing the report")
        summary = _write(study, summary, _compare(study, compared), reporter)
    write_json(settings.output_dir / "summary.json", summary.as_json())
    return summary


def _run_row(run: AblationRun, outcome: Outcome | None, is_done: bool) -> dict[str, Any]:
    state = "finished" if is_done else "failed" if outcome and outcome.state == "failed" else "open"
    return {
        "condition": run.condition,
        "seed": run.seed,
        "fold": run.fold,
        "state": state,
        "reason": outcome.reason if outcome and state == "failed" else "",
        "folder": str(run.config.output_dir),
        "metrics": outcome.metrics if outcome and is_done else {},
    }


def _means(
    study: AblationStudy, finished: Sequence[AblationRun], outcomes: dict[str, Outcome | None]
) -> dict[str, dict[str, float]]:
    means: dict[str, dict[str, float]] = {}
    for condition in study.conditions:
        runs = [run for run in finished if run.condition == condition]
        found = [outcomes[run.name] for run in runs]
        metrics = [outcome.metrics for outcome in found if outcome is not None]
        prefix = prefix_of(_scores_of(study, runs[0]).name) if runs else ""
        names = [f"{prefix}_{name}" for name in _MEANS]
        means[condition] = {
            name: fmean(one[name] for one in metrics)
            for name in names
            if metrics and all(name in one for one in metrics)
        }
    return means


def _scores_of(study: AblationStudy, run: AblationRun) -> Path:
    """Return the folder of a run's evaluation by the study."""
    evaluate, config = study.settings.evaluate, run.config
    choices = without_absent_methods(evaluate.choices(), config.model)
    folder = RunFolder(config.output_dir)
    scored = folder.evaluation(EvaluationOptions.of(config, choices).place(evaluate.split))
    # Release 0.1.0 scored on any terms in one place.
    return scored if scored.exists() else folder.evaluation(evaluate.split)


def _compare(study: AblationStudy, finished: Sequence[AblationRun]) -> Comparison:
    split = study.settings.evaluate.split
    scored = read_runs([_scores_of(study, run) for run in finished], split)
    named = [replace(one, name=run.name) for one, run in zip(scored, finished, strict=True)]
    methods = list(named[0].scores["method"].unique())
    reference = _OWN_METHOD if _OWN_METHOD in methods else methods[0]
    return compare_runs(named, split, reference, [run.condition for run in finished])


def _write(
    study: AblationStudy, summary: StudySummary, comparison: Comparison, reporter: Reporter
) -> StudySummary:
    folder = study.settings.output_dir / "report"
    folder.mkdir(parents=True, exist_ok=True)
    report = write_report(comparison, folder)
    headline = headline_score(comparison, study.base.validation.pid_patch_size)
    figures = draw_study(comparison, headline, folder, reporter)
    every = figures | {"Every method, run by run": folder / "report.png"}
    failures = _failures_as_lines(summary)
    sections = "".join(f"\n## {name}\n\n![{name}]({path.name})\n" for name, path in figures.items())
    lines = "".join(f"\n{line}\n" for line in failures)
    body = report.markdown.removeprefix("# ")  # a page has one title
    head = f"# {summary.title}\n\n{summary.note}{lines}"
    write_atomically(folder / "report.md", f"{head}{sections}\n{body}")
    conditions = [f"{name}: {settings_as_text(row)}" for name, row in summary.conditions.items()]
    html = page(summary.title, [*conditions, *failures], every, tables(comparison))
    write_atomically(folder / "report.html", html)
    files = [folder / f"report.{kind}" for kind in ("html", "md", "tex", "json")]
    tables_of_note = [
        f"\n{as_markdown(table)}"
        for name, table in tables(comparison)
        if name.startswith(("Conditions: ", "Classification"))
    ]
    note = summary.note + "".join(tables_of_note)
    return replace(summary, note=note, files=[*files, *every.values()])


def _conditions_as_markdown(study: AblationStudy) -> str:
    lines = [
        f"- **{name}**: {settings_as_text(row)}".replace("|", r"\|")
        for name, row in study.differing().items()
    ]
    return "\n".join(lines) + "\n"


def _failures_as_lines(summary: StudySummary) -> list[str]:
    missing = [run for run in summary.runs if run["state"] != "finished"]
    return [
        f"Not in this report: {run['condition']}, seed {run['seed']}"
        f"{'' if run['fold'] is None else ', fold ' + str(run['fold'])}"
        f" ({run['state']}{': ' + run['reason'] if run['reason'] else ''})"
        for run in missing
    ]
