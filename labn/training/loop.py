"""The training loop: plain torch, handed its model, batches and helpers; it knows no cluster."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from labn.config import TrainConfig
from labn.data.batches import Batch
from labn.errors import Interrupted, RunFailed
from labn.training.checkpoint import TrainingCheckpoint, random_states, restore_random_states
from labn.training.losses import LossSums, Objective
from labn.training.optim import autocast
from labn.training.process_group import SINGLE, Group
from labn.training.throughput import Pace

Metrics = dict[str, float]


@runtime_checkable  # for the type checks under pytest
class Batches(Protocol):
    """An endless course of training batches, as a function of (epoch, step)."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from a step on."""


@runtime_checkable
class Hooks(Protocol):
    """What the loop leaves to whoever runs it."""

    def validate(self, model: nn.Module, epoch: int) -> Metrics:
        """Measure a model after an epoch; must give ``val_loss``."""

    def on_steps(self, epoch: int, step: int, metrics: Metrics) -> None:
        """Hear how the last few steps went."""

    def on_epoch(self, history: list[Metrics]) -> None:
        """Hear all that is known of the epochs so far; the last one has just ended."""

    def on_best(self, model: nn.Module, metrics: Metrics) -> None:
        """Keep a model whose validation loss is the lowest so far."""

    def save(self, checkpoint: TrainingCheckpoint, global_step: int) -> None:
        """Keep all that is needed to go on from here."""

    def last_checkpoint(self) -> str:
        """Name the newest checkpoint, for a message."""

    def should_stop(self) -> bool:
        """Say whether someone asked for an end after this step."""

    def should_save(self) -> bool:
        """Say whether a checkpoint is wanted besides those that are due; all ranks say the same."""


@dataclass
class Progress:
    """How far training is: plain values, part of every checkpoint."""

    epoch: int = 0
    step: int = 0
    """Steps done in this epoch."""
    global_step: int = 0
    loss_sums: list[float] = field(default_factory=lambda: [0.0] * len(LossSums._fields))
    gradient_norm_sum: float = 0.0
    best_loss: float = math.inf
    best_epoch: int = -1
    history: list[Metrics] = field(default_factory=list)

    @property
    def num_epochs_without_gain(self) -> int:
        """Epochs since the lowest validation loss."""
        return self.epoch - 1 - self.best_epoch if self.epoch else 0


@dataclass
class _Seen:
    """One step's results, still on the device."""

    global_step: int
    names: tuple[str, ...]
    loss: Tensor
    sums: LossSums
    gradient_norm: Tensor


