"""The trials of a search, stored in an Optuna study, which outlives every process."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path

import optuna
from optuna.exceptions import OptunaError
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from labn.config import flatten
from labn.config.run import EARLIER_VALUES
from labn.config.search import SearchConfig
from labn.errors import UserError
from labn.runs.folder import INCIDENTAL_KEYS
from labn.storage.files import write_json
from labn.sweeps.search.samplers import make_sampler, quiet_optuna
from labn.sweeps.search.space import Parameters, Space
from labn.sweeps.search.study_storage import open_storage, storage_url
from labn.sweeps.worker import Outcome
from labn.tracking import redact

STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "interrupted",
}
"""Our names of Optuna's states; a running trial without a process is interrupted."""

_EPOCHS, _METRICS, _SPREAD = "epochs", "metrics", "spread"
_REASON, _TIME_S, _DUPLICATE, _DEFINITION = "reason", "time_s", "duplicate_of", "definition"
_DIGEST, _UNCOUNTED = "data.digest", "uncounted"
_IDENTITY_FILE = "search.json"
"""The file in a search's folder with the name of its study."""
MAX_FAILURES = 3
"""How many trials in a row may fail alike before a search ends."""
_NUM_TRIES = 50
"""How many draws are tried for parameters that are new."""
_NUM_TRUSTED = 3
"""How many of these draws are the sampler's; the rest are random."""


class SearchStudy:
    """The trials of a search; ``data_digest`` is that of its images and their subsets.

    Raises:
        UserError: the storage cannot be opened, or holds another search under this name.
    """

    def __init__(self, search: SearchConfig, space: Space, data_digest: str | None = None) -> None:
        quiet_optuna()
        self._search, self._space = search, space
        self.objectives: tuple[str, ...] = search.objective.maximise
        self.optuna = self._open()
        self._check_definition(data_digest)
        self.uncounted = self._find_uncounted()
        """Numbers of failed trials that do not use up the budget."""
        known = self.optuna.get_trials(deepcopy=False)
        self.optuna.sampler = make_sampler(
            search.sampler,
            num_known=len(known),
            is_conditional=space.is_conditional,
            num_objectives=len(self.objectives),
        )
        begun = {trial.number for trial in known if trial.state != TrialState.WAITING}
        if begun <= self.uncounted:
            for parameters in space.first_parameters()[: search.trials]:
                self.optuna.enqueue_trial(parameters, skip_if_exists=not begun)
        self._interrupted = [trial for trial in known if trial.state == TrialState.RUNNING]
        self.interrupted = frozenset(trial.number for trial in self._interrupted)
        """Numbers of the trials that an earlier process left unfinished."""

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, running ones too, without duplicates."""
        return [
            trial
            for trial in self.optuna.get_trials(deepcopy=False)
            if trial.state != TrialState.WAITING and _DUPLICATE not in trial.user_attrs
        ]

    @property
    def num_counted(self) -> int:
        """How much of the budget is used up or in use."""
        return len(self.trials) - len(self.uncounted)

    def _find_uncounted(self) -> frozenset[int]:
        """Return the trials at whose failure earlier processes ended, and store their numbers.

        They failed alike, as on a full disk, so that the budget is left for when that is over.
        """
        stored = {*self.optuna.user_attrs.get(_UNCOUNTED, [])}
        ended = [
            trial
            for trial in self.trials
            if trial.state != TrialState.RUNNING and trial.number not in stored
        ]
        last = takewhile(lambda trial: trial.state == TrialState.FAIL, reversed(ended))
        failed = {trial.number for trial in last}
        if failed and (len(failed) >= MAX_FAILURES or len(failed) == len(ended)):
            stored |= failed
            self.optuna.set_user_attr(_UNCOUNTED, sorted(stored))
        return frozenset(stored)

    def next(self) -> tuple[int, Parameters] | None:
        """Return an interrupted trial, else a new one; None where the budget is used up.

        A trial keeps its number. No parameters are returned twice.
        """
        if self._interrupted:
            earlier = self._interrupted.pop(0)
            # Parameters that a killed process had not drawn yet are drawn now.
            return earlier.number, self._space.draw(Trial(self.optuna, earlier._trial_id))
        if self.num_counted >= self._search.trials:
            return None
        return self._draw_new()

    def _draw_new(self) -> tuple[int, Parameters] | None:
        """Draw parameters that were not tried before; None where there seem to be none left."""
        sampler = self.optuna.sampler
        try:
            for attempt in range(_NUM_TRIES):
                if attempt == _NUM_TRUSTED:
                    # A sampler that has converged draws the same parameters again and again.
                    seed = self._search.sampler.seed + len(self.optuna.get_trials(deepcopy=False))
                    self.optuna.sampler = RandomSampler(seed)
                trial = self.optuna.ask()
                parameters = self._space.draw(trial)
                tried = (t for t in self.trials if t.number not in self.uncounted)
                same = [t.number for t in tried if t.params == trial.params]
                if same == [trial.number]:
                    return trial.number, parameters
                trial.set_user_attr(_DUPLICATE, same[0])
                self.optuna.tell(trial, state=TrialState.FAIL)
            return None
        finally:
            self.optuna.sampler = sampler

    def record_epoch(self, number: int, metrics: Mapping[str, float]) -> None:
        """Store the metrics of an epoch."""
        trial = self._handle(number)
        epochs = dict(trial.user_attrs.get(_EPOCHS, {}))
        epoch = str(int(metrics["epoch"]))
        if epoch in epochs:
            return  # repeated after a kill
        names = ("val_pid", "val_auroc", "val_accuracy", "val_loss")
        epochs[epoch] = {name: metrics[name] for name in names if name in metrics}
        trial.set_user_attr(_EPOCHS, epochs)
        if len(self.objectives) == 1:
            trial.report(metrics[self.objectives[0]], int(epoch))

    def conclude(self, number: int, outcome: Outcome) -> None:
        """Store the outcome of a trial."""
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
        """Return the finished trial of the best score among those that satisfy the constraint.

        With two objectives, the first decides.
        """
        return next(iter(self.ranked()), None)

    def ranked(self) -> list[FrozenTrial]:
        """Return the finished trials that satisfy the constraint, the best first."""
        finished = [t for t in self.trials if t.state == TrialState.COMPLETE and is_feasible(t)]
        return sorted(finished, key=lambda trial: -trial.values[0])

    def front(self) -> list[FrozenTrial]:
        """Return the Pareto front of the feasible finished trials."""
        finished = self.ranked()
        return [t for t in finished if not any(_dominates(other, t) for other in finished)]

    def parameters(self, trial: FrozenTrial) -> Parameters:
        """Return a trial's parameters, by the keys of a run's configuration."""
        return self._space.decode(trial.params)

    def _set_constraint(self, trial: Trial, outcome: Outcome) -> None:
        constraint = self._search.objective.constraint
        if constraint is not None:
            # Feasible at or below 0. A missing score counts as 0.
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
                study_name=_study_name(search),
                directions=["maximize"] * len(self.objectives),
                load_if_exists=True,
            )
        except (OSError, ImportError, ValueError, SQLAlchemyError, OptunaError) as error:
            raise _unusable(url, error) from error

    def _check_definition(self, data_digest: str | None) -> None:
        """Store the search's definition in the study; refuse a study of another search."""
        search = self._search
        base = flatten(self._space.base.model_dump(mode="json"))
        new = {key: value for key, value in base.items() if not key.startswith(INCIDENTAL_KEYS)}
        new = {key: value for key, value in new.items() if key not in search.space}
        new |= {f"space.{key}": d.model_dump(mode="json") for key, d in search.space.items()}
        new |= flatten(search.objective.model_dump(mode="json"), "objective.")
        new |= {"trial.seeds": search.trial.seeds, "pruning": search.model_dump()["pruning"]}
        if search.trial.each_fold:  # which no search had before there were folds
            new["trial.each_fold"] = True
        new = json.loads(json.dumps(new))
        old = self.optuna.user_attrs.get(_DEFINITION)
        # Without one, the data is not asked about; earlier searches have stored none.
        if old is not None and _DIGEST in old and data_digest is None:
            data_digest = old[_DIGEST]
        if data_digest is not None:
            new[_DIGEST] = data_digest
        if old is not None and _DIGEST not in old and data_digest is not None:
            old = old | {_DIGEST: data_digest}
            self.optuna.set_user_attr(_DEFINITION, old)
        if old is None:
            self.optuna.set_user_attr(_DEFINITION, new)
            return
        changed = [
            f"{key} is {before} there, {new.get(key)} now"
            for key in sorted(old.keys() | new.keys())
            if (before := old.get(key, EARLIER_VALUES.get(key))) != new.get(key)
        ]
        if changed:
            raise UserError(
                f"output_dir = {search.output_dir}: holds a search with other settings"
                f" ({'; '.join(changed[:3])}{'; ...' if len(changed) > 3 else ''});"
                " give another output_dir"
            )


