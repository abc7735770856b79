"""One process's work in a training run: it builds the training loop and implements its hooks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from labn.config import Config
from labn.data.batches import EvaluationBatches
from labn.data.dataset import Dataset, Subset
from labn.errors import UserError
from labn.model.architectures import PLANS
from labn.model.network import LABN
from labn.report import history_figure, save_figure
from labn.runs.build import (
    build_initial_network,
    build_objective,
    evaluation_batches,
    faithfulness,
    place_network,
    require_monitored,
    require_subset,
    training_batches,
)
from labn.runs.description import (
    arithmetic,
    as_markdown,
    data_source,
    first_lines,
    parameters_and_places,
)
from labn.runs.evaluation.evaluate_run import SubsetEvaluation, log_scores
from labn.runs.evaluation.options import EvaluationOptions, choices_of_validation
from labn.runs.folder import RunFolder
from labn.runs.out_of_memory import evaluation_memory
from labn.runs.replicas import Replicas
from labn.runs.reporter import Reporter, StoppingReporter
from labn.runs.tracked import closing_entry, log_settings, open_entry
from labn.runs.trained import TrainedRun
from labn.storage.files import write_json
from labn.tracking import NoTracker, Tracker, environment_tags, redact
from labn.training import checkpoint
from labn.training.checkpoint import ModelCheckpoint, TrainingCheckpoint
from labn.training.device import release_freed_memory
from labn.training.evaluate import evaluate
from labn.training.loop import Metrics, Trainer
from labn.training.losses import Objective
from labn.training.monitor import missed_floors
from labn.training.optim import build_average, build_optimizer, build_schedule
from labn.training.precision import autocast
from labn.training.process_group import Group

logger = logging.getLogger(__name__)

_REASONS = {
    "val_loss": "lowest validation loss",
    "val_pid": "highest validation PID",
    "val_auroc": "highest validation AUROC",
}
"""Why an epoch is the best, by ``train.monitor``."""


@dataclass(frozen=True)
class Summary:
    """The outcome of a finished run; ``metrics`` are the best epoch's, on the validation subset."""

    run: str
    num_epochs: int
    best_epoch: int
    metrics: dict[str, float]
    pictures: list[str]
    tracker: dict[str, str | None]