class Trainer:
    """Trains a model, epoch by epoch, until the last one, no more gain, or a request to stop.

    The ranks of a ``group`` each give their share of every batch, and take the step that one
    process with the whole batch would take, but for batch norm's statistics.
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
    ) -> None:
        self.group, self._replica = group, group.wrap(model)
        self.model, self.objective, self.average = model, objective, average
        self.optimizer, self.schedule = optimizer, schedule
        self.batches, self.settings, self.hooks, self.device = batches, settings, hooks, device
        self.progress = Progress()
        self.pace, self.speeds = Pace(group), Metrics()

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to train."""
        patience = self.settings.early_stopping_patience
        gave_up = patience is not None and self.progress.num_epochs_without_gain >= patience
        return self.progress.epoch >= self.settings.epochs or gave_up

    def run(self) -> Progress:
        """Train to the end.

        Raises:
            Interrupted: ``hooks.should_stop`` said so; the state is saved.
            RunFailed: the loss or a gradient is not finite.
        """
        while not self.is_finished:
            self._train_epoch()
            self._finish_epoch()
        return self.progress

    def _train_epoch(self) -> None:
        progress, seen = self.progress, list[_Seen]()
        self.model.train()
        self.pace.start()
        for batch in self.pace.loading(self.batches.epoch(progress.epoch, progress.step)):
            seen.append(self._train_step(batch))
            is_last = progress.step == self.batches.steps_per_epoch
            is_due = progress.global_step % (self.settings.checkpoint_steps or math.inf) == 0
            is_time = len(seen) >= self.settings.log_steps or is_last or is_due
            must_stop = self._must_stop(is_time)
            if is_time or must_stop:
                self._look_at(seen)
                seen = []
            is_due = is_due or (is_time and self.hooks.should_save())
            if must_stop or (is_due and not is_last):
                self._save()
            if must_stop:
                raise Interrupted

    def _must_stop(self, is_time: bool) -> bool:
        """Ask whether to stop: one process after every step, a group where it waits anyway."""
        if self.group.size > 1 and not is_time:
            return False
        return self.group.any(self.hooks.should_stop(), self.device)

    def _train_step(self, batch: Batch) -> _Seen:
        """Forward, loss, backward, step; in parts whose gradients add up to the batch's."""
        weight, num_images = self.group.total(
            torch.stack([self.objective.image_weights(batch.labels).sum(), self._count(batch)])
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss, sums = torch.zeros((), device=self.device), None
        parts = self._parts(batch)
        for number, (images, labels, share) in enumerate(parts, start=1):
            # Gradients are exchanged once a step, with those of the last part.
            with self._exchange(number == len(parts)):
                with self.pace.own_work(len(labels)), autocast(self.settings, self.device):
                    _, part_sums = self.objective.sums(self._replica, images, labels)
                part_sums = LossSums(*(share * term for term in part_sums))
                part_loss = self.objective.combine(part_sums, weight, num_images).total
                # The exchange takes the mean over ranks; the sum is wanted.
                (self.group.size * part_loss).backward()  # type: ignore[no-untyped-call]
            loss = loss + part_loss.detach()
            detached = LossSums(*(term.detach() for term in part_sums))
            sums = detached if sums is None else _add(sums, detached)
        assert sums is not None
        norm = nn.utils.clip_grad_norm_(
            self.model.parameters(), self.settings.gradient_clip or math.inf
        )
        self.optimizer.step()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.progress.step += 1
        self.progress.global_step += 1
        return _Seen(self.progress.global_step, batch.names, loss, sums, norm)

    def _count(self, batch: Batch) -> Tensor:
        return torch.tensor(float(len(batch.labels)), device=self.device)

    def _parts(self, batch: Batch) -> list[tuple[Tensor, Tensor, float]]:
        """Cut a batch into parts, each with the share in which it counts: 1.

        A rank without an image passes the bias image through, which counts 0: the others wait for
        its gradients.
        """
        if not len(batch.labels):
            image = self.objective.bias_image[None].to(self.device)
            return [(image, torch.zeros(1, dtype=torch.int64, device=self.device), 0.0)]
        num_parts = min(self.settings.accumulation_steps, len(batch.labels))
        chunks = zip(batch.images.chunk(num_parts), batch.labels.chunk(num_parts), strict=True)
        return [(images, labels, 1.0) for images, labels in chunks]

    def _exchange(self, is_last: bool) -> AbstractContextManager[None]:
        if is_last or not isinstance(self._replica, DistributedDataParallel):
            return nullcontext()
        return self._replica.no_sync()

    def _look_at(self, seen: list[_Seen]) -> None:
        """Wait for the device, once for many steps: check that all is finite, and sum up."""
        norms = torch.stack([step.gradient_norm for step in seen]).tolist()
        rows = torch.stack([torch.stack([step.loss, *step.sums]) for step in seen])
        totals = self.group.total(rows).tolist()
        losses, sums = [row[0] for row in totals], [row[1:] for row in totals]
        progress = self.progress
        for step, loss, norm, terms in zip(seen, losses, norms, sums, strict=True):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                names = [name for part in self.group.gather(step.names) for name in part]
                raise RunFailed(
                    f"step {step.global_step} (epoch {progress.epoch + 1}): the loss is {loss} and"
                    f" the gradient's norm {norm}; its images: {', '.join(names)};"
                    f" last good checkpoint: {self.hooks.last_checkpoint()}"
                )
            # One by one: the sums of a resumed run, looked at elsewhere, round alike.
            progress.loss_sums = [a + b for a, b in zip(progress.loss_sums, terms, strict=True)]
            progress.gradient_norm_sum += norm
            self.pace.count(round(terms[LossSums._fields.index("num_images")]))
        self.hooks.on_steps(progress.epoch, progress.step, {"train_loss": losses[-1]})

    def _finish_epoch(self) -> None:
        progress, self.speeds = self.progress, self.pace.of_ranks()
        evaluated = self.model if self.average is None else self.average.module
        for model in (self.model, evaluated):
            self.group.align_buffers(model)
        metrics = {"epoch": float(progress.epoch + 1), **self._train_metrics()}
        metrics |= self._validate(evaluated)
        progress.history.append(metrics)
        if metrics["val_loss"] < progress.best_loss:
            progress.best_loss, progress.best_epoch = metrics["val_loss"], progress.epoch
            self.hooks.on_best(evaluated, metrics)
        progress.epoch, progress.step = progress.epoch + 1, 0
        progress.loss_sums = [0.0] * len(LossSums._fields)
        progress.gradient_norm_sum = 0.0
        # In this order: what a kill between the two takes is done again, not left out.
        self.hooks.on_epoch(progress.history)
        self._save()

    def _validate(self, model: nn.Module) -> Metrics:
        try:
            metrics = self.hooks.validate(model, self.progress.epoch)
            if not math.isfinite(metrics["val_loss"]):
                raise RunFailed(f"val_loss is {metrics['val_loss']}")
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
        return {
            "train_loss": terms.total.item(),
            "train_loss_lpb": terms.lpb.item(),
            "train_loss_lab": terms.lab.item(),
            "train_loss_kl": terms.kl.item(),
            "gradient_norm": self.progress.gradient_norm_sum / self.progress.step,
            "learning_rate_head": rates[0],
            "learning_rate_backbone": rates[1],
        }

    def _save(self) -> None:
        self.hooks.save(self.state(), self.progress.global_step)

    def state(self) -> TrainingCheckpoint:
        """Collect all that ``load_state`` needs to go on bit by bit the same."""
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
        """Go back to where a checkpoint was taken."""
        self.model.load_state_dict(checkpoint["model"])
        if self.average is not None and checkpoint["average"] is not None:
            self.average.load_state_dict(checkpoint["average"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.schedule.load_state_dict(checkpoint["schedule"])
        restore_random_states(checkpoint["random_states"])
        self.progress = Progress(**_plain(checkpoint["progress"]))


def _plain(progress: dict[str, Any]) -> dict[str, Any]:
    """Copy what the trainer will change in place."""
    return progress | {
        "history": [dict(metrics) for metrics in progress["history"]],
        "loss_sums": list(progress["loss_sums"]),
    }


def _add(a: LossSums, b: LossSums) -> LossSums:
    return LossSums(*(x + y for x, y in zip(a, b, strict=True)))
