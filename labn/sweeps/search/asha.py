"""ASHA over epochs: which trials continue after each rung (Li et al. 2020).

Tune's scheduler decides but does not stop the trial. The trial reads the decision and ends its run
itself, which releases its workers and their placement groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from labn.config.search import PruningConfig
from labn.sweeps.search.unpickled import Unpickled


def list_rungs(settings: PruningConfig, num_epochs: int) -> tuple[int, ...]:
    """Return the epochs after which trials are compared."""
    epochs, rung = [], float(settings.grace_epochs)
    while rung < num_epochs:
        epochs.append(math.ceil(rung))
        rung *= settings.reduction
    return tuple(epochs)


@dataclass(frozen=True)
class _Known:
    """A trial as Tune's ASHA identifies it: by its number in the study."""

    trial_id: str


class AshaByEpoch(Unpickled, FIFOScheduler):
    """Tune's ASHA over the study's trials; ``on_prune`` receives a trial's number and a reason."""

    def __init__(
        self,
        settings: PruningConfig,
        *,
        metric: str,
        num_epochs: int,
        on_prune: Callable[[int, str], None],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._asha: Any = ASHAScheduler(
            time_attr="epoch",
            metric=metric,
            mode="max",
            grace_period=min(settings.grace_epochs, num_epochs),
            max_t=num_epochs,
            reduction_factor=settings.reduction,
            stop_last_trials=False,
        )
        self._name, self._num_epochs, self._on_prune = metric, num_epochs, on_prune

    @property
    def metric(self) -> str:
        """The metric that is compared."""
        return self._name

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Ignore the properties: metric and mode are known."""
        return True

    def remember(
        self, number: int, epochs: Mapping[int, Mapping[str, float]], *, is_over: bool
    ) -> None:
        """Add the epochs of a trial that an earlier process measured."""
        known = _Known(str(number))
        self._asha.on_trial_add(None, known)
        for epoch, metrics in sorted(epochs.items()):
            if self._name in metrics and epoch < self._num_epochs:
                result = {"epoch": epoch, self._name: metrics[self._name]}
                self._asha.on_trial_result(None, known, result)
        if is_over:
            self._asha.on_trial_remove(None, known)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Register a trial."""
        self._asha.on_trial_add(None, _number_of(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Compare a trial after an epoch other than its last, and return CONTINUE."""
        proceed: str = TrialScheduler.CONTINUE
        if not result.get("epoch", math.inf) < self._num_epochs:
            return proceed
        decision = self._asha.on_trial_result(None, _number_of(trial), result)
        if decision == TrialScheduler.STOP:
            score, epoch = result[self._name], int(result["epoch"])
            reason = f"{self._name} {score:.3f} was not among the best after epoch {epoch}"
            self._on_prune(int(trial.config["number"]), reason)
        return proceed


def _number_of(trial: Any) -> _Known:
    return _Known(str(trial.config["number"]))
