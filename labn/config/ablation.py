"""Every key of an ablation study: its type, range and default."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from labn.config.based import absolute_places, apply_overrides
from labn.config.messages import shown
from labn.config.reading import read_yaml
from labn.config.workers import Workers
from labn.errors import UserError, did_you_mean

Count = Annotated[int, Field(ge=1)]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,59}")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class EvaluateConfig(_Section):
    """How every trained run is scored, as by `labn evaluate`."""

    split: Literal["train", "validation", "test"] = "test"
    methods: Annotated[tuple[str, ...], Field(min_length=1)] = ("LABN", "random")
    patch_sizes: tuple[Count, ...] | None = None
    """None: the paper's and validation's."""
    points: Annotated[int, Field(ge=2)] | None = None
    """Of a curve; None: validation.pid_num_points."""
    num_masks: Count = 500
    """Of RISE."""
    max_images: Count | None = None
    """The first positives by name; None: all."""

    def choices(self) -> dict[str, Any]:
        """Give what replaces defaults of an assessment."""
        given = {
            "methods": self.methods,
            "patch_sizes": self.patch_sizes,
            "num_points": self.points,
            "num_masks": self.num_masks,
            "max_images": self.max_images,
        }
        return {key: value for key, value in given.items() if value is not None}


class EachRunConfig(_Section):
    """What each run is given."""

    cpus: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """0.25 puts four runs on one."""
    workers: Count = 1
    """Processes; more than one train together through Ray Train, each with these CPUs and GPUs."""
    retries: Annotated[int, Field(ge=0)] = 3
    """How often a run whose process was killed is started again; it goes on where it was."""

    @property
    def processes(self) -> Workers:
        """The processes of one run."""
        return Workers(num=self.workers, cpus=self.cpus, gpus=self.gpus)


class StudyConfig(_Section):
    """All keys of a study's file. Its runs go to ``output_dir/CONDITION/seed-N``."""

    name: str | None = None
    """None: the last part of output_dir."""
    base: str | dict[str, Any]
    """A run's configuration, whose file is named as seen from this one, or which is given here."""
    fixed: dict[str, Any] = {}
    """Settings that replace the base's in every run, by dotted key."""
    conditions: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """Settings that replace the base's, by dotted key; the first is what others are tested
    against."""
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    """Each condition is trained once with each."""
    evaluate: EvaluateConfig = EvaluateConfig()
    each_run: EachRunConfig = EachRunConfig()
    output_dir: Path

    @field_validator("conditions")
    @classmethod
    def _names_are_folders(cls, conditions: dict[str, Any]) -> dict[str, Any]:
        for name in conditions:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"the name {name!r} must be letters, digits and _ . + - only (at most 60), for"
                    " it names a folder"
                )
        return conditions

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("holds a seed twice; the same training is not another sample")
        return seeds

    @property
    def title(self) -> str:
        """What the study is called."""
        return self.name or self.output_dir.name


def load_study(path: Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a study's YAML file; ``key=value`` replaces its keys, or fixes settings of its runs.

    Paths in the result are absolute, so that they mean the same in every process.

    Raises:
        UserError: names file, key, value, rule and mend, on one line.
    """
    tree = read_yaml(path)
    overridden = apply_overrides(
        tree, overrides, kind="study", own_keys=StudyConfig.model_fields, example="seeds=[0,1]"
    )
    try:
        settings = StudyConfig.model_validate(tree)
    except ValidationError as error:
        raise UserError(_describe(error, path, overridden)) from None
    return settings.model_copy(update=absolute_places(settings.base, settings.output_dir, path))


_SECTIONS: dict[str, type[BaseModel]] = {"evaluate": EvaluateConfig, "each_run": EachRunConfig}


def _describe(error: ValidationError, path: Path, overridden: set[str]) -> str:
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    parts = [str(part) for part in first["loc"]]
    # The members of a union are named by their types.
    parts = parts[:1] if parts[0] == "base" else parts
    key, kind = ".".join(parts), first["type"]
    section = StudyConfig if len(parts) == 1 else _SECTIONS.get(parts[0], StudyConfig)
    if kind == "extra_forbidden":
        known = ", ".join(section.model_fields)
        near = did_you_mean(parts[-1], section.model_fields)
        rule = f"unknown key.{near or f' Known: {known}'}"
    elif kind == "missing":
        rule = f"required key is missing; add it to the file, or give {key}=VALUE"
    elif kind == "value_error":
        rule = first["msg"].removeprefix("Value error, ")
    elif parts[0] == "conditions":
        rule = "must be a mapping from dotted keys to values; {} for the base as it is"
    else:
        rule = first["msg"].replace("Input should be", "must be")
    source = "command line" if key in overridden else str(path)
    given = "" if kind == "missing" else f" = {shown(first['input'])}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{source}: {key}{given}: {rule}{more}"
