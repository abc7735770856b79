"""The components of a training run, small enough to train in a second."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from labn.config import TrainConfig
from labn.data.augment import Augmentation
from labn.data.batches import Batch, EvaluationBatches, TrainingBatches
from labn.data.dataset import Subset, measure_statistics
from labn.model.network import LABN, LABNOutput, build_model
from labn.training import checkpoint
from labn.training.checkpoint import TrainingCheckpoint
from labn.training.evaluate import Faithfulness, evaluate
from labn.training.loop import Batches, Metrics, Trainer
from labn.training.losses import Objective
from labn.training.optim import build_average, build_optimizer, build_schedule
from labn.training.process_group import SINGLE, Group

CPU = torch.device("cpu")
NUM_IMAGES, BATCH_SIZE = 17, 5
STEPS_PER_EPOCH = 4  # 17 images and the bias image
SETTINGS: dict[str, Any] = {
    "epochs": 2,
    "batch_size": BATCH_SIZE,
    "warmup_epochs": 1,
    "learning_rate_head": 1e-2,
}


def make_subset(
    num_images: int = NUM_IMAGES,
    *,
    seed: int = 0,
    size: int = 24,
    labels: Sequence[int] | None = None,
) -> Subset:
    """Return images of noise; every other one, a positive, has a bright square somewhere."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 160, (num_images, size, size, 3), dtype=np.uint8)
    classes = np.arange(num_images) % 2 if labels is None else np.array(labels)
    for image, label in zip(images, classes, strict=True):
        row, column = rng.integers(0, size - 8, 2)
        if label:
            image[row : row + 8, column : column + 8] = 250
    return Subset(
        images=images,
        masks=None,
        indices=np.arange(num_images),
        labels=classes.astype(np.int64),
        names=tuple(f"image-{seed}-{number:02d}" for number in range(num_images)),
        has_mask=np.zeros(num_images, dtype=np.bool_),
    )


TRAIN, VALIDATION = make_subset(seed=1), make_subset(5, seed=2)
STATISTICS = measure_statistics(TRAIN)
FAITHFULNESS = Faithfulness(patch_size=8, num_points=3)


def make_settings(**changes: Any) -> TrainConfig:
    return TrainConfig(**(SETTINGS | changes))


def make_model(seed: int = 0, split: int = 0) -> LABN:
    torch.manual_seed(seed)
    return build_model("lambda_cnn", in_channels=3, split=split, theta_alpha=0.5)


def make_objective(**changes: Any) -> Objective:
    settings: dict[str, Any] = {"lambda_lab": 1.0, "lambda_kl": 1.0}
    settings |= {"theta_b": 0.5, "mask_rule": "share"}
    return Objective(bias_image=STATISTICS.bias_image, **(settings | changes))


def make_batches(settings: TrainConfig, subset: Subset = TRAIN) -> TrainingBatches:
    return TrainingBatches(
        subset,
        STATISTICS,
        batch_size=settings.batch_size,
        seed=settings.seed,
        bias_copies=1,
        balanced=False,
        augment=Augmentation(horizontal_flip=True, rotation_deg=10, brightness=0.1),
        device=CPU,
    )


def evaluation_batches(batch_size: int = 3, subset: Subset = VALIDATION) -> EvaluationBatches:
    return EvaluationBatches(subset, STATISTICS, batch_size, CPU)


class Hooks:
    """Hooks that record their calls and stop training after ``stop_after`` steps.

    ``losses`` are returned as validation losses, or as all metrics, one per epoch; without them
    the network is scored. Checkpoints are saved to ``folder`` if it is specified.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        losses: Sequence[float | Metrics] | None = None,
        stop_after: int | None = None,
        save_after: int | None = None,
        folder: Path | None = None,
        num_kept: int = 2,
    ) -> None:
        self.objective, self.losses, self.stop_after = objective, losses, stop_after
        self.save_after = save_after
        self.folder = folder
        self.num_kept = num_kept
        self.num_steps = 0
        self.step_losses: list[float] = []
        self.evaluated: list[dict[str, Any]] = []
        self.bests: list[dict[str, Any]] = []
        self.saves: list[tuple[int, TrainingCheckpoint]] = []
        self.histories: list[list[Metrics]] = []
        self.num_saves_before: list[int] = []

    def validate(self, model: nn.Module, epoch: int) -> Metrics:
        self.evaluated.append(copy.deepcopy(model.state_dict()))
        if self.losses is not None:
            metrics = self.losses[epoch]
            return metrics if isinstance(metrics, dict) else {"val_loss": metrics}
        network = cast(LABN, model)
        scores = evaluate(network, evaluation_batches(), self.objective, FAITHFULNESS)
        return scores.as_metrics("val")

    def on_steps(self, epoch: int, step: int, metrics: Metrics) -> None:
        self.step_losses.append(metrics["train_loss"])

    def on_epoch(self, history: list[Metrics]) -> None:
        self.histories.append(copy.deepcopy(history))
        self.num_saves_before.append(len(self.saves))

    def on_best(self, model: nn.Module, metrics: Metrics) -> None:
        self.bests.append(copy.deepcopy(model.state_dict()))

    def save(self, content: TrainingCheckpoint, global_step: int) -> None:
        self.saves.append((global_step, copy.deepcopy(content)))
        if self.folder is not None:
            path = checkpoint.step_path(self.folder, global_step)
            checkpoint.save_atomically(content, path)
            checkpoint.keep_newest(self.folder, self.num_kept)

    def last_checkpoint(self) -> str:
        return str(checkpoint.newest_path(self.folder)) if self.folder else "none yet"

    def should_stop(self) -> bool:
        self.num_steps += 1
        return self.num_steps == self.stop_after

    def should_save(self) -> bool:
        return self.num_steps == self.save_after


def make_trainer(
    *,
    model: nn.Module | None = None,
    batches: Batches | None = None,
    objective: Objective | None = None,
    hooks: Hooks | None = None,
    group: Group = SINGLE,
    least_piece: int = 1,
    **changes: Any,
) -> Trainer:
    settings = make_settings(**changes)
    model = make_model(settings.seed) if model is None else model
    batches = make_batches(settings) if batches is None else batches
    objective = make_objective() if objective is None else objective
    optimizer = build_optimizer(model, settings)
    return Trainer(
        model=model,
        objective=objective,
        optimizer=optimizer,
        schedule=build_schedule(optimizer, settings, batches.steps_per_epoch),
        average=build_average(model, settings),
        batches=batches,
        settings=settings,
        hooks=Hooks(objective) if hooks is None else hooks,
        device=CPU,
        group=group,
        least_piece=least_piece,
    )


class FixedBatches:
    """The same batch at every step."""

    def __init__(self, batch: Batch, steps_per_epoch: int = 1) -> None:
        self.batch, self.steps_per_epoch = batch, steps_per_epoch

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        for _ in range(start_step, self.steps_per_epoch):
            yield self.batch


class PlainNetwork(nn.Module):
    """A network with LABN's outputs, without batch normalisation: images are independent."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.stem = nn.Conv2d(3, 8, 7, stride=4)
        self.attention_branch = nn.Conv2d(8, 3, 1)
        self.fc = nn.Linear(8, 2)

    def forward(self, images: Tensor) -> LABNOutput:
        features = self.stem(images).tanh()
        branch = self.attention_branch(features)
        attention = branch[:, :1].sigmoid()
        return LABNOutput(
            self.fc((features * attention).mean((2, 3))), branch[:, 1:].mean((2, 3)), attention
        )


def first_batch(size: int = BATCH_SIZE) -> Batch:
    return next(make_batches(make_settings(batch_size=size)).epoch(0))
