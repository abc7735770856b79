"""Evaluation options: methods, measures and the number of images."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from labn.config import Config, ModelConfig, flatten
from labn.data.readers.reader import SubsetName
from labn.errors import UserError
from labn.explain.registry import (
    ALL,
    LAMBDA_ATTENTION,
    LAMBDA_ROLLOUT,
    METHODS,
    USUAL,
    resolve_names,
)
from labn.metrics.failures import ErrorThresholds
from labn.metrics.faithfulness import Protocol
from labn.metrics.map_metrics import resolve_metrics
from labn.model.architectures import PLANS
from labn.runs.evaluation.score_image import Baseline

_PREFIXES = {"train": "train", "validation": "val", "test": "test"}
NUM_MASKS = 500
_SCORED_BY = ("loss.", "model.", "train.precision", "validation.pid_")
_OF_SUBSETS = (
    "data.validation_fraction", "data.test_fraction", "data.split_seed", "data.group_by",
    "data.group_gap_s", "data.folds", "data.fold",
)  # fmt: skip
_LONGEST_PLACE = 120  # of a folder's name, which may have 255 bytes


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """The methods whose maps are scored, and how, on the first ``max_images`` positives by name.

    Figures and ``<prefix>_pid`` are at ``headline_patch_size``. With a ``tolerance``, curves have
    as many points as this accuracy of their areas requires, instead of ``num_points``. The
    ``protocol`` is as in ``patch_insertion_deletion``; with ``released`` the default baseline is
    ``black``. ``thresholds`` define the kinds of failure. ``usual_points`` are those of the run's
    validation; ``changes`` name how the run itself was changed for this evaluation.

    Raises:
        UserError: an option is invalid.
    """

    methods: tuple[str, ...] = USUAL
    patch_sizes: tuple[int, ...]
    num_points: int
    baseline: Baseline = "bias"
    protocol: Protocol = "exact"
    num_masks: int = NUM_MASKS
    max_images: int | None = None
    metrics: tuple[str, ...] = ()
    tolerance: float | None = None
    thresholds: ErrorThresholds = field(default_factory=ErrorThresholds)
    seed: int
    image_size: int
    preferred_patch_size: int
    usual_points: int
    changes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "methods", resolve_names(self.methods))
        object.__setattr__(self, "metrics", resolve_metrics(self.metrics))
        sizes = tuple(sorted(set(self.patch_sizes)))
        object.__setattr__(self, "patch_sizes", sizes)
        if not sizes or not 1 <= sizes[0] <= sizes[-1] <= self.image_size:
            raise UserError(
                f"--patch-sizes {','.join(map(str, self.patch_sizes))}: must be numbers from 1 to"
                f" data.image_size ({self.image_size}), such as --patch-sizes 2,4,8,16"
            )
        minima = {"points": (self.num_points, 2), "num-masks": (self.num_masks, 1)}
        minima["max-images"] = (1 if self.max_images is None else self.max_images, 1)
        for name, (value, least) in minima.items():
            if value < least:
                raise UserError(f"--{name} {value}: must be at least {least}")
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise UserError(
                f"--tolerance {self.tolerance:g}: must be between 0 and 1, such as 0.005"
            )
        if self.tolerance is not None and self.protocol == "released":
            raise UserError("--tolerance: the protocol `released` has points of its own; omit it")

    @classmethod
    def of(cls, config: Config, choices: Mapping[str, Any]) -> EvaluationOptions:
        """Return these choices for a run, with the settings of its validation as defaults.

        The default patch sizes are the paper's and validation's, up to the image size.
        """
        validation, image_size = config.validation, config.data.image_size
        sizes = sorted({2, 4, 8, 16, validation.pid_patch_size})
        defaults: dict[str, Any] = {
            "patch_sizes": tuple(size for size in sizes if size <= image_size),
            "num_points": validation.pid_num_points,
            "methods": tuple(name for name in USUAL if _is_available(name, config.model)),
            "seed": config.train.seed,
            "image_size": image_size,
            "preferred_patch_size": validation.pid_patch_size,
            "usual_points": validation.pid_num_points,
            "baseline": "black" if choices.get("protocol") == "released" else "bias",
        }
        for option in ("tolerance", "protocol"):
            if "num_points" in choices and choices.get(option, "exact") not in (None, "exact"):
                raise UserError(
                    f"--points {choices['num_points']}: --{option} {choices[option]} has points of"
                    " its own; leave one out"
                )
        if ALL in choices.get("methods", ()):
            choices = without_absent_methods(choices, config.model)
        options = cls(**(defaults | dict(choices)))
        for name in options.methods:
            if not _is_available(name, config.model):
                raise UserError(
                    f"--methods {name}: the network has none (model.backbone ="
                    f" {config.model.backbone}, model.branch = {config.model.branch}); leave it out"
                )
        return options

    @property
    def headline_patch_size(self) -> int:
        """The patch size of validation's PID if that is scored, else the largest."""
        preferred = self.preferred_patch_size
        return preferred if preferred in self.patch_sizes else self.patch_sizes[-1]

    @property
    def terms(self) -> tuple[str, ...]:
        """Words on how the scores deviate from those of a run's plain evaluation.

        Methods and patch sizes select scores, each of which has a name of its own.
        """
        is_exact = self.protocol == "exact"
        has_points = is_exact and self.tolerance is None
        found = {
            f"first{self.max_images}": self.max_images is not None,
            self.protocol: not is_exact,
            self.baseline: self.baseline != ("bias" if is_exact else "black"),
            f"points{self.num_points}": has_points and self.num_points != self.usual_points,
            f"tolerance{self.tolerance}": self.tolerance is not None,
            f"masks{self.num_masks}": self.num_masks != NUM_MASKS,
        }
        return (*(word for word, applies in found.items() if applies), *self.changes)

    def place(self, subset: SubsetName) -> str:
        """Return the name of an evaluation's folder: the subset, and the terms if they deviate."""
        name = "-".join((subset, *self.terms))
        if len(name) <= _LONGEST_PLACE:
            return name
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        return f"{name[: _LONGEST_PLACE - 9]}-{digest}"


