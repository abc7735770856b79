"""The keys of a search: types, ranges and defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from labn.config.section import Count, Fraction, Integer, ManyRuns, Number, Section, Whole
from labn.config.workers import Placement, ProcessesConfig, Workers

MetricName = Literal[
    "val_pid", "val_pid_matched", "val_pid_over_centre", "val_auroc", "val_accuracy"
]


def _as_choice(value: Any) -> Any:
    for one in value if isinstance(value, list) else [value]:
        is_plain = one is None or isinstance(one, (bool, int, float, str))
        if not is_plain or (isinstance(one, float) and not math.isfinite(one)):
            raise ValueError("must hold finite numbers, text, true, false, null, or lists of these")
    return value


def _after_the_bases_own(value: Any) -> Any:
    return [{}, value] if isinstance(value, Mapping) and "study" in value else value


class FloatRange(Section):
    """A number between two bounds, inclusive."""

    type: Literal["float"]
    low: Number
    high: Number
    log: bool = False
    """Drawn on a logarithmic scale."""


class IntRange(Section):
    """A whole number between two bounds, inclusive."""

    type: Literal["int"]
    low: Integer
    high: Integer | None = None
    """None: the backbone's number of bottlenecks; for `model.split` only."""
    log: bool = False


class Choices(Section):
    """One of several values, each of which may be a list."""

    type: Literal["categorical"]
    choices: Annotated[list[Annotated[Any, AfterValidator(_as_choice)]], Field(min_length=1)]


Domain = Annotated[FloatRange | IntRange | Choices, Field(discriminator="type")]


class ConstraintConfig(Section):
    """The score that a trial must reach to count, so that no bad classifier wins by its PID."""

    metric: Literal["val_auroc", "val_accuracy"]
    """The score."""
    at_least: Fraction
    """The lowest value that counts."""


class ObjectiveConfig(Section):
    """The scores to maximise: of the validation subset, at the best epoch (`train.monitor`)."""

    maximise: Annotated[tuple[MetricName, ...], Field(min_length=1, max_length=2)] = ("val_pid",)
    """Two of them: a Pareto front of trials."""
    constraint: ConstraintConfig | None = None
    """The score that a trial must reach to count."""
    patch_sizes: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    """A finished trial's `val_pid` is the mean over these; None: `validation.pid_patch_size`."""


class SamplerConfig(Section):
    """The sampler of parameters."""

    name: Literal["tpe", "gp", "cmaes", "qmc", "random"] = "tpe"
    """Optuna's sampler. gp learns from finished trials alone, and needs `pruning=null`."""
    seed: Whole = 0
    """Seed of the draws."""
    startup_trials: Count = 8
    """Trials with random parameters before the model is used; for tpe, gp and cmaes."""


class PruningConfig(Section):
    """ASHA: at epochs grace, grace x reduction, ... the best 1/reduction of the trials continue.

    Each of these rungs doubles the intervals of the PID curves, up to `validation.pid_num_points`.
    """

    grace_epochs: Count = 2
    """The first epoch after which trials may be stopped."""
    reduction: Annotated[Number, Field(gt=1)] = 3.0
    """One trial in so many continues past each such epoch."""


class TrialConfig(ProcessesConfig):
    """The resources and runs of each trial."""

    placement: Placement = "PACK"
    """Placement of a trial's workers, on as few nodes as possible or on as many."""
    max_concurrent: Count | None = None
    """Trials at a time; None: as many as there is capacity for."""
    seeds: Count = 1
    """Runs of each trial, which differ in `train.seed`; their scores are averaged."""
    each_fold: bool = False
    """Whether each trial is also run on each of `data.folds`."""
    log_model: bool = False
    """Whether each trial's network is logged to the tracker in servable form (7 s each)."""

    @property
    def processes(self) -> Workers:
        """The processes of one run."""
        return replace(super().processes, placement=self.placement)


class EarlierSearch(Section):
    """Another search, whose best trials are tried first."""

    study: Path
    """Its folder; it must search the same keys."""
    best: Count = 5
    """How many of its trials."""


class SearchConfig(ManyRuns):
    """The settings of one search. Its files go to ``output_dir``."""

    space: Annotated[dict[str, Domain], Field(min_length=1)]
    """The domains to search, by dotted key."""
    first: Annotated[list[dict[str, Any]] | None, BeforeValidator(_after_the_bases_own)] = None
    """Parameters tried first; those left out are the base's. None stands for the base's own, and
    `{study: FOLDER, best: 5}` for these and the best of another search of the same keys."""
    trials: Count = 24
    """The budget; a higher one resumes a finished search."""
    objective: ObjectiveConfig = ObjectiveConfig()
    sampler: SamplerConfig = SamplerConfig()
    pruning: PruningConfig | None = PruningConfig()
    trial: TrialConfig = TrialConfig()
    storage: str | None = None
    """Storage of the study: ``sqlite:///FILE``, ``journal:FILE``, or the URL of a database.

    None: ``study.journal`` in the output folder.
    """