class TrainingHooks:
    """One process's work on a run, with the hooks that the training loop calls."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        device: torch.device,
        dataset: Dataset,
        reporter: Reporter,
        should_stop: Callable[[], bool],
        group: Group,
        replicas: Replicas | None = None,
        should_save: Callable[[], bool] = lambda: False,
    ) -> None:
        self.group, self.replicas = group, replicas
        self.config, self.folder, self.device, self.dataset = config, folder, device, dataset
        self.reporter, self.should_stop, self.should_save = reporter, should_stop, should_save
        self.validation: Subset = require_subset(dataset, "validation")
        require_monitored(dataset, config.train)
        self.has_branch = config.model.branch == "attention"
        self.objective: Objective = build_objective(
            config.loss, dataset.statistics, self.device, has_branch=self.has_branch
        )
        self.trainer = self._build_trainer()
        self._validation_batches = self._build_validation_batches()
        self.tracker: Tracker = NoTracker()
        if group.is_first:
            self.tracker = open_entry(config, folder)
        self._epoch_start_s, self._num_restarts, self._compilation_s = time.monotonic(), 0, 0.0

    def complete(self) -> Summary:
        """Train the remaining epochs, score the best one, log everything."""
        with closing_entry(self.tracker):
            self._log_start()
            self._resume()
            progress = self.trainer.run()
            summary = self._finish(len(progress.history), progress.best_epoch + 1)
        write_json(self.folder.summary_file, asdict(summary))
        return summary

    def assist(self) -> None:
        """Train the remaining epochs, as a rank other than the first."""
        self._resume()
        self.trainer.run()

    def _build_trainer(self) -> Trainer:
        config, device, group = self.config, self.device, self.group
        plan = PLANS[config.model.backbone]
        model = build_initial_network(
            config.model, self.dataset, self.reporter, seed=config.train.seed
        )
        model = place_network(model, device, channels_last=config.train.channels_last)
        if group.size > 1 and device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        elif group.size > 1:
            self.reporter.message(
                f"{group.size} workers without CUDA: batch norm takes its statistics over each"
                " worker's share of a batch, and keeps the first worker's"
            )
        model.freeze(config.train.freeze)
        model.recompute_blocks(config.train.recompute == "blocks")
        optimizer = build_optimizer(model, config.train)
        batches = training_batches(self.dataset, config.data, config.train, device, group)
        average = build_average(model, config.train)
        if config.train.compile:
            # Not dynamic: strips and tiles follow from the size of a batch, of which there are few.
            mode = "reduce-overhead" if config.train.cuda_graphs else None
            model.compile(dynamic=False, mode=mode)
        return Trainer(
            model=model,
            objective=self.objective,
            optimizer=optimizer,
            schedule=build_schedule(optimizer, config.train, batches.steps_per_epoch),
            average=average,
            batches=batches,
            settings=config.train,
            hooks=self,
            device=device,
            group=group,
            # Batch norm needs two values per channel, of which one pixel of one image is one.
            least_piece=2 if plan.has_single_pixel(config.data.image_size) else 1,
        )

    def _log_start(self) -> None:
        config, dataset = self.config, self.dataset
        for line in first_lines(config, self.folder, dataset, self.trainer.model, self.device):
            self.reporter.message(line)
        self.folder.save_manifest(dataset.manifest)
        parameters, places = parameters_and_places(config)
        self.tracker.log_params(parameters)
        self._num_restarts = self.folder.count_start()
        tags = {
            "data_digest": dataset.digest,
            "world_size": str(self.group.size),
            "restarts": str(self._num_restarts),
        }
        self.tracker.set_tags(environment_tags() | places | arithmetic(config, self.device) | tags)
        self.tracker.log_dataset(
            dataset.manifest, name=config.data.name, source=data_source(config),
            digest=dataset.digest,
        )  # fmt: skip

    def _check_classes(self, number: int) -> None:
        """Refuse data whose classes are not those that the run has been trained on."""
        now, then = tuple(self.dataset.class_names), f"{number} classes"
        is_same = len(now) == number
        if self.folder.best_file.is_file():
            names = tuple(self.folder.load_best()["class_names"])
            is_same, then = now == names, ", ".join(names)
        if not is_same:
            raise UserError(
                f"data.root = {self.config.data.root}: has the classes {', '.join(now)}, the run"
                f" {then}; give data of the same classes, or another output_dir"
            )

    def _resume(self) -> None:
        found = checkpoint.load_newest(self.folder.checkpoints) if self.group.is_first else None
        # Broadcast: the other ranks may not have access to the folder.
        found = self.group.from_first(found)
        if found is None:
            return
        path, content = found
        self._check_classes(len(content["model"]["fc.bias"]))
        self.trainer.load_state(content)
        progress = self.trainer.progress
        self.reporter.message(
            f"resuming from {path}: epoch {progress.epoch + 1}, step {progress.step} of"
            f" {self.trainer.batches.steps_per_epoch}"
        )
        self._warn_of_other_arithmetic(path, content)

    def _warn_of_other_arithmetic(self, path: Path, content: TrainingCheckpoint) -> None:
        for name, now in arithmetic(self.config, self.device).items():
            before = content.get(name)
            if before not in (None, now):
                logger.warning(
                    "%s: was computed with %s = %s, and the rest will be with %s; the last digits"
                    " differ from those of a run with one (`labn doctor`, OMP_NUM_THREADS)",
                    *(path, name, before, now),
                )

    def _finish(self, num_epochs: int, best_epoch: int) -> Summary:
        """Score the best epoch with its control, and log tables, pictures and the network."""
        folder, config = self.folder, self.config
        trained = TrainedRun.restore(folder, config, self.device)
        dataset = trained.as_trained(self.dataset)
        options = EvaluationOptions.of(config, choices_of_validation(config))
        # Each scored image is saved: a stop loses at most one of them.
        reporter = StoppingReporter(self.reporter, self.should_stop)
        with folder.claimed_evaluation("validation") as place:
            scores = SubsetEvaluation(
                trained, dataset, "validation", options, place, reporter, draws_maps=False
            ).complete()
        history, reason = self.trainer.progress.history, _REASONS[config.train.monitor]
        if missed := missed_floors(history[best_epoch - 1], config.train):
            logger.warning("no epoch reached every floor; the best, the closest, misses %s", missed)
        random_pid = scores.metrics.get("val_pid_random")
        picture = history_figure(history, best_epoch, reason, random_pid)
        save_figure(picture, folder.history_picture)
        self.tracker.log_metrics(
            {f"best_{name}": value for name, value in scores.metrics.items()}
            | {"best_epoch": float(best_epoch)},
            step=0,  # which MLflow's page draws as a bar, not as a curve of one point
        )
        text = as_markdown(config, folder, dataset, scores.metrics)
        self.tracker.set_tags({"mlflow.note.content": text})
        log_scores(self.tracker, scores)
        for path in (folder.history_picture, folder.history_file):
            self.tracker.log_artifact(path, None)
        log_settings(self.tracker, folder.config_file)
        if config.tracking.log_model:
            self.tracker.log_model(trained.model.cpu(), trained.preparation)
        return Summary(
            run=str(folder.path),
            num_epochs=num_epochs,
            best_epoch=best_epoch,
            metrics=scores.metrics,
            pictures=[str(path) for path in (*scores.pictures, folder.history_picture)],
            tracker={"uri": redact(config.tracking.uri), "run_id": self.tracker.run_id},
        )

    def _build_validation_batches(self) -> EvaluationBatches:
        """Build the batches of this rank's share of the validation subset."""
        whole, rows = self.validation, self.group.share(len(self.validation))
        share = whole if self.group.size == 1 else whole.select(np.arange(len(whole))[rows])
        return evaluation_batches(share, self.dataset.statistics, self.config, self.device)

    # The hooks of the training loop.

    def validate(self, model: nn.Module, epoch: int) -> Metrics:
        """Evaluate the validation subset, each rank its share."""
        assert isinstance(model, LABN)
        rows, batches = self.group.share(len(self.validation)), self._validation_batches
        num_positives_before = int((self.validation.labels[: rows.start] > 0).sum())
        num_done = 0

        def advance() -> None:
            nonlocal num_done
            num_done += 1
            self.reporter.advance(f"epoch {epoch + 1} validation", num_done, len(batches))

        release_freed_memory()
        with evaluation_memory(self.config), autocast(self.config.train, self.device):
            evaluation = evaluate(
                model,
                batches,
                self.objective,
                faithfulness(self.config.validation, epoch + 1, num_positives_before)
                if self.has_branch
                else None,
                on_batch=advance,
                group=self.group,
            )
        release_freed_memory()
        return evaluation.as_metrics("val")

    def on_steps(self, epoch: int, step: int, metrics: Metrics) -> None:
        """Report the progress of the epoch, and its speed."""
        total, size = self.trainer.batches.steps_per_epoch, self.group.size
        workers = f", {size} workers" if size > 1 else ""
        label = f"epoch {epoch + 1}/{self.config.train.epochs}{workers}"
        speed = f"{self.trainer.throughput.images_per_s:.1f} images/s"
        self.reporter.advance(f"{label}, {speed}, loss {metrics['train_loss']:.3f}", step, total)

    def _report_compilation(self) -> None:
        """Say what compiling the network has cost since the last epoch, if anything."""
        if not self.config.train.compile:
            return
        from torch._dynamo.utils import calculate_time_spent

        total_s = calculate_time_spent().get("total_wall_time", 0.0)
        if (spent_s := total_s - self._compilation_s) >= 1:
            self.reporter.message(f"compiling the network took {spent_s:.0f} s of this epoch")
        self._compilation_s = total_s

    def on_epoch(self, history: list[Metrics]) -> None:
        """Log and report a finished epoch."""
        if not self.group.is_first:
            return
        self._report_compilation()
        now_s = time.monotonic()
        time_s, self._epoch_start_s = now_s - self._epoch_start_s, now_s
        metrics, speeds = history[-1], self.trainer.speeds
        self.folder.save_history(history)
        if _is_mask_inert(metrics) and not any(map(_is_mask_inert, history[:-1])):
            self.reporter.message(
                f"x~ keeps {metrics['train_kept_share']:.1%} of the pixels"
                f" (loss.theta_b = {self.config.loss.theta_b}, loss.mask_rule ="
                f" {self.config.loss.mask_rule}), so that L_KL teaches hardly anything"
            )
        about = {"epoch_time_s": time_s, "restarts": float(self._num_restarts)}
        logged = {
            name: value for name, value in (metrics | speeds | about).items() if name != "epoch"
        }
        self.tracker.log_metrics(logged, step=int(metrics["epoch"]))
        self.reporter.epoch(metrics | speeds, self.config.train.epochs, time_s)

    def on_best(self, model: nn.Module, metrics: Metrics) -> None:
        """Save the best network with all that its use requires."""
        if not self.group.is_first:
            return
        statistics = self.dataset.statistics
        best: ModelCheckpoint = {
            "model": model.state_dict(),
            "config": self._config_tree(),
            "class_names": list(self.dataset.class_names),
            "num_channels": self.dataset.num_channels,
            "mean": statistics.mean,
            "std": statistics.std,
            "bias_image": statistics.bias_image,
            "epoch": int(metrics["epoch"]),
            "metrics": dict(metrics),
        }
        checkpoint.save_atomically(best, self.folder.best_file)

    def save(self, content: TrainingCheckpoint, global_step: int) -> None:
        """Write a checkpoint, then delete the oldest ones."""
        if not self.group.is_first:
            return
        content["config"] = self._config_tree()
        content.update(arithmetic(self.config, self.device))  # type: ignore[typeddict-item]
        path = checkpoint.step_path(self.folder.checkpoints, global_step)
        checkpoint.save_atomically(content, path)
        checkpoint.keep_newest(self.folder.checkpoints, self.config.train.keep_checkpoints)
        if self.replicas is not None:
            self.replicas.add(path)

    def last_checkpoint(self) -> str:
        """Return the path of the newest checkpoint as text."""
        path: Path | None = checkpoint.newest_path(self.folder.checkpoints)
        return str(path) if path else "none yet"

    def _config_tree(self) -> dict[str, Any]:
        return self.config.model_dump(mode="json")


def _is_mask_inert(metrics: Metrics) -> bool:
    """Return whether L_KL's mask kept nearly all pixels, or nearly none."""
    return not 0.01 <= metrics.get("train_kept_share", 0.5) <= 0.99
