"""The keys of an ablation study: types, ranges and defaults."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from labn.config.section import Count, Fraction, Integer, ManyRuns, Section, Whole
from labn.config.workers import ProcessesConfig

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,59}")


class EvaluateConfig(Section):
    """The evaluation of every trained run, as by `labn evaluate`."""

    split: Literal["train", "validation", "test"] = "test"
    """The subset that is scored."""
    methods: Annotated[tuple[str, ...], Field(min_length=1)] = ("LABN", "random")
    """The explanation methods, as `labn evaluate --methods`."""
    metrics: tuple[str, ...] = ()
    """The metrics besides PID, as `labn evaluate --metrics`."""
    patch_sizes: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    """None: those of the paper, and validation's."""
    points: Annotated[Integer, Field(ge=2)] | None = None
    """Points of a curve; None: validation.pid_num_points."""
    protocol: Literal["exact", "released"] = "exact"
    """Of PID; `released`: as the authors' code computes published numbers."""
    num_masks: Count = 500
    """Masks of RISE."""
    max_images: Count | None = None
    """Score only the first positives by name; None: all."""

    def choices(self) -> dict[str, Any]:
        """Return the values that replace defaults of the evaluation options."""
        given = {
            "methods": self.methods,
            "metrics": self.metrics,
            "patch_sizes": self.patch_sizes,
            "num_points": self.points,
            "protocol": self.protocol,
            "num_masks": self.num_masks,
            "max_images": self.max_images,
        }
        return {key: value for key, value in given.items() if value is not None}


class EachRunConfig(ProcessesConfig):
    """The resources of each run."""

    retries: Whole = 3
    """How often a run whose process was killed is restarted; it resumes where it was."""


class StudyConfig(ManyRuns):
    """The settings of one study. Its runs go to ``output_dir/CONDITION/seed-N[-fold-N]``."""

    name: str | None = None
    """None: the name of output_dir."""
    conditions: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """Settings that replace the base's, by dotted key; the others are tested against
    the first."""
    seeds: Annotated[list[Whole], Field(min_length=1)]
    """Each condition is trained once with each seed."""
    each_fold: bool = False
    """Whether each condition is trained on each of `data.folds`, too; scores of maps on the
    validation subset are then over the images of all folds."""
    evaluate: EvaluateConfig = EvaluateConfig()
    each_run: EachRunConfig = EachRunConfig()
    register_min_auroc: Fraction = 0.6
    """The best network is registered if its validation AUROC is at least this; 0.5 is chance."""

    @field_validator("conditions")
    @classmethod
    def _names_are_folders(cls, conditions: dict[str, Any]) -> dict[str, Any]:
        for name in conditions:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"the name {name!r} must be letters, digits and _ . + - only (at most 60),"
                    " since it names a folder"
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
        """The name of the study."""
        return self.name or self.output_dir.name
