"""Dry runs: what a run would do."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from labn.config import Config, TrainConfig
from labn.data.dataset import Dataset
from labn.model.network import LABN
from labn.runs.build import (
    build_initial_network,
    load_dataset,
    require_monitored,
    training_batches,
)
from labn.runs.folder import RunFolder
from labn.runs.reporter import Reporter
from labn.training.device import choose_device
from labn.training.optim import build_optimizer, build_schedule
from labn.training.precision import resolve_precision


@dataclass(frozen=True)
class Plan:
    """A dry run: resolved settings, the network's size, the data, the schedule."""

    config: dict[str, Any]
    parameters: dict[str, int]
    attention_size: tuple[int, int]
    device: str
    precision: str
    data: dict[str, Any]
    schedule: dict[str, Any]


def plan_run(config: Config, reporter: Reporter) -> Plan:
    """Resolve a configuration against its data and network; nothing is trained.

    The data is read into the cache, as training would, so that its defects are found.

    Raises:
        UserError: training would refuse the settings or the data.
    """
    device = choose_device(config.train)
    known = RunFolder(config.output_dir).known_subsets(config.data)
    dataset = load_dataset(config.data, config.loss, reporter, known)
    require_monitored(dataset, config.train)
    model = build_initial_network(config.model, dataset, reporter, seed=config.train.seed)
    batches = training_batches(dataset, config.data, config.train, torch.device("cpu"))
    bias_image = dataset.statistics.bias_image
    return Plan(
        config=config.model_dump(mode="json"),
        parameters=_count_parameters(model),
        attention_size=_attention_size(model, bias_image[None]),
        device=str(device),
        precision=resolve_precision(config.train, device),
        data=_describe_data(dataset),
        schedule=_describe_schedule(config.train, batches.steps_per_epoch, model),
    )


def _count_parameters(model: LABN) -> dict[str, int]:
    """Count the parameters of each branch: LFE, LAB, LPB."""
    lfe = _count(model.stem) + sum(_count(b) for b in model.bottlenecks[: model.split])
    lab = _count(model.attention_branch)
    total = _count(model)
    return {"total": total, "lfe": lfe, "lab": lab, "lpb": total - lfe - lab}


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _attention_size(model: LABN, image: Float[Tensor, "1 c h w"]) -> tuple[int, int]:
    with torch.inference_mode():
        height, width = model.eval()(image).attention.shape[2:]
    return height, width


def _describe_data(dataset: Dataset) -> dict[str, Any]:
    subsets = {}
    for name, subset in dataset.subsets.items():
        counts = Counter(subset.labels.tolist())
        subsets[name] = {kind: counts[label] for label, kind in enumerate(dataset.class_names)}
    statistics = dataset.statistics
    return {
        "subsets": subsets,
        "mean": [round(value, 4) for value in statistics.mean.tolist()],
        "std": [round(value, 4) for value in statistics.std.tolist()],
        "digest": dataset.digest,
        "notes": list(dataset.notes),
    }


def _describe_schedule(train: TrainConfig, steps_per_epoch: int, model: LABN) -> dict[str, Any]:
    """Step through the schedule; return the learning rates at the start of each epoch."""
    optimizer = build_optimizer(model, train)
    schedule = build_schedule(optimizer, train, steps_per_epoch)
    rates = []
    for _ in range(train.epochs):
        rates.append([group["lr"] for group in optimizer.param_groups])
        for _ in range(steps_per_epoch):
            optimizer.step()
            schedule.step()
    return {
        "steps_per_epoch": steps_per_epoch,
        "num_steps": steps_per_epoch * train.epochs,
        "learning_rate_head_by_epoch": [head for head, _ in rates],
        "learning_rate_backbone_by_epoch": [backbone for _, backbone in rates],
    }
