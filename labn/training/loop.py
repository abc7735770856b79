"""The training loop, in plain torch: model, batches and hooks are passed in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from labn.config import TrainConfig
from labn.data.batches import Batch
from labn.errors import Interrupted, RunFailed
from labn.training.checkpoint import TrainingCheckpoint, random_states, restore_random_states
from labn.training.losses import LossSums, Objective
from labn.training.monitor import quality
from labn.training.process_group import SINGLE, Group, no_exchange
from labn.training.step import MicroBatch, StepResult, TrainingStep
from labn.training.throughput import Throughput

Metrics = dict[str, float]


@runtime_checkable  # for the type checks under pytest
class Batches(Protocol):
    """An endless sequence of training batches, as a function of (epoch, step)."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from a step on."""


@runtime_checkable
class Hooks(Protocol):
    """Callbacks of the training loop."""

    def validate(self, model: nn.Module, epoch: int) -> Metrics:
        """Return a model's metrics after an epoch, ``val_loss`` among them."""

    def on_steps(self, epoch: int, step: int, metrics: Metrics) -> None:
        """Receive the metrics of the last few steps."""

    def on_epoch(self, history: list[Metrics]) -> None:
        """Receive the metrics of all epochs so far; the last one has just ended."""

    def on_best(self, model: nn.Module, metrics: Metrics) -> None:
        """Save the model of an epoch that is the best so far."""

    def save(self, checkpoint: TrainingCheckpoint, global_step: int) -> None:
        """Save a checkpoint to resume from."""

    def last_checkpoint(self) -> str:
        """Return the name of the newest checkpoint, for a message."""

    def should_stop(self) -> bool:
        """Return whether training should stop after this step."""

    def should_save(self) -> bool:
        """Return whether to save a checkpoint besides those due; the same on all ranks."""


@dataclass
class Progress:
    """Progress of training: plain values, saved in every checkpoint."""

    epoch: int = 0
    step: int = 0
    """Steps done in this epoch."""
    global_step: int = 0
    loss_sums: list[float] = field(default_factory=lambda: [0.0] * len(LossSums._fields))
    gradient_norm_sum: float = 0.0
    best_epoch: int = -1
    history: list[Metrics] = field(default_factory=list)

    @property
    def num_epochs_without_gain(self) -> int:
        """Epochs since the best one."""
        return self.epoch - 1 - self.best_epoch if self.epoch else 0


class _FinishedStep(NamedTuple):
    """A finished step: its number, its images and its result."""

    global_step: int
    names: tuple[str, ...]
    result: StepResult


