"""The network, its training step and its images, as a run builds them, on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labn.config import TrainConfig
from labn.model.network import LABN, build_model
from labn.runs.build import place_network
from labn.training.device import choose_device
from labn.training.losses import Objective
from labn.training.optim import build_average, build_optimizer, build_schedule
from labn.training.step import MicroBatch, TrainingStep

SIDE = 224


@dataclass
class Subject:
    """A network with its step on random images of ``SIDE`` pixels."""

    network: nn.Module
    step: TrainingStep
    images: Tensor
    labels: Tensor

    def train(self) -> None:
        """Take one step, with both passes of L_KL."""
        size = torch.full((), float(len(self.images)), device=self.images.device)
        self.step([MicroBatch(self.images, self.labels)], size, size)


def random_images(batch: int, side: int = SIDE) -> tuple[Tensor, Tensor]:
    """Return standardised images of noise, channels last, and their labels."""
    generator = torch.Generator("cuda").manual_seed(0)
    images = torch.randn(batch, 3, side, side, device="cuda", generator=generator)
    labels = torch.randint(0, 2, (batch,), device="cuda", generator=generator)
    return images.contiguous(memory_format=torch.channels_last), labels


def make_network(split: int = 7) -> LABN:
    """Return the paper's network, not yet placed."""
    torch.manual_seed(0)
    return build_model("lambda_resnet50", split=split)


def make_subject(
    batch: int, settings: TrainConfig, *, network: nn.Module | None = None, side: int = SIDE
) -> Subject:
    """Return what a run with these settings would train."""
    device = choose_device(settings)
    model = place_network(
        make_network() if network is None else network,  # type: ignore[arg-type]
        device,
        channels_last=True,
    ).train()
    optimizer = build_optimizer(model, settings)
    objective = Objective(
        bias_image=torch.zeros(3, side, side, device=device),
        theta_b=0.2,
        mask_rule="share",
        lambda_lab=1.0,
        lambda_kl=1.0,
    )
    step = TrainingStep(
        network=model,
        objective=objective,
        optimizer=optimizer,
        schedule=build_schedule(optimizer, settings, steps_per_epoch=10),
        average=build_average(model, settings),
        settings=settings,
    )
    return Subject(model, step, *random_images(batch, side))
