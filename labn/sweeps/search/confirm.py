"""The best trials trained again, from seeds the search never saw, and tested against the base.

A search's best score is the best of many, and so too high. What it is worth is told by new seeds
and the test part, which no trial has looked at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labn.config.ablation import EachRunConfig, EvaluateConfig, StudyConfig
from labn.config.search import SearchConfig
from labn.errors import RunFailed
from labn.runs.reporter import Reporter
from labn.sweeps.ablation.ablation_driver import run_study
from labn.sweeps.ablation.ablation_report import StudySummary
from labn.sweeps.ablation.ablation_study import resolve_study
from labn.sweeps.search.optuna_study import SearchStudy
from labn.sweeps.search.space import Space

_METHOD = "LABN"
_SIGNIFICANT = 0.05

REFERENCE = "base"
"""The condition of the settings that the search started from, as in its file's base."""


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """What came of it: the report, and the best trial's test against the base.

    ``verdict`` is one sentence; ``test`` the difference it is about, as in ``report.json``, or None
    where the best trial has the base's settings.
    """

    study: StudySummary
    winner: str
    test: Mapping[str, Any] | None
    verdict: str

    def as_json(self) -> dict[str, Any]:
        """Give all of it as plain values."""
        return {"winner": self.winner, "verdict": self.verdict, "test": self.test} | {
            "study": self.study.as_json()
        }


def confirm_best(
    search: SearchConfig,
    path: Path,
    *,
    num_best: int,
    num_seeds: int,
    reporter: Reporter,
    should_stop: Callable[[], bool] = lambda: False,
) -> Confirmation:
    """Train the best trials and the base from new seeds, and score each once on the test part.

    Runs go to ``retrained`` in the search's folder; finished ones are kept.

    Raises:
        UserError: the folder holds a study of other settings.
        RunFailed: no trial finished, some runs failed, or it was asked to stop.
    """
    space = Space(search, path)
    ranked = SearchStudy(search, space).ranked()
    if not ranked:
        raise RunFailed("no trial finished and kept the constraint: there is none to train again")
    base = space.config({})
    points = {f"trial-{trial.number}": space.point_of(trial.params) for trial in ranked[:num_best]}
    # The base is trained anyway.
    others = {name: point for name, point in points.items() if space.config(point) != base}
    sizes = search.objective.patch_sizes or (space.base.validation.pid_patch_size,)
    study = resolve_study(_study_settings(search, space, others, num_seeds, sizes), path)
    summary = run_study(study, reporter, should_stop)
    winner = next(iter(points))
    if winner not in others:
        verdict = f"{winner}, the best, has the settings of {REFERENCE}: there is nothing to test"
        return Confirmation(study=summary, winner=winner, test=None, verdict=verdict)
    test = _test(summary, winner, f"PID m={sizes[0]}")
    return Confirmation(study=summary, winner=winner, test=test, verdict=_verdict(winner, test))


def _study_settings(
    search: SearchConfig,
    space: Space,
    chosen: Mapping[str, Any],
    num_seeds: int,
    sizes: tuple[int, ...],
) -> StudyConfig:
    first = space.base.train.seed + search.trial.seeds  # of those that no trial was trained with
    return StudyConfig(
        base=space.base.model_dump(mode="json"),
        conditions={REFERENCE: {}, **chosen},
        seeds=list(range(first, first + num_seeds)),
        evaluate=EvaluateConfig(split="test", methods=(_METHOD,), patch_sizes=sizes),
        each_run=EachRunConfig(
            cpus=search.trial.cpus, gpus=search.trial.gpus, workers=search.trial.workers
        ),
        output_dir=search.output_dir / "retrained",
    )


def _test(summary: StudySummary, winner: str, score: str) -> Mapping[str, Any]:
    """Find the test of the best trial against the base."""
    report = json.loads((summary.folder / "report" / "report.json").read_text(encoding="utf-8"))
    cells = [{"condition": name, "method": _METHOD, "score": score} for name in (winner, REFERENCE)]
    return next(row for row in report["differences"] if [row["cell"], row["other"]] == cells)


def _verdict(winner: str, test: Mapping[str, Any]) -> str:
    """Say whether the winner beats the base, by the corrected test over seeds."""
    p, holm = test["welch_p"], test["welch_p_holm"]
    is_better = test["difference"] > 0 and holm is not None and holm < _SIGNIFICANT
    seeds = (
        f"no test over seeds ({test['welch_reason']})"
        if p is None
        else f"p = {p:.3f} over {test['num_seeds']} and {test['num_other_seeds']} seeds"
        f" (Holm {holm:.3f})"
    )
    return (
        f"{winner} less {REFERENCE}, {test['cell']['score']} on the test part:"
        f" {test['difference']:+.3f}, {seeds}, p = {test['permutation_p']:.3f} over"
        f" {test['num_images']} images: {'better' if is_better else 'not shown to be better'}"
    )
