"""What was tried and what came of it, kept by an Optuna study; it outlives every process."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import optuna
from optuna.exceptions import OptunaError
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from labn.config import flatten
from labn.config.search import SearchConfig
from labn.errors import UserError
from labn.runs.folder import INCIDENTAL_KEYS
from labn.sweeps.search.samplers import make_sampler, quiet_optuna
from labn.sweeps.search.space import Point, Space
from labn.sweeps.worker import Outcome
from labn.tracking import redact

STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "interrupted",
}
"""How trials ended, by Optuna's states; one that has not, no process works on where none is."""

_JOURNAL = "journal:"
_EPOCHS, _METRICS, _SPREAD = "epochs", "metrics", "spread"
_REASON, _TIME_S, _DUPLICATE, _DEFINITION = "reason", "time_s", "duplicate_of", "definition"
_NUM_TRIES = 50
"""Draws of a point that was not tried before."""
_NUM_TRUSTED = 3
"""How many of them are the sampler's."""


def storage_url(search: SearchConfig) -> str:
    """Return where a search's study is kept."""
    if search.storage is None and os.environ.get("LABN_SHARED"):
        # On a cluster's node the folder is NFS as a rule, where SQLite's locks do not hold.
        return f"{_JOURNAL}{search.output_dir}/study.journal"
    return search.storage or f"sqlite:///{search.output_dir}/study.db"


class SearchStudy:
    """The trials of a search.

    Raises:
        UserError: the storage cannot be opened, or holds another search under this name.
    """

    def __init__(self, search: SearchConfig, space: Space) -> None:
        quiet_optuna()
        self._search, self._space = search, space
        self.objectives: tuple[str, ...] = search.objective.maximise
        self.optuna = self._open()
        self._check_definition()
        known = self.optuna.get_trials(deepcopy=False)
        self.optuna.sampler = make_sampler(
            search.sampler,
            num_known=len(known),
            is_conditional=space.is_conditional,
            num_objectives=len(self.objectives),
        )
        if not any(trial.state != TrialState.WAITING for trial in known):
            for point in space.first_points()[: search.trials]:
                self.optuna.enqueue_trial(point, skip_if_exists=True)
        self._interrupted = [trial for trial in known if trial.state == TrialState.RUNNING]
        self.interrupted = frozenset(trial.number for trial in self._interrupted)
        """Numbers of the trials that an earlier process left amid their work."""

    @property
    def trials(self) -> list[FrozenTrial]:
        """List all trials that count, running ones too."""
        return [
            trial
            for trial in self.optuna.get_trials(deepcopy=False)
            if trial.state != TrialState.WAITING and _DUPLICATE not in trial.user_attrs
        ]

    def next(self) -> tuple[int, Point] | None:
        """Give an interrupted trial, else draw a new one; None where the budget is used up.

        A trial's number is its own for ever. No point is given twice.
        """
        if self._interrupted:
            earlier = self._interrupted.pop(0)
            # Whatever a killed process had not drawn yet is drawn now.
            return earlier.number, self._space.draw(Trial(self.optuna, earlier._trial_id))
        if len(self.trials) >= self._search.trials:
            return None
        return self._draw_new()

    def _draw_new(self) -> tuple[int, Point] | None:
        """Draw a point that was not tried before; None where there seems to be none left."""
        sampler = self.optuna.sampler
        try:
            for attempt in range(_NUM_TRIES):
                if attempt == _NUM_TRUSTED:
                    # A model that is sure of its best point gives it again and again.
                    seed = self._search.sampler.seed + len(self.optuna.get_trials(deepcopy=False))
                    self.optuna.sampler = RandomSampler(seed)
                trial = self.optuna.ask()
                point = self._space.draw(trial)
                same = [t.number for t in self.trials if t.params == trial.params]
                if same == [trial.number]:
                    return trial.number, point
                trial.set_user_attr(_DUPLICATE, same[0])
                self.optuna.tell(trial, state=TrialState.FAIL)
            return None
        finally:
            self.optuna.sampler = sampler

    def record_epoch(self, number: int, metrics: Mapping[str, float]) -> None:
        """Keep what an epoch gave."""
        trial = self._handle(number)
        epochs = dict(trial.user_attrs.get(_EPOCHS, {}))
        epoch = str(int(metrics["epoch"]))
        if epoch in epochs:
            return  # done again after a kill
        names = ("val_pid", "val_auroc", "val_accuracy", "val_loss")
        epochs[epoch] = {name: metrics[name] for name in names if name in metrics}
        trial.set_user_attr(_EPOCHS, epochs)
        if len(self.objectives) == 1:
            trial.report(metrics[self.objectives[0]], int(epoch))

    def conclude(self, number: int, outcome: Outcome) -> None:
        """Keep how a trial ended; pruned is pruned, failed is failed with its reason."""
        trial = self._handle(number)
        values = [outcome.metrics.get(name, math.nan) for name in self.objectives]
        for key, value in (
            (_METRICS, {k: v for k, v in outcome.metrics.items() if math.isfinite(v)}),
            (_SPREAD, outcome.spread),
            (_REASON, outcome.reason),
            (_TIME_S, outcome.time_s),
        ):
            if value:
                trial.set_user_attr(key, value)
        if outcome.state != "failed":
            self._set_constraint(trial, outcome)
        if outcome.state == "finished":
            self.optuna.tell(trial, values)
        else:
            state = TrialState.PRUNED if outcome.state == "pruned" else TrialState.FAIL
            self.optuna.tell(trial, state=state)

    def best(self) -> FrozenTrial | None:
        """Give the finished trial of the best score among those that keep the constraint.

        With two objectives, the best in the first of them.
        """
        return next(iter(self.ranked()), None)

    def ranked(self) -> list[FrozenTrial]:
        """List the finished trials that keep the constraint, those of the best score first."""
        finished = [t for t in self.trials if t.state == TrialState.COMPLETE and is_feasible(t)]
        return sorted(finished, key=lambda trial: -trial.values[0])

    def front(self) -> list[FrozenTrial]:
        """List the feasible finished trials that no other is better than in every objective."""
        finished = self.ranked()
        return [t for t in finished if not any(_dominates(other, t) for other in finished)]

    def point(self, trial: FrozenTrial) -> Point:
        """Give a trial's settings, by the keys of a run's configuration."""
        return self._space.point_of(trial.params)

    def _set_constraint(self, trial: Trial, outcome: Outcome) -> None:
        constraint = self._search.objective.constraint
        if constraint is not None:
            # Feasible at or below 0. A score that is not there is not reached.
            score = outcome.metrics.get(constraint.metric, 0.0)
            trial.set_constraint(constraint.metric, constraint.at_least - score)

    def _handle(self, number: int) -> Trial:
        return Trial(self.optuna, self.optuna._storage.get_trial_id_from_study_id_trial_number(
            self.optuna._study_id, number))  # fmt: skip

    def _open(self) -> optuna.Study:
        search = self._search
        url = storage_url(search)
        try:
            return optuna.create_study(
                storage=open_storage(url),
                study_name=search.output_dir.name,
                directions=["maximize"] * len(self.objectives),
                load_if_exists=True,
            )
        except (OSError, ImportError, ValueError, SQLAlchemyError, OptunaError) as error:
            raise _unusable(url, error) from error

    def _check_definition(self) -> None:
        """Keep what is searched with the study, and refuse to mix two searches in one."""
        search = self._search
        base = flatten(self._space.base.model_dump(mode="json"))
        new = {key: value for key, value in base.items() if not key.startswith(INCIDENTAL_KEYS)}
        new = {key: value for key, value in new.items() if key not in search.space}
        new |= {f"space.{key}": d.model_dump(mode="json") for key, d in search.space.items()}
        new |= flatten(search.objective.model_dump(mode="json"), "objective.")
        new |= {"trial.seeds": search.trial.seeds, "pruning": search.model_dump()["pruning"]}
        new = json.loads(json.dumps(new))
        old = self.optuna.user_attrs.get(_DEFINITION)
        if old is None:
            self.optuna.set_user_attr(_DEFINITION, new)
            return
        changed = [
            f"{key} is {old.get(key)} there, {new.get(key)} now"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        ]
        if changed:
            raise UserError(
                f"output_dir = {search.output_dir}: holds a search with other settings"
                f" ({'; '.join(changed[:3])}{'; ...' if len(changed) > 3 else ''});"
                " give another output_dir"
            )


