"""The optimizer, its schedule and averaged weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from labn.config import TrainConfig

_HEAD_PREFIXES = ("attention_branch.", "fc.")
_WARMUP_START = 0.01
"""Share of the learning rate at the first step of the warm-up."""


def build_optimizer(model: nn.Module, settings: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW with one learning rate for the attention branch and the linear layer.

    The rest has the other one. Source: Iida 2022, Table 1.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    head = [p for name, p in trained if name.startswith(_HEAD_PREFIXES)]
    rest = [p for name, p in trained if not name.startswith(_HEAD_PREFIXES)]
    return torch.optim.AdamW(
        [
            {"params": head, "lr": settings.learning_rate_head},
            {"params": rest, "lr": settings.learning_rate_backbone},
        ],
        weight_decay=settings.weight_decay,
        # One kernel for many weights; on a CPU it would change the last digits for no gain.
        fused=trained[0][1].is_cuda,
    )


def build_schedule(
    optimizer: torch.optim.Optimizer, settings: TrainConfig, steps_per_epoch: int
) -> LRScheduler:
    """Return linear warm-up, then cosine decay to zero, counted in steps (Iida 2022, 5.1)."""
    num_steps = settings.epochs * steps_per_epoch
    num_warmup = min(round(settings.warmup_epochs * steps_per_epoch), num_steps - 1)
    cosine = CosineAnnealingLR(optimizer, T_max=max(1, num_steps - num_warmup))
    if num_warmup == 0:
        return cosine
    warmup = LinearLR(optimizer, start_factor=_WARMUP_START, total_iters=num_warmup)
    return SequentialLR(optimizer, [warmup, cosine], milestones=[num_warmup])


def build_average(model: nn.Module, settings: TrainConfig) -> AveragedModel | None:
    """Return the exponential moving average of weights and statistics, if configured."""
    if settings.ema_decay is None:
        return None
    average = get_ema_multi_avg_fn(settings.ema_decay)  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)


def update_average(average: AveragedModel, network: nn.Module) -> None:
    """Average in a network's weights and statistics, as ``average.update_parameters`` does.

    That copies its count of updates to the weights' device, and so waits for a GPU; the moving
    average does not use the count.
    """
    if average.n_averaged == 0:
        average.update_parameters(network)
        return
    update: Any = average.multi_avg_fn
    tensors = zip(
        (*average.module.parameters(), *average.module.buffers()),
        (*network.parameters(), *network.buffers()),
        strict=True,
    )
    pairs = [(averaged.detach(), current.detach()) for averaged, current in tensors]
    for is_float in (True, False):
        chosen = [pair for pair in pairs if pair[0].is_floating_point() is is_float]
        if chosen:
            update(*map(list, zip(*chosen, strict=True)), None)
    average.n_averaged += 1
