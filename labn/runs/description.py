"""What a run is, for people: its first lines, and its entry in the tracker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from labn.config import Config, flatten
from labn.data.dataset import Dataset
from labn.model.kernels import compiled, compiled_lambda
from labn.runs.folder import RunFolder
from labn.storage.remote import is_remote, without_secrets
from labn.tracking import redact
from labn.training.precision import resolve_precision

_PLACES = ("output_dir", "data.cache_dir", "data.split_file", "train.storage", "tracking.")
"""Settings that say where files are: they differ between runs that are otherwise alike."""
_SCORES = ("val_auroc", "val_accuracy", "val_pid", "val_pid_matched", "val_pid_random", "val_loss")


def arithmetic(config: Config, device: torch.device) -> dict[str, str]:
    """Return what the last digits of results depend on, besides the settings."""
    own = {"kernels": compiled.form(device), "precision": resolve_precision(config.train, device)}
    if device.type != "cpu":
        return own
    # Sums in another order round differently; the width of vectors decides the form of a layer.
    return own | {"threads": str(torch.get_num_threads()), "vectors": compiled_lambda.vectors()}


def parameters_and_places(config: Config) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the settings to compare runs by, and as tags those of places."""
    settings = flatten(config.model_dump(mode="json"))
    places = {key: value for key, value in settings.items() if key.startswith(_PLACES)}
    compared = {key: value for key, value in settings.items() if key not in places}
    return compared, {key: redact(str(value)) for key, value in places.items() if value is not None}


def data_source(config: Config) -> str:
    """Return where the images are, without passwords."""
    root = config.data.root or "synthetic"
    return without_secrets(str(root)) if is_remote(root) else str(root)


def first_lines(
    config: Config, folder: RunFolder, dataset: Dataset, model: nn.Module, device: torch.device
) -> list[str]:
    """Return what a run says before it trains."""
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    computed = ", ".join(f"{name} {value}" for name, value in arithmetic(config, device).items())
    tracker = config.tracking.uri
    page = "" if tracker == "none" else f"; its page: labn ui {folder.path}"
    return [
        f"network: {config.model.backbone}, {num_parameters:,} parameters, on {device}, {computed}",
        f"data: {config.data.name}, {_sizes(dataset)}; {_classes(dataset)}",
        f"output: {folder.path}{page}",
    ]


def as_markdown(
    config: Config, folder: RunFolder, dataset: Dataset, metrics: Mapping[str, float]
) -> str:
    """Return the description of a run's entry: its scores, what it is, where its pictures are.

    The tracker's page shows the first few lines of it.
    """
    named = {"AUROC": "val_auroc", "accuracy": "val_accuracy", "PID": "val_pid"}
    named["random maps' PID"] = "val_pid_random"
    best = [f"{name} {metrics[key]:.3f}" for name, key in named.items() if key in metrics]
    rows = [f"| {name} | {metrics[name]:.4f} |" for name in _SCORES if name in metrics]
    return "\n".join(
        [
            f"**{', '.join(best)}** on validation, at the best epoch.",
            "",
            f"A {config.model.backbone} (B = {config.model.split}) on {config.data.name}:"
            f" {_sizes(dataset)}; {_classes(dataset)}.",
            "",
            "| best epoch | |",
            "| :-- | --: |",
            *rows,
            "",
            "Pictures: `history.png`, and `evaluation/validation` among the artifacts. Files:"
            f" `{folder.path}`.",
        ]
    )


def _sizes(dataset: Dataset) -> str:
    return ", ".join(
        f"{len(images)} {name} images" if len(images) else f"no {name} subset"
        for name, images in dataset.subsets.items()
    )


def _classes(dataset: Dataset) -> str:
    negative, *positive = dataset.class_names
    return f"{negative} is the negative class, {', '.join(positive)} positive"
