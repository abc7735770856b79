"""The figures of a search, by Optuna's own plots."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import optuna
from matplotlib.figure import Figure
from optuna.trial import TrialState
from optuna.visualization import matplotlib as plots

from labn.storage.files import write_atomically
from labn.sweeps.search.optuna_study import SearchStudy

logger = logging.getLogger(__name__)

_DPI = 120
_CONTOUR = ("model.theta_alpha", "loss.theta_b")


def draw_figures(study: SearchStudy, folder: Path) -> list[Path]:
    """Draw the figures that the trials so far allow; return the PNG files."""
    mpl.use("agg")
    from matplotlib import pyplot as plt

    written = []
    verbosity = optuna.logging.get_verbosity()
    # Optuna warns of every parameter that has one value only.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for name, draw in _plots(study):
        place = folder / f"{name}.png"
        # Optuna sets a style, and warns that its plots are experimental.
        with mpl.rc_context(), warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                axes = draw()
                _save(np.ravel(np.asarray(axes, dtype=object))[0].get_figure(), place)
                written.append(place)
            # Too few trials, or all alike: each plot raises another error.
            except (ValueError, RuntimeError, ArithmeticError, IndexError) as error:
                logger.debug("%s is not drawn: %s", name, error)
            finally:
                plt.close("all")
    optuna.logging.set_verbosity(verbosity)
    return written


def _save(figure: Figure, place: Path) -> None:
    figure.set_size_inches(max(8.0, figure.get_figwidth()), max(5.0, figure.get_figheight()))
    # Tight, since not all of Optuna's figures leave space for their labels.
    save = partial(figure.savefig, format="png", dpi=_DPI, bbox_inches="tight")
    write_atomically(place, save)


def _plots(study: SearchStudy) -> Iterator[tuple[str, Callable[[], Any]]]:
    trials, names = study.optuna, study.objectives
    if not any(trial.state == TrialState.COMPLETE for trial in study.trials):
        return
    target: dict[str, Any] = {"target_name": names[0]}
    if len(names) > 1:
        target["target"] = lambda trial: trial.values[0]
        yield "pareto", lambda: plots.plot_pareto_front(trials, target_names=list(names))
    yield "history", lambda: plots.plot_optimization_history(trials, **target)
    yield "importances", lambda: plots.plot_param_importances(trials, **target)
    yield "parallel", lambda: _below_title(plots.plot_parallel_coordinate(trials, **target))
    yield "slice", lambda: plots.plot_slice(trials, **target)
    pair = _pair(study)
    if pair:
        yield "contour", lambda: plots.plot_contour(trials, params=pair, **target)
    if len(names) == 1:
        yield "epochs", lambda: _by_epoch(plots.plot_intermediate_values(trials), names[0])
    yield "timeline", lambda: plots.plot_timeline(trials)


def _below_title(axes: Any) -> Any:
    """Raise the title, over which Optuna draws the legend of feasible trials."""
    axes.set_title(axes.get_title(), y=1.1)
    return axes


def _by_epoch(axes: Any, score: str) -> Any:
    """Label the axes."""
    axes.set(title="Scores by epoch", xlabel="epoch", ylabel=score)
    return axes


def _pair(study: SearchStudy) -> list[str] | None:
    """Return two parameters for the contour: the paper's thresholds, or the first two."""
    known = list(dict.fromkeys(name for trial in study.trials for name in trial.params))
    if set(_CONTOUR) <= set(known):
        return list(_CONTOUR)
    return known[:2] if len(known) > 1 else None