def prefix_of(place: str) -> str:
    """Return the prefix of an evaluation's metrics, by the name of its folder."""
    subset, *terms = re.split(r"\W+", place)
    return "_".join((_PREFIXES[subset], *terms))


def changes_of(recorded: Config, config: Config) -> tuple[str, ...]:
    """Return words on the settings by which scores differ from those of the run as recorded."""
    before, now = (flatten(one.model_dump(mode="json")) for one in (recorded, config))
    words = [
        f"{key.rpartition('.')[2]}{re.sub(r'[^A-Za-z0-9_.-]+', '_', str(value))}"
        for key, value in now.items()
        if value != before.get(key)
        and key.startswith(_SCORED_BY)
        and not key.startswith("model.pretrained")  # what it started from is in its weights
    ]
    adds = config.data.new_images == "assign" != recorded.data.new_images
    data = {"changed": config.data.allow_changed, "new_images": adds}
    return (*words, *(word for word, applies in data.items() if applies))


def check_subsets_kept(recorded: Config, config: Config) -> None:
    """Refuse settings of the subsets that are not the run's, which has images of its own.

    Raises:
        UserError: one was changed.
    """
    before, now = (flatten(one.model_dump(mode="json")) for one in (recorded, config))
    for key in _OF_SUBSETS:
        if now[key] != before[key]:
            raise UserError(
                f"{key} = {now[key]}: a run is scored on its own subsets (its data.csv), of"
                f" {key} = {before[key]}; leave it out"
            )


def choices_of_validation(config: Config) -> dict[str, Any]:
    """Return options that score as validation does, with random maps as a control."""
    own = ("LABN",) if config.model.branch == "attention" else ()
    controls = ("random", "centre") if config.validation.pid_centre else ("random",)
    return {"methods": (*own, *controls), "patch_sizes": (config.validation.pid_patch_size,)}


def without_absent_methods(choices: Mapping[str, Any], model: ModelConfig) -> dict[str, Any]:
    """Return choices without the methods that this network has not, for a sweep of several.

    Raises:
        UserError: a method is unknown.
    """
    if "methods" not in choices:
        return dict(choices)
    names = resolve_names(choices["methods"])
    return {**choices, "methods": tuple(name for name in names if _is_available(name, model))}


def _is_available(name: str, model: ModelConfig) -> bool:
    known = LAMBDA_ATTENTION if name.startswith(LAMBDA_ATTENTION) else name
    return known not in METHODS or known in available_methods(model)


def available_methods(model: ModelConfig) -> tuple[str, ...]:
    """Return the names of the methods that explain this network."""
    absent = set() if model.branch == "attention" else {"LABN"}
    if PLANS[model.backbone].spatial != "lambda":
        absent |= {LAMBDA_ATTENTION, LAMBDA_ROLLOUT}
    return tuple(name for name in METHODS if name not in absent)
