"""One training step: forward, loss, backward, the optimizer's step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from labn.config import TrainConfig
from labn.training.losses import LossSums, Objective
from labn.training.optim import update_average
from labn.training.precision import autocast


class MicroBatch(NamedTuple):
    """Images that pass through the network together; their losses are multiplied by ``share``."""

    images: Tensor
    labels: Tensor
    share: float = 1.0


class StepResult(NamedTuple):
    """The loss (eq. 8), its sums and the gradient's norm of one step, still on the device."""

    loss: Tensor
    sums: LossSums
    gradient_norm: Tensor


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """The update of a network's weights by one batch.

    ``gradient_scale`` multiplies the loss before the backward pass, for a network that divides
    the gradients of several processes by their number.
    """

    network: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    average: AveragedModel | None
    settings: TrainConfig
    gradient_scale: float = 1.0

    def __call__(
        self, micro_batches: Iterable[MicroBatch], weight: Tensor, num_images: Tensor
    ) -> StepResult:
        """Take one step on a batch, passed in pieces, with its total class weight and size."""
        if self.settings.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        loss, sums = (
            torch.zeros_like(weight),
            LossSums(*[torch.zeros_like(weight)] * len(LossSums._fields)),
        )
        self.optimizer.zero_grad(set_to_none=True)
        for images, labels, share in micro_batches:
            with autocast(self.settings, images.device):
                _, image_sums = self.objective.sums(self.network, images, labels)
            piece_sums = image_sums.times(share)
            piece_loss = self.objective.combine(piece_sums, weight, num_images).total
            (self.gradient_scale * piece_loss).backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                loss, sums = loss + piece_loss, sums.plus(piece_sums)
        norm = nn.utils.clip_grad_norm_(
            self.network.parameters(), self.settings.gradient_clip or math.inf
        )
        self.optimizer.step()
        self.schedule.step()
        if self.average is not None:
            update_average(self.average, self.network)
        return StepResult(loss, sums, norm)
