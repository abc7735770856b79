"""The figures of a search, from its study."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optuna
from matplotlib.figure import Figure
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from labn.report.style import save_figure
from labn.report.trial_parameters import (
    contour_figure,
    importances_figure,
    parallel_figure,
    slices_figure,
)
from labn.report.trials import (
    TrialRecord,
    epochs_figure,
    pareto_figure,
    timeline_figure,
    trial_history_figure,
)
from labn.sweeps.search.optuna_study import (
    STATES,
    SearchStudy,
    epochs_of,
    is_feasible,
    metrics_of,
)

logger = logging.getLogger(__name__)

_CONTOUR = ("model.theta_alpha", "loss.theta_b")
_SAME = 1e-4
"""Relative difference of one epoch's scores in training and in the final evaluation."""


def draw_figures(study: SearchStudy, folder: Path) -> list[Path]:
    """Draw the figures that the trials so far allow; return the PNG files."""
    if not any(trial.state == TrialState.COMPLETE for trial in study.trials):
        return []
    written = []
    for name, figure in _figures(study):
        place = folder / f"{name}.png"
        save_figure(figure, place)
        written.append(place)
    return written


def _figures(study: SearchStudy) -> Iterator[tuple[str, Figure]]:
    names = study.objectives
    trials = [_record(study, trial) for trial in study.trials]
    is_log = _parameters(study)
    if len(names) > 1:
        front = {trial.number for trial in study.front()}
        yield "pareto", pareto_figure(trials, names, front)
    yield "history", trial_history_figure(trials, names[0])
    shares = importances(study)
    if shares:
        num_finished = sum(trial.state == "finished" for trial in trials)
        yield "importances", importances_figure(shares, names[0], num_finished)
    if is_log:
        yield "parallel", parallel_figure(trials, names[0], _of_all(study, is_log))
        yield "slice", slices_figure(trials, names[0], is_log)
    if len(is_log) > 1:
        pair = _CONTOUR if set(_CONTOUR) <= is_log.keys() else tuple(is_log)[:2]
        yield "contour", contour_figure(trials, names[0], {name: is_log[name] for name in pair})
    yield "epochs", epochs_figure(trials, names[0])
    yield "timeline", timeline_figure(trials)


def _record(study: SearchStudy, trial: FrozenTrial) -> TrialRecord:
    metrics, epochs, names = metrics_of(trial), epochs_of(trial), study.objectives
    last = epochs[max(epochs)] if epochs else {}
    scores = [metrics.get(name, last.get(name, math.nan)) for name in names]
    if trial.state == TrialState.COMPLETE:
        scores = list(trial.values)
    known = [score if math.isfinite(score) else None for score in scores]
    return TrialRecord(
        number=trial.number,
        # It may be running as well as interrupted.
        state="unfinished" if trial.state == TrialState.RUNNING else STATES[trial.state],
        parameters=trial.params,
        score=known[0],
        second_score=known[1] if len(known) > 1 else None,
        epochs={epoch: row[names[0]] for epoch, row in epochs.items() if names[0] in row},
        counted=_counted_epoch(trial),
        is_feasible=is_feasible(trial),
        start=trial.datetime_start,
        end=trial.datetime_complete,
    )


def _counted_epoch(trial: FrozenTrial) -> int | None:
    """Return the epoch whose network the final scores are of; None over several seeds or folds."""
    metrics = metrics_of(trial)
    keys = ("val_loss", "val_auroc", "val_accuracy")
    if trial.state == TrialState.COMPLETE:
        for epoch, row in epochs_of(trial).items():
            shared = [key for key in keys if key in row and key in metrics]
            if shared and all(math.isclose(row[k], metrics[k], rel_tol=_SAME) for k in shared):
                return epoch
    return None


def _parameters(study: SearchStudy) -> dict[str, bool]:
    """Return whether each parameter was drawn on a logarithmic scale."""
    found: dict[str, bool] = {}
    for trial in study.trials:
        for name, domain in trial.distributions.items():
            if isinstance(domain, (FloatDistribution, IntDistribution)):
                found.setdefault(name, domain.log)
            else:
                found.setdefault(name, False)
    return found


def _of_all(study: SearchStudy, is_log: dict[str, bool]) -> dict[str, bool]:
    """Return those parameters that every trial has: the others depend on a choice."""
    return {
        name: log
        for name, log in is_log.items()
        if all(name in trial.params for trial in study.trials)
    }


def importances(study: SearchStudy) -> dict[str, float]:
    """Return the parameters' importances for the first score; nothing from too few trials."""
    verbosity = optuna.logging.get_verbosity()
    # Optuna warns of every parameter that has one value only.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            target = (lambda trial: trial.values[0]) if len(study.objectives) > 1 else None
            return dict(optuna.importance.get_param_importances(study.optuna, target=target))
    # Too few trials, or all alike.
    except (ValueError, RuntimeError, ArithmeticError, IndexError) as error:
        logger.debug("importances are not drawn: %s", error)
        return {}
    finally:
        optuna.logging.set_verbosity(verbosity)
