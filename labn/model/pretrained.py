"""Checkpoints of others: the authors' release, and ResNets with torchvision's names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from labn.errors import UserError
from labn.model.network import LABN

_FIRST_STAGE = 4  # after conv1, bn1, relu and maxpool in the release's anonymous sequence


@dataclass(frozen=True)
class PretrainedReport:
    """Names of the tensors that a model loaded from a checkpoint, and of those left out."""

    matched: tuple[str, ...]
    other_shape: tuple[str, ...]
    not_in_checkpoint: tuple[str, ...]
    not_in_model: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{len(self.matched)} tensors loaded, {len(self.other_shape)} of another shape,"
            f" {len(self.not_in_checkpoint)} not in the checkpoint,"
            f" {len(self.not_in_model)} of the checkpoint unused"
        )


def load_release_state(model: LABN, state_dict: Mapping[str, Tensor]) -> None:
    """Load all tensors of a checkpoint of the authors' release into a model.

    Raises:
        UserError: the checkpoint was made with another backbone, split or number of classes.
    """
    names = dict(_release_names(model))
    own = model.state_dict()
    missing = [name for name in names.values() if name not in state_dict]
    unexpected = sorted(set(state_dict) - set(names.values()))
    if missing or unexpected:
        raise UserError(
            f"the released checkpoint does not fit a model with split={model.split}:"
            f" {len(missing)} tensors are missing (first: {_first(missing)}) and"
            f" {len(unexpected)} are unexpected (first: {_first(unexpected)});"
            " build the model with the backbone and split that the checkpoint was trained with"
        )
    for name, release_name in names.items():
        if own[name].shape != state_dict[release_name].shape:
            raise UserError(
                f"the released checkpoint's {release_name} has shape"
                f" {tuple(state_dict[release_name].shape)}, but the model's {name} has"
                f" {tuple(own[name].shape)}; build the model with the same num_classes,"
                " in_channels and branch_width"
            )
    model.load_state_dict({name: state_dict[release] for name, release in names.items()})


def load_pretrained(model: LABN, path: Path) -> PretrainedReport:
    """Load every tensor of a checkpoint whose name and shape agree with the model's.

    The checkpoint is a state dict (or holds one under ``state_dict`` or ``model``) with this
    project's names, torchvision's ResNet names, or the release's.

    Raises:
        UserError: the file is not a state dict, or nothing in it fits.
    """
    checkpoint = _read_state_dict(path)
    namings = [
        {name: name for name in model.state_dict()},
        dict(_torchvision_names(model)),
        dict(_release_names(model)) if _is_stage_edge(model) else {},
    ]
    names = max(namings, key=lambda naming: sum(other in checkpoint for other in naming.values()))
    own = model.state_dict()
    present = [name for name in own if names.get(name) in checkpoint]
    matched = [name for name in present if own[name].shape == checkpoint[names[name]].shape]
    if not matched:
        raise UserError(
            f"model.pretrained = {path}: none of its {len(checkpoint)} tensors fits the model by"
            " name and shape; use a checkpoint of this project, of a torchvision ResNet, or of a"
            " released LABN cut at the same split"
        )
    model.load_state_dict({name: checkpoint[names[name]] for name in matched}, strict=False)
    used = {names[name] for name in present}
    return PretrainedReport(
        matched=tuple(matched),
        other_shape=tuple(name for name in present if name not in set(matched)),
        not_in_checkpoint=tuple(name for name in own if name not in set(present)),
        not_in_model=tuple(name for name in checkpoint if name not in used),
    )


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"model.pretrained = {path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # torch raises half a dozen types for a bad file
        raise UserError(
            f"model.pretrained = {path}: damaged, or more than tensors and plain values;"
            " save the state_dict alone with torch.save"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise UserError(
            f"model.pretrained = {path}: holds no state dict of tensors; save the state_dict alone"
            " with torch.save"
        )
    return {str(name).removeprefix("module."): tensor for name, tensor in loaded.items()}


def _first(names: list[str]) -> str:
    return names[0] if names else "none"


def _stage_of_bottlenecks(model: LABN) -> list[tuple[int, int]]:
    """Return (stage, position in the stage) of every bottleneck in order."""
    return [(s, i) for s, depth in enumerate(model.plan.stage_depths) for i in range(depth)]


def _is_stage_edge(model: LABN) -> bool:
    depths = model.plan.stage_depths
    return model.split in [sum(depths[:stage]) for stage in range(len(depths) + 1)]


def _renamed(model: LABN, prefixes: dict[str, str]) -> Iterator[tuple[str, str]]:
    for name in model.state_dict():
        for prefix, other in prefixes.items():
            if name.startswith(prefix):
                yield name, other + name.removeprefix(prefix)


def _torchvision_names(model: LABN) -> Iterator[tuple[str, str]]:
    prefixes = {"stem.": "", "fc.": "fc."}
    for index, (stage, position) in enumerate(_stage_of_bottlenecks(model)):
        prefixes[f"bottlenecks.{index}."] = f"layer{stage + 1}.{position}."
    return _renamed(model, prefixes)


def _release_names(model: LABN) -> Iterator[tuple[str, str]]:
    """Return pairs of the model's and the release's names; the release cuts at stage edges only.

    Raises:
        UserError: the model's split lies within a stage.
    """
    depths = model.plan.stage_depths
    if not _is_stage_edge(model):
        raise UserError(
            f"split={model.split} lies within a stage, where the authors' release cannot cut;"
            f" a released checkpoint needs split in"
            f" {[sum(depths[:stage]) for stage in range(len(depths) + 1)]}"
        )
    stages = _stage_of_bottlenecks(model)
    cut = len(depths) if model.split == len(stages) else stages[model.split][0]
    prefixes = {
        "stem.conv1.": "feature_extractor.0.",
        "stem.bn1.": "feature_extractor.1.",
        "attention_branch.": "attention_branch.",
        # Pooling and flattening take two places of the sequence before the linear layer.
        "fc.": f"perception_branch.{len(depths) - cut + 2}.",
    }
    for index, (stage, position) in enumerate(stages):
        # The one-bottleneck network's only stage is the bottleneck itself.
        within = "" if len(stages) == 1 else f"{position}."
        section = (
            f"feature_extractor.{_FIRST_STAGE + stage}."
            if stage < cut
            else f"perception_branch.{stage - cut}."
        )
        prefixes[f"bottlenecks.{index}."] = section + within
    return _renamed(model, prefixes)