def open_storage(url: str) -> BaseStorage:
    """Open, and make where needed, a study's storage: a database's URL, or ``journal:FILE``."""
    if url.startswith(_JOURNAL):
        place = Path(url.removeprefix(_JOURNAL)).expanduser()
        place.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(place)))
    if url.startswith("sqlite:///"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return RDBStorage(url)


def is_feasible(trial: FrozenTrial) -> bool:
    """Tell whether a trial keeps the search's constraint."""
    return all(value <= 0 for value in trial.constraints.values())


def epochs_of(trial: FrozenTrial) -> dict[int, dict[str, float]]:
    """Give the scores of a trial's epochs so far, by epoch."""
    epochs = trial.user_attrs.get(_EPOCHS, {})
    return {int(epoch): metrics for epoch, metrics in epochs.items()}


def metrics_of(trial: FrozenTrial) -> dict[str, float]:
    """Give the metrics that a trial ended with."""
    metrics: dict[str, float] = trial.user_attrs.get(_METRICS, {})
    return metrics


def spread_of(trial: FrozenTrial) -> dict[str, float]:
    """Give the standard deviations of a trial's metrics over its seeds."""
    spread: dict[str, float] = trial.user_attrs.get(_SPREAD, {})
    return spread


def reason_of(trial: FrozenTrial) -> str:
    """Say why a trial failed or was pruned."""
    return str(trial.user_attrs.get(_REASON, ""))


def time_of(trial: FrozenTrial) -> float | None:
    """Give how many seconds a trial ran, since it was last started."""
    time_s: float | None = trial.user_attrs.get(_TIME_S)
    return time_s


def _dominates(one: FrozenTrial, other: FrozenTrial) -> bool:
    pairs = list(zip(one.values, other.values, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def _unusable(url: str, error: Exception) -> UserError:
    reason = redact(" ".join(str(error).split()))
    return UserError(
        f"storage = {redact(url)}: cannot be used ({reason}); give sqlite:///FILE, journal:FILE,"
        " or the URL of a database that answers"
    )
