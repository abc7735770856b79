"""Optuna's samplers, by name."""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)

from labn.config.search import SamplerConfig
from labn.errors import UserError


def make_sampler(
    settings: SamplerConfig, *, num_known: int, is_conditional: bool, num_objectives: int
) -> BaseSampler:
    """Return a sampler that continues after ``num_known`` trials without repeating their draws.

    Raises:
        UserError: the sampler does not support the search.
    """
    if settings.name == "cmaes" and num_objectives > 1:
        raise UserError(
            "sampler.name = cmaes: supports one objective only; give one in objective.maximise, or"
            " another sampler (tpe, gp)"
        )
    seed, num_startup = settings.seed + num_known, settings.startup_trials
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        match settings.name:
            case "tpe":
                return TPESampler(
                    seed=seed,
                    n_startup_trials=num_startup,
                    multivariate=True,
                    group=is_conditional,
                    # Running trials count as bad, so that new ones are drawn elsewhere.
                    constant_liar=True,
                )
            case "gp":
                return GPSampler(seed=seed, n_startup_trials=num_startup)
            case "cmaes":
                return _cmaes(seed, num_startup)
            case "qmc":
                # The study continues the sequence, which another seed would change.
                return QMCSampler(
                    seed=settings.seed,
                    scramble=True,
                    independent_sampler=RandomSampler(seed),
                    warn_independent_sampling=False,
                )
            case "random":
                return RandomSampler(seed)


def _cmaes(seed: int, num_startup: int) -> CmaEsSampler:
    if find_spec("cmaes") is None:
        raise UserError(
            "sampler.name = cmaes: needs the package cmaes; `pip install cmaes`, or give another"
            " sampler (tpe, gp)"
        )
    return CmaEsSampler(
        seed=seed,
        n_startup_trials=num_startup,
        independent_sampler=RandomSampler(seed),
        warn_independent_sampling=False,
    )


def quiet_optuna() -> None:
    """Silence Optuna's log lines; the search reports its trials itself."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