def _study_name(search: SearchConfig) -> str:
    """Return the name of the study of a search's folder, which no other folder's has.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = search.output_dir
    file = folder / _IDENTITY_FILE
    if file.is_file():
        return str(json.loads(file.read_text(encoding="utf-8"))["study"])
    # Earlier searches were named as their folders.
    name = f"{folder.name}-{uuid.uuid4().hex[:8]}" if is_new_search(folder) else folder.name
    write_json(file, {"study": name})
    return name


def is_new_search(folder: Path) -> bool:
    """Return whether no search has begun in a folder."""
    left = (_IDENTITY_FILE, "trials", "summary.json", "study.db", "study.journal")
    return not any((folder / name).exists() for name in left)


def is_feasible(trial: FrozenTrial) -> bool:
    """Return whether a trial satisfies the search's constraint."""
    return all(value <= 0 for value in trial.constraints.values())


def epochs_of(trial: FrozenTrial) -> dict[int, dict[str, float]]:
    """Return the metrics of a trial's epochs so far, by epoch."""
    epochs = trial.user_attrs.get(_EPOCHS, {})
    return {int(epoch): metrics for epoch, metrics in epochs.items()}


def metrics_of(trial: FrozenTrial) -> dict[str, float]:
    """Return the metrics that a trial ended with."""
    metrics: dict[str, float] = trial.user_attrs.get(_METRICS, {})
    return metrics


def spread_of(trial: FrozenTrial) -> dict[str, float]:
    """Return the standard deviations of a trial's metrics over its seeds."""
    spread: dict[str, float] = trial.user_attrs.get(_SPREAD, {})
    return spread


def reason_of(trial: FrozenTrial) -> str:
    """Return why a trial failed or was pruned."""
    return str(trial.user_attrs.get(_REASON, ""))


def time_of(trial: FrozenTrial) -> float | None:
    """Return the seconds that a trial ran since its last start."""
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
