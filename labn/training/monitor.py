"""The comparison of epochs: which one is the best."""

from __future__ import annotations

import math
from collections.abc import Mapping

from labn.config import TrainConfig
from labn.errors import RunFailed


def quality(metrics: Mapping[str, float], settings: TrainConfig) -> tuple[float, float]:
    """Return how good an epoch is: larger is better.

    An epoch that reaches ``min_auroc`` and ``min_accuracy`` is better than one that does not, and
    among those that do not the one that is closest is the best; then ``monitor`` decides.

    Raises:
        RunFailed: a metric that decides was not measured.
    """
    missed = [floor - _required(metrics, name) for name, floor in _floors(settings).items()]
    value = _required(metrics, settings.monitor)
    return -max([0.0, *missed]), -value if settings.monitor == "val_loss" else value


def missed_floors(metrics: Mapping[str, float], settings: TrainConfig) -> str:
    """Return text on the floors that an epoch's metrics do not reach, "" if there are none."""
    return ", ".join(
        f"train.{name.replace('val_', 'min_')} = {floor:g} ({name} {metrics[name]:.3f})"
        for name, floor in _floors(settings).items()
        if metrics[name] < floor
    )


def _floors(settings: TrainConfig) -> dict[str, float]:
    floors = {"val_auroc": settings.min_auroc, "val_accuracy": settings.min_accuracy}
    return {name: floor for name, floor in floors.items() if floor > 0}


def _required(metrics: Mapping[str, float], name: str) -> float:
    value = metrics.get(name, math.nan)
    if not math.isfinite(value):
        raise RunFailed(
            f"{name} is {metrics.get(name, 'not measured')}, but decides which epoch is the best"
            " (train.monitor, train.min_auroc, train.min_accuracy)"
        )
    return value
