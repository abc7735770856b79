"""Confirmation of the best trials: trained again from new seeds, and tested against the base.

The best score of a search is a maximum over many trials, and so biased upwards. New seeds and the
test subset, which no trial used, give an unbiased estimate.
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
from labn.runs.reporter import Reporter, StoppingReporter
from labn.sweeps.ablation.ablation_driver import run_study
from labn.sweeps.ablation.ablation_report import StudySummary
from labn.sweeps.ablation.ablation_study import resolve_study
from labn.sweeps.search.optuna_study import SearchStudy
from labn.sweeps.search.space import Space

_METHOD = "LABN"
_SIGNIFICANT = 0.05

REFERENCE = "base"
"""The name of the condition with the settings of the search's base."""


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """The report of a confirmation, and the best trial's test against the base.

    ``test`` is the tested difference, as in ``report.json``, or None where the best trial has the
    base's settings; ``verdict`` states it in one sentence.
    """

    study: StudySummary
    winner: str
    test: Mapping[str, Any] | None
    verdict: str

    def as_json(self) -> dict[str, Any]:
        """Return the confirmation as plain values."""
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
    """Train the best trials and the base from new seeds, and score each once on the test subset.

    Runs are written to ``retrained`` in the search's folder; finished ones are kept.

    Raises:
        UserError: the folder holds a study of other settings.
        RunFailed: no trial finished, some runs failed, or ``should_stop`` returned True.
    """
    space = Space(search, path)
    table = space.share_split(StoppingReporter(reporter, should_stop))
    ranked = SearchStudy(search, space, table.digest).ranked()
    if not ranked:
        raise RunFailed("no trial finished within the constraint: there is none to confirm")
    base = space.config({})
    best = {f"trial-{trial.number}": space.decode(trial.params) for trial in ranked[:num_best]}
    # The base is trained anyway.
    others = {name: one for name, one in best.items() if space.config(one) != base}
    sizes = search.objective.patch_sizes or (space.base.validation.pid_patch_size,)
    study = resolve_study(_study_settings(search, space, others, num_seeds, sizes), path)
    summary = run_study(study, reporter, should_stop)
    winner = next(iter(best))
    if winner not in others:
        verdict = f"{winner}, the best, has the settings of {REFERENCE}: nothing to test"
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
    first = space.base.train.seed + search.trial.seeds  # the first seed that no trial used
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
    """Return the test of the best trial against the base."""
    report = json.loads((summary.folder / "report" / "report.json").read_text(encoding="utf-8"))
    cells = [{"condition": name, "method": _METHOD, "score": score} for name in (winner, REFERENCE)]
    return next(row for row in report["differences"] if [row["cell"], row["other"]] == cells)


def _verdict(winner: str, test: Mapping[str, Any]) -> str:
    """Return whether the winner beats the base by the corrected test over seeds, as a sentence."""
    p, holm = test["welch_p"], test["welch_p_holm"]
    is_better = test["difference"] > 0 and holm is not None and holm < _SIGNIFICANT
    seeds = (
        f"no test over seeds ({test['welch_reason']})"
        if p is None
        else f"p = {p:.3f} over {test['num_seeds']} and {test['num_other_seeds']} seeds"
        f" (Holm {holm:.3f})"
    )
    return (
        f"{winner} minus {REFERENCE}, {test['cell']['score']} on the test subset:"
        f" {test['difference']:+.3f}, {seeds}, p = {test['permutation_p']:.3f} over"
        f" {test['num_images']} images: {'better' if is_better else 'not shown to be better'}"
    )
