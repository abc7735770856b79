"""The components of a run, built from its configuration: the only way to build a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from labn.config import Config, DataConfig, LossConfig, ModelConfig, TrainConfig, ValidationConfig
from labn.data.augment import Augmentation
from labn.data.batches import EvaluationBatches, TrainingBatches
from labn.data.dataset import ChannelStatistics, Dataset, Subset, prepare_dataset
from labn.data.decode import Progress
from labn.data.manifest import SubsetTable
from labn.data.readers.open_reader import open_reader
from labn.data.readers.reader import Reader, SubsetName
from labn.errors import UserError
from labn.model.network import LABN, build_model
from labn.model.pretrained import load_pretrained
from labn.runs.folder import RunFolder
from labn.runs.reporter import Reporter
from labn.storage.mirror import mirror
from labn.storage.remote import is_remote
from labn.training.checkpoint import ModelCheckpoint
from labn.training.evaluate import Faithfulness
from labn.training.losses import Objective
from labn.training.process_group import SINGLE, Group

_MIN_INTERVALS = 4
"""Of a curve; fewer add hardly anything to its two ends."""


def build_reader(data: DataConfig, report_progress: Progress | None = None) -> Reader:
    """Open the data set of the settings; fetch it first if it is remote."""
    root = data.root
    if root is not None and is_remote(root):
        root = mirror(str(root), data.cache_dir, report_progress)
    return open_reader(
        data.name,
        Path(root).expanduser() if root else None,
        negative_class=data.negative_class,
        has_group_folders=data.group_by == "folder",
        by_grade=data.task == "grade",
        image_size=data.image_size,
        num_images=data.synthetic.num_images,
        positive_fraction=data.synthetic.positive_fraction,
        lesions=data.synthetic.lesions,
        seed=data.synthetic.seed,
    )


def load_dataset(
    data: DataConfig,
    loss: LossConfig,
    reporter: Reporter,
    known: SubsetTable | None,
    *,
    check_reader: Callable[[Reader], None] = lambda reader: None,
    statistics: ChannelStatistics | None = None,
) -> Dataset:
    """Read and cache the data, with the subsets of a table or drawn; report what was omitted.

    ``check_reader`` may refuse the data before it is read. ``statistics`` are those of a trained
    network.

    Raises:
        UserError: the data cannot be used, is not that of the table, or the number of class weights
            is not that of classes.
    """
    reader = build_reader(data, partial(reporter.advance, "fetching data"))
    check_reader(reader)
    dataset = prepare_dataset(
        reader,
        image_size=data.image_size,
        contrast_window=data.local_contrast,
        cache_dir=data.cache_dir.expanduser(),
        validation_fraction=data.validation_fraction,
        test_fraction=data.test_fraction,
        split_seed=data.split_seed,
        cross_partition_duplicates=data.cross_partition_duplicates,
        conflicting_labels=data.conflicting_labels,
        group_by=data.group_by,
        group_gap_s=data.group_gap_s,
        folds=data.folds,
        fold=data.fold,
        known=known,
        assigns_new=data.new_images == "assign",
        allow_changed=data.allow_changed,
        statistics=statistics,
        report_progress=partial(reporter.advance, "reading images"),
    )
    num_weights = len(loss.class_weights or dataset.class_names)
    if num_weights != len(dataset.class_names):
        given = list(loss.class_weights or ())
        raise UserError(
            f"loss.class_weights = {given}: must have one weight for each of the"
            f" {len(dataset.class_names)} classes ({', '.join(dataset.class_names)})"
        )
    for note in dataset.notes:
        reporter.message(note)
    return dataset


def require_subset(dataset: Dataset, name: SubsetName) -> Subset:
    """Return one subset of the data.

    Raises:
        UserError: the subset is empty.
    """
    subset = dataset.subsets[name]
    if not len(subset):
        others = ", ".join(other for other, images in dataset.subsets.items() if len(images))
        raise UserError(
            f"--subset {name}: the data set has no {name} images; it has {others}: give"
            f" --subset {others.rpartition(' ')[2]}"
        )
    return subset


def require_monitored(dataset: Dataset, settings: TrainConfig) -> None:
    """Check that the validation subset has what decides which epoch is the best.

    Raises:
        UserError: it has no positives for PID, or one class alone for the AUROC.
    """
    labels = require_subset(dataset, "validation").labels
    has_one_class = len(np.unique(labels)) < 2
    for key, value, cannot, lack in (
        ("train.monitor", "val_pid", not (labels > 0).any(), "no positives"),
        ("train.monitor", "val_auroc", has_one_class, "one class only"),
        ("train.min_auroc", settings.min_auroc, has_one_class, "one class only"),
    ):
        if cannot and value in (settings.monitor, settings.min_auroc or None):
            raise UserError(
                f"{key} = {value}: cannot be measured, as the validation subset"
                f" ({len(labels)} images) has {lack}; change its images or {key}"
            )


def build_network(settings: ModelConfig, num_channels: int, num_classes: int, *, seed: int) -> LABN:
    """Build an untrained network whose weights are drawn from a seed."""
    torch.manual_seed(seed)
    return build_model(
        settings.backbone,
        num_classes=num_classes,
        in_channels=num_channels,
        split=settings.split,
        theta_alpha=settings.theta_alpha,
        branch_width=settings.branch_width,
        branch=settings.branch,
        residual_attention=settings.residual_attention,
    )


def build_initial_network(
    settings: ModelConfig, dataset: Dataset, reporter: Reporter, *, seed: int
) -> LABN:
    """Build the network that training starts from, with pretrained weights if configured."""
    model = build_network(settings, dataset.num_channels, len(dataset.class_names), seed=seed)
    if settings.pretrained is not None:
        path = settings.pretrained.expanduser()
        if path.is_dir():
            path = RunFolder(path).best_file
        report = load_pretrained(model, path, at_least=settings.pretrained_at_least)
        reporter.message(f"{settings.pretrained}: {report}")
    return model


def restore_network(best: ModelCheckpoint, settings: ModelConfig) -> LABN:
    """Rebuild a trained network from its checkpoint.

    Raises:
        UserError: the settings describe another network.
    """
    # The seed does not matter: every initial weight is replaced.
    model = build_network(settings, best["num_channels"], len(best["class_names"]), seed=0)
    try:
        model.load_state_dict(best["model"])
    except RuntimeError:
        trained = ", ".join(f"{key}={value}" for key, value in best["config"]["model"].items())
        raise UserError(
            f"model = {settings}: is not the network that was trained ({trained});"
            " leave backbone, split and branch_width as they were"
        ) from None
    return model


def place_network(model: LABN, device: torch.device, *, channels_last: bool) -> LABN:
    """Move a network to its device, its convolution weights into channels-last order if asked."""
    model = model.to(device)
    if channels_last:
        for parameter in model.parameters():
            # Module.to(memory_format=...) fails on the five axes of the position kernels.
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def build_objective(
    loss: LossConfig, statistics: ChannelStatistics, device: torch.device, *, has_branch: bool
) -> Objective:
    """Build the loss of eq. 8 from the settings and the data set's bias image.

    Without an attention branch it is the perception branch's cross-entropy alone.
    """
    weights, own = loss.class_weights, 1.0 if has_branch else 0.0
    return Objective(
        bias_image=statistics.bias_image.to(device),
        theta_b=loss.theta_b,
        mask_rule=loss.mask_rule,
        lambda_lab=own * loss.lambda_lab,
        lambda_kl=own * loss.lambda_kl,
        lambda_area=own * loss.lambda_area,
        masked_statistics=loss.masked_statistics,
        class_weights=torch.tensor(weights, device=device) if weights else None,
    )


def training_batches(
    dataset: Dataset,
    data: DataConfig,
    train: TrainConfig,
    device: torch.device,
    group: Group = SINGLE,
) -> TrainingBatches:
    """Build the training batches, or this rank's share of them."""
    return TrainingBatches(
        require_subset(dataset, "train"),
        dataset.statistics,
        batch_size=train.batch_size,
        seed=train.seed,
        bias_copies=data.bias_copies,
        balanced=train.balanced_sampling,
        augment=Augmentation(**data.augment.model_dump()),
        device=device,
        on_device=data.on_device,
        shard=group.share,
    )


def evaluation_batches(
    subset: Subset, statistics: ChannelStatistics, config: Config, device: torch.device
) -> EvaluationBatches:
    """Build the batches of a subset for validation and evaluation."""
    return EvaluationBatches(
        subset, statistics, config.validation.batch_size, device, config.data.on_device
    )


def faithfulness(
    settings: ValidationConfig, epoch: int, num_positives_before: int = 0
) -> Faithfulness:
    """Return the PID settings of an epoch, counted from 1.

    ``num_positives_before`` positives belong to lower ranks.
    """
    limit = settings.pid_max_images
    num_points = settings.pid_num_points
    num_halvings = sum(epoch < start for start in settings.pid_growth_epochs)
    coarse = max((num_points - 1) >> num_halvings, _MIN_INTERVALS) + 1
    return Faithfulness(
        patch_size=settings.pid_patch_size,
        num_points=min(coarse, num_points),
        max_positives=None if limit is None else max(0, limit - num_positives_before),
        frame_batch_size=settings.batch_size,
        centre=settings.pid_centre,
    )
