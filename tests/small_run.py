"""The parts of a training run, small enough to train in a second."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from torch import nn

from labn.config import TrainConfig
from labn.data.augment import Augmentation
from labn.data.batches import EvaluationBatches, TrainingBatches
from labn.data.dataset import Split, measure_statistics
from labn.model.network import LABNOutput, build_model
from labn.training import checkpoint
from labn.training.evaluate import Faithfulness, evaluate
from labn.training.loop import Trainer
from labn.training.losses import Objective
from labn.training.optim import build_average, build_optimizer, build_schedule
from labn.training.process_group import SINGLE

CPU = torch.device("cpu")
NUM_IMAGES, BATCH_SIZE = 17, 5
STEPS_PER_EPOCH = 4  # 17 images and the bias image
SETTINGS = {"epochs": 2, "batch_size": BATCH_SIZE, "warmup_epochs": 1, "learning_rate_head": 1e-2}


def make_split(num_images=NUM_IMAGES, *, seed=0, size=24, labels=None):
    """Noise, in which every other image, a positive, has a bright square somewhere."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 160, (num_images, size, size, 3), dtype=np.uint8)
    labels = np.arange(num_images) % 2 if labels is None else np.array(labels)
    for image, label in zip(images, labels, strict=True):
        row, column = rng.integers(0, size - 8, 2)
        if label:
            image[row : row + 8, column : column + 8] = 250
    return Split(
        images=images,
        masks=None,
        indices=np.arange(num_images),
        labels=labels.astype(np.int64),
        names=tuple(f"image-{seed}-{number:02d}" for number in range(num_images)),
        has_mask=np.zeros(num_images, dtype=np.bool_),
    )


TRAIN, VALIDATION = make_split(seed=1), make_split(5, seed=2)
STATISTICS = measure_statistics(TRAIN)
FAITHFULNESS = Faithfulness(patch_size=8, num_points=3)


def make_settings(**changes):
    return TrainConfig(**(SETTINGS | changes))


def make_model(seed=0, split=0):
    torch.manual_seed(seed)
    return build_model("lambda_cnn", in_channels=3, split=split, theta_alpha=0.5)


def make_objective(**changes):
    settings = {"theta_b": 0.5, "lambda_lab": 1.0, "lambda_kl": 1.0}
    return Objective(bias_image=STATISTICS.bias_image, **(settings | changes))


def make_batches(settings, split=TRAIN):
    return TrainingBatches(
        split,
        STATISTICS,
        batch_size=settings.batch_size,
        seed=settings.seed,
        bias_copies=1,
        balanced=False,
        augment=Augmentation(horizontal_flip=True, rotation_deg=10, brightness=0.1),
        device=CPU,
    )


def evaluation_batches(batch_size=3, split=VALIDATION):
    return EvaluationBatches(split, STATISTICS, batch_size, CPU)


class Hooks:
    """Remembers what the trainer says, and stops it after ``stop_after`` steps.

    ``losses`` are given out as validation losses, one an epoch; without them the network is
    scored. Checkpoints go to ``folder`` if there is one.
    """

    def __init__(
        self, objective, *, losses=None, stop_after=None, save_after=None, folder=None, num_kept=2
    ):
        self.objective, self.losses, self.stop_after = objective, losses, stop_after
        self.save_after = save_after
        self.folder: Path | None = folder
        self.num_kept = num_kept
        self.num_steps = 0
        self.step_losses: list[float] = []
        self.evaluated: list[dict] = []
        self.bests: list[dict] = []
        self.saves: list[tuple[int, dict]] = []
        self.histories: list[list[dict]] = []
        self.num_saves_before: list[int] = []

    def validate(self, model, epoch):
        self.evaluated.append(copy.deepcopy(model.state_dict()))
        if self.losses is not None:
            return {"val_loss": self.losses[epoch]}
        return evaluate(model, evaluation_batches(), self.objective, FAITHFULNESS).as_metrics("val")

    def on_steps(self, epoch, step, metrics):
        self.step_losses.append(metrics["train_loss"])

    def on_epoch(self, history):
        self.histories.append(copy.deepcopy(history))
        self.num_saves_before.append(len(self.saves))

    def on_best(self, model, metrics):
        self.bests.append(copy.deepcopy(model.state_dict()))

    def save(self, content, global_step):
        self.saves.append((global_step, copy.deepcopy(content)))
        if self.folder is not None:
            path = checkpoint.step_path(self.folder, global_step)
            checkpoint.save_atomically(content, path)
            checkpoint.keep_newest(self.folder, self.num_kept)

    def last_checkpoint(self):
        return str(checkpoint.newest_path(self.folder)) if self.folder else "none yet"

    def should_stop(self):
        self.num_steps += 1
        return self.num_steps == self.stop_after

    def should_save(self):
        return self.num_steps == self.save_after


def make_trainer(*, model=None, batches=None, objective=None, hooks=None, group=SINGLE, **changes):
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
    )


class FixedBatches:
    """The same batch at every step."""

    def __init__(self, batch, steps_per_epoch=1):
        self.batch, self.steps_per_epoch = batch, steps_per_epoch

    def epoch(self, epoch, start_step=0):
        for _ in range(start_step, self.steps_per_epoch):
            yield self.batch


class PlainNetwork(nn.Module):
    """A network with LABN's outputs and without batch normalisation: no image sees another."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.stem = nn.Conv2d(3, 8, 7, stride=4)
        self.attention_branch = nn.Conv2d(8, 3, 1)
        self.fc = nn.Linear(8, 2)

    def forward(self, images):
        features = self.stem(images).tanh()
        branch = self.attention_branch(features)
        attention = branch[:, :1].sigmoid()
        return LABNOutput(
            self.fc((features * attention).mean((2, 3))), branch[:, 1:].mean((2, 3)), attention
        )


def first_batch(size=BATCH_SIZE):
    return next(make_batches(make_settings(batch_size=size)).epoch(0))
