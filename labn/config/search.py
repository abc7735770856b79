"""Every key of a search: its type, range and default."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from labn.config.based import absolute_places, apply_overrides
from labn.config.messages import shown
from labn.config.reading import read_yaml
from labn.config.workers import Placement, Workers
from labn.errors import UserError, did_you_mean

Scalar = bool | int | float | str | None
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
MetricName = Literal["val_pid", "val_auroc", "val_accuracy"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class FloatRange(_Section):
    """A number between two others, which are included."""

    type: Literal["float"]
    low: float
    high: float
    log: bool = False
    """Drawn on a logarithmic scale."""


class IntRange(_Section):
    """A whole number between two others, which are included."""

    type: Literal["int"]
    low: int
    high: int | None = None
    """None: as many as the backbone has bottlenecks; for `model.split` only."""
    log: bool = False


class Choices(_Section):
    """One of several values; a list is one value too."""

    type: Literal["categorical"]
    choices: Annotated[list[Scalar | list[Scalar]], Field(min_length=1)]


Domain = Annotated[FloatRange | IntRange | Choices, Field(discriminator="type")]


class ConstraintConfig(_Section):
    """What a trial must reach to count, so that PID is not bought with a bad classifier."""

    metric: Literal["val_auroc", "val_accuracy"]
    at_least: Annotated[float, Field(ge=0, le=1)]


class ObjectiveConfig(_Section):
    """What is maximised: over the validation part, by the epoch of the lowest loss."""

    maximise: Annotated[tuple[MetricName, ...], Field(min_length=1, max_length=2)] = ("val_pid",)
    """Two of them: a front of trials, of which none is better in both."""
    constraint: ConstraintConfig | None = None
    patch_sizes: tuple[Count, ...] | None = None
    """Of the PID whose mean a finished trial's `val_pid` is; None: `validation.pid_patch_size`."""


class SamplerConfig(_Section):
    """How points are drawn."""

    name: Literal["tpe", "gp", "cmaes", "qmc", "random"] = "tpe"
    seed: Annotated[int, Field(ge=0)] = 0
    startup_trials: Count = 8
    """Points drawn at random before a model of them is believed; for tpe, gp and cmaes."""


class PruningConfig(_Section):
    """ASHA: at epochs grace, grace x reduction, ... the best 1/reduction of the trials go on.

    Each of these rungs doubles the intervals of the PID curves, up to `validation.pid_num_points`.
    """

    grace_epochs: Count = 2
    reduction: Annotated[float, Field(gt=1)] = 3.0


class TrialConfig(_Section):
    """What each trial is given."""

    cpus: Positive = 1.0
    """CPUs of each process."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of each process; 0.25 puts four on one."""
    workers: Count = 1
    """Processes; more than one train together through Ray Train."""
    placement: Placement = "PACK"
    """Of a trial's workers: on as few nodes as they fit on, or on as many as there are."""
    max_concurrent: Count | None = None
    """Trials at a time; None: as many as there is room for."""
    seeds: Count = 1
    """Runs of each trial, which differ in `train.seed`; the mean of their scores counts."""
    log_model: bool = False
    """Whether each trial's network goes to the tracker in servable form (7 s each)."""

    @property
    def processes(self) -> Workers:
        """The processes of one run."""
        return Workers(num=self.workers, cpus=self.cpus, gpus=self.gpus, placement=self.placement)


class SearchConfig(_Section):
    """All settings of one search. Its files go to ``output_dir``."""

    base: str | dict[str, Any]
    """A run's configuration, whose file is named as seen from this one, or which is given here."""
    fixed: dict[str, Any] = {}
    """Settings that replace the base's, by dotted key."""
    space: Annotated[dict[str, Domain], Field(min_length=1)]
    """What is searched, by dotted key."""
    first: list[dict[str, Any]] | None = None
    """Points tried first; what they leave out is the base's. None: the base's own."""
    trials: Count = 24
    objective: ObjectiveConfig = ObjectiveConfig()
    sampler: SamplerConfig = SamplerConfig()
    pruning: PruningConfig | None = PruningConfig()
    trial: TrialConfig = TrialConfig()
    storage: str | None = None
    """Of the study: `sqlite:///FILE`, `journal:FILE`, or a database's URL.

    None: `study.db`, or on a cluster's node `study.journal`.
    """
    output_dir: Path


def load_search(path: Path, overrides: Sequence[str] = ()) -> SearchConfig:
    """Read a search's YAML file; ``key=value`` replaces its settings, or fixes the runs'.

    Paths in the result are absolute, so that they mean the same in every process.

    Raises:
        UserError: names file, key, value, rule and mend, on one line.
    """
    tree = read_yaml(path)
    overridden = apply_overrides(
        tree, overrides, kind="search", own_keys=SearchConfig.model_fields, example="trials=8"
    )
    try:
        config = SearchConfig.model_validate(tree)
    except ValidationError as error:
        raise UserError(_describe(error, path, overridden)) from None
    return config.model_copy(update=absolute_places(config.base, config.output_dir, path))


_RULES = {"extra_forbidden": "unknown key.", "missing": "required key is missing"}


def _describe(error: ValidationError, path: Path, overridden: set[str]) -> str:
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    # The kind of a domain stands between its key and what is wrong in it.
    parts = [str(part) for part in first["loc"] if part not in ("float", "int", "categorical")]
    key = ".".join(parts)
    rule = _RULES.get(first["type"], first["msg"].replace("Input should be", "must be"))
    if first["type"] == "extra_forbidden":
        rule += did_you_mean(parts[-1], _siblings(parts))
    source = "command line" if key in overridden else str(path)
    given = "" if first["type"] == "missing" else f" = {shown(first['input'])}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{source}: {key}{given}: {rule}{more}"


def _siblings(parts: Sequence[str]) -> list[str]:
    if parts[0] == "space":
        return ["type", "low", "high", "log", "choices"]
    section: type[BaseModel] = SearchConfig
    for part in parts[:-1]:
        default = section.model_fields[part].default if part in section.model_fields else None
        section = type(default) if isinstance(default, BaseModel) else section
    return list(section.model_fields)