class Trainer:
    """The training of a model until the last epoch, early stopping, or a request to stop.

    Each rank of a ``group`` computes on its share of every batch, and takes the step that one
    process with the whole batch would take, except for batch norm's statistics. A piece of a batch
    has ``least_piece`` images, where the batch has as many.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        schedule: LRScheduler,
        average: AveragedModel | None,
        batches: Batches,
        settings: TrainConfig,
        hooks: Hooks,
        device: torch.device,
        group: Group = SINGLE,
        least_piece: int = 1,
    ) -> None:
        self._least_piece = least_piece
        self.group, self.throughput, self.speeds = group, Throughput(group), Metrics()
        self.model, self.objective, self.average = model, objective, average
        self.optimizer, self.schedule = optimizer, schedule
        self.batches, self.settings, self.hooks, self.device = batches, settings, hooks, device
        self.progress = Progress()
        self._replica = group.wrap(model)
        self._step = TrainingStep(
            network=self.throughput.forward_of(self._replica),
            objective=objective,
            optimizer=optimizer,
            schedule=schedule,
            average=average,
            settings=settings,
            gradient_scale=group.size,  # the exchange averages over ranks; the sum is needed
        )

    @property
    def is_finished(self) -> bool:
        """Whether training is finished or has stopped early."""
        patience, warmup = self.settings.early_stopping_patience, self.settings.warmup_epochs
        # While the learning rate rises, a loss that does so too tells nothing.
        num_worse = min(self.progress.num_epochs_without_gain, self.progress.epoch - warmup)
        stopped_early = patience is not None and num_worse >= patience
        return self.progress.epoch >= self.settings.epochs or stopped_early

    def run(self) -> Progress:
        """Train to the end.

        Raises:
            Interrupted: ``hooks.should_stop`` returned true; the state is saved.
            RunFailed: the loss or a gradient is not finite.
        """
        while not self.is_finished:
            self._train_epoch()
            self._finish_epoch()
        return self.progress

    def _train_epoch(self) -> None:
        progress, finished = self.progress, list[_FinishedStep]()
        self.model.train()
        self.throughput.start()
        for batch in self.throughput.loading(self.batches.epoch(progress.epoch, progress.step)):
            finished.append(self._take_step(batch))
            is_last = progress.step == self.batches.steps_per_epoch
            is_due = progress.global_step % (self.settings.checkpoint_steps or math.inf) == 0
            is_time = len(finished) >= self.settings.log_steps or is_last or is_due
            must_stop = self._must_stop(is_time)
            if is_time or must_stop:
                self._collect(finished)
                finished = []
            is_due = is_due or (is_time and self.hooks.should_save())
            if must_stop or (is_due and not is_last):
                self._save()
            if must_stop:
                raise Interrupted

    def _must_stop(self, is_time: bool) -> bool:
        """Return whether to stop; a group checks only where it waits anyway."""
        if self.group.size > 1 and not is_time:
            return False
        return self.group.any(self.hooks.should_stop(), self.device)

    def _take_step(self, batch: Batch) -> _FinishedStep:
        weight = self.objective.image_weights(batch.labels).sum()
        num_images = torch.full((), float(len(batch)), device=self.device)
        weight, num_images = self.group.total(torch.stack([weight, num_images]))
        result = self._step(self._micro_batches(batch), weight, num_images)
        self.progress.step += 1
        self.progress.global_step += 1
        return _FinishedStep(self.progress.global_step, batch.names, result)

    def _micro_batches(self, batch: Batch) -> Iterator[MicroBatch]:
        """Yield a batch in pieces; gradients are exchanged once, with those of the last one."""
        *others, last = self._pieces(batch)
        with no_exchange(self._replica):
            yield from others
        yield last

    def _pieces(self, batch: Batch) -> list[MicroBatch]:
        """Return a batch as micro-batches.

        A rank without an image passes the bias image through with share 0, because the others wait
        for its gradients.
        """
        if not len(batch):
            image = self.objective.bias_image[None].to(self.device)
            return [MicroBatch(image, torch.zeros(1, dtype=torch.int64, device=self.device), 0.0)]
        most = max(1, len(batch) // self._least_piece)
        num_pieces = min(self.settings.accumulation_steps, most)
        chunks = batch.images.tensor_split(num_pieces), batch.labels.tensor_split(num_pieces)
        return [MicroBatch(images, labels) for images, labels in zip(*chunks, strict=True)]

    def _collect(self, finished: list[_FinishedStep]) -> None:
        """Wait for the device, once for many steps; check that all is finite, and add up sums."""
        results = [step.result for step in finished]
        norms = torch.stack([result.gradient_norm for result in results]).tolist()
        rows = torch.stack([torch.stack([result.loss, *result.sums]) for result in results])
        totals = self.group.total(rows).tolist()
        progress = self.progress
        for step, norm, (loss, *terms) in zip(finished, norms, totals, strict=True):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                names = [name for names in self.group.gather(step.names) for name in names]
                raise RunFailed(
                    f"step {step.global_step} (epoch {progress.epoch + 1}): the loss is {loss} and"
                    f" the gradient's norm {norm}; its images: {', '.join(names)};"
                    f" last good checkpoint: {self.hooks.last_checkpoint()}"
                )
            # One by one, so that a resumed run, which collects at other steps, rounds the same.
            progress.loss_sums = [a + b for a, b in zip(progress.loss_sums, terms, strict=True)]
            progress.gradient_norm_sum += norm
            self.throughput.count(round(terms[LossSums._fields.index("num_images")]))
        self.hooks.on_steps(progress.epoch, progress.step, {"train_loss": totals[-1][0]})

    def _finish_epoch(self) -> None:
        progress, self.speeds = self.progress, self.throughput.by_rank()
        evaluated = self.model if self.average is None else self.average.module
        for model in (self.model, evaluated):
            self.group.align_buffers(model)
        metrics = {"epoch": float(progress.epoch + 1), **self._train_metrics()}
        metrics |= self._validate(evaluated)
        progress.history.append(metrics)
        if self._is_best(metrics):
            progress.best_epoch = progress.epoch
            self.hooks.on_best(evaluated, metrics)
        progress.epoch, progress.step = progress.epoch + 1, 0
        progress.loss_sums = [0.0] * len(LossSums._fields)
        progress.gradient_norm_sum = 0.0
        # In this order: after a kill between the two, the epoch is repeated, not left out.
        self.hooks.on_epoch(progress.history)
        self._save()

    def _is_best(self, metrics: Metrics) -> bool:
        progress = self.progress
        if progress.best_epoch < 0:
            return True
        best = progress.history[progress.best_epoch]
        return quality(metrics, self.settings) > quality(best, self.settings)

    def _validate(self, model: nn.Module) -> Metrics:
        try:
            metrics = self.hooks.validate(model, self.progress.epoch)
            if not math.isfinite(metrics["val_loss"]):
                raise RunFailed(f"val_loss is {metrics['val_loss']}")
            quality(metrics, self.settings)  # may lack a metric
        except RunFailed as error:
            raise RunFailed(
                f"validation after step {self.progress.global_step} (epoch"
                f" {self.progress.epoch + 1}): {error};"
                f" last good checkpoint: {self.hooks.last_checkpoint()}"
            ) from error
        return metrics

    def _train_metrics(self) -> Metrics:
        sums = LossSums(*(torch.tensor(s, dtype=torch.float64) for s in self.progress.loss_sums))
        terms = self.objective.combine(sums, sums.weight, sums.num_images)
        rates = [group["lr"] for group in self.optimizer.param_groups]
        losses = {
            "loss": terms.total.item(),
            "loss_lpb": terms.lpb.item(),
            "loss_lab": terms.lab.item(),
            "loss_kl": terms.kl.item(),
            "loss_area": terms.area.item(),
        } | self.objective.mask_metrics(sums)
        return {f"train_{name}": value for name, value in losses.items()} | {
            "gradient_norm": self.progress.gradient_norm_sum / self.progress.step,
            "learning_rate_head": rates[0],
            "learning_rate_backbone": rates[1],
        }

    def _save(self) -> None:
        self.hooks.save(self.state(), self.progress.global_step)

    def state(self) -> TrainingCheckpoint:
        """Return all that ``load_state`` needs to resume bit by bit."""
        return {
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "progress": asdict(self.progress),
            "random_states": random_states(),
            "config": {},
        }

    def load_state(self, checkpoint: TrainingCheckpoint) -> None:
        """Restore the state of a checkpoint."""
        self.model.load_state_dict(checkpoint["model"])
        if self.average is not None and checkpoint["average"] is not None:
            self.average.load_state_dict(checkpoint["average"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.schedule.load_state_dict(checkpoint["schedule"])
        restore_random_states(checkpoint["random_states"])
        self.progress = Progress(**_plain(checkpoint["progress"]))


def _plain(progress: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of what the trainer changes in place."""
    kept = {key: value for key, value in progress.items() if key != "best_loss"}  # of 0.1.0
    return kept | {
        "history": [dict(metrics) for metrics in progress["history"]],
        # The first release did not sum the last two terms.
        "loss_sums": [*progress["loss_sums"], 0.0, 0.0][: len(LossSums._fields)],
    }
