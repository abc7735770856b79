"""Checkpoints of others: the authors' release, and ResNets with public names.

Public names are torchvision's, which timm's ResNets and d-li14's Lambda-ResNets use too, and those
of timm's lambda_resnet26t and the like ("stages.0.0.self_attn.qkv.weight").
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from labn.errors import UserError
from labn.model.network import LABN

_PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.")
_STAGED_NAMES = {
    r"conv(\d)_(?:1x1|kxk)\.conv\.": r"conv\1.",
    r"conv(\d)_(?:1x1|kxk)\.bn\.": r"bn\1.",
    r"self_attn\.qkv\.": "conv2.conv_qkv.",
    r"self_attn\.conv_lambda\.": "conv2.lambda_conv.",
    r"self_attn\.": "conv2.",
    r"post_attn\.(?:bn\.)?": "bn2.",
    r"shortcut\.conv\.": "downsample.0.",
    r"shortcut\.bn\.": "downsample.1.",
}
"""Parts of timm's staged names, and of torchvision's (for lambda layers, of this project's)."""

_FIRST_STAGE = 4  # after conv1, bn1, relu and maxpool in the release's anonymous sequence


@dataclass(frozen=True)
class PretrainedReport:
    """Names of the tensors that a model loaded from a checkpoint, and of those left out."""

    matched: tuple[str, ...]
    other_shape: tuple[str, ...]
    not_in_checkpoint: tuple[str, ...]
    not_in_model: tuple[str, ...]
    sections: dict[str, tuple[int, int]]
    """Tensors loaded and in all, of the stem, each stage, the attention branch and ``fc``."""

    @property
    def share_of_backbone(self) -> float:
        """The share of the tensors of the stem and the stages that were loaded."""
        rows = [row for name, row in self.sections.items() if name.startswith("st")]
        return sum(num for num, _ in rows) / sum(total for _, total in rows)

    def __str__(self) -> str:
        sections = ", ".join(f"{name} {a} of {b}" for name, (a, b) in self.sections.items() if b)
        return (
            f"{len(self.matched)} tensors loaded ({sections}), {len(self.other_shape)} of another"
            f" shape, {len(self.not_in_checkpoint)} not in the checkpoint,"
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


def load_pretrained(model: LABN, path: Path, *, at_least: float = 0.0) -> PretrainedReport:
    """Load every tensor of a checkpoint whose name and shape agree with the model's.

    The checkpoint is a state dict (or holds one under ``state_dict`` or ``model``) with this
    project's names, public ones, or the release's.

    Raises:
        UserError: the file is not a state dict, nothing in it fits, or less than the share
            ``at_least`` of the backbone's tensors.
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
    for name in matched:
        if not checkpoint[names[name]].isfinite().all():
            raise UserError(
                f"model.pretrained = {path}: its tensor {names[name]} has values that are not"
                " finite; give another checkpoint"
            )
    used = {names[name] for name in present}
    report = PretrainedReport(
        matched=tuple(matched),
        other_shape=tuple(name for name in present if name not in set(matched)),
        not_in_checkpoint=tuple(name for name in own if name not in set(present)),
        not_in_model=tuple(name for name in checkpoint if name not in used),
        sections=_count_sections(model, set(matched)),
    )
    if report.share_of_backbone < at_least:
        raise UserError(
            f"model.pretrained = {path}: has {report.share_of_backbone:.0%} of the backbone"
            f" ({report}); choose the backbone that it was trained with, or accept less with"
            " model.pretrained_at_least=0"
        )
    model.load_state_dict({name: checkpoint[names[name]] for name in matched}, strict=False)
    return report


def _count_sections(model: LABN, matched: set[str]) -> dict[str, tuple[int, int]]:
    """Return the numbers of matched and of all tensors by section."""
    stages = [f"stage{stage + 1}" for stage, _ in _stage_of_bottlenecks(model)]
    found, total = Counter[str](), Counter[str]()
    for name in model.state_dict():
        first, second, *_ = name.split(".")
        section = stages[int(second)] if first == "bottlenecks" else first
        total[section] += 1
        found[section] += name in matched
    return {section: (found[section], total[section]) for section in total}


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
    renamed = {}
    for name, tensor in loaded.items():
        public = _public_name(str(name))
        # timm's position kernels have the axes (k, 1, r, r, 1), ours (k, 1, 1, r, r).
        is_last = tensor.dim() == 5 and tensor.shape[-1] == 1 != tensor.shape[2]
        renamed[public] = tensor.permute(0, 1, 4, 2, 3) if is_last else tensor
    return renamed


def _public_name(name: str) -> str:
    """Return a tensor's name without wrappers' prefixes, timm's staged names as torchvision's."""
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    if staged := re.match(r"stages\.(\d+)\.", name):
        name = f"layer{int(staged[1]) + 1}.{name[staged.end() :]}"
        for pattern, public in _STAGED_NAMES.items():
            name = re.sub(pattern, public, name)
    return name.replace("head.fc.", "fc.")


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
