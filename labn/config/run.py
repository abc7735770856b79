"""The keys of a run: types, ranges and defaults."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from labn.config.section import (
    ConfigProblem,
    Count,
    Fraction,
    InnerFraction,
    Integer,
    Location,
    NonNegative,
    Number,
    Positive,
    Section,
    Whole,
    keys_of,
)
from labn.errors import did_you_mean
from labn.model.architectures import PLANS
from labn.storage.remote import address_error, is_remote, without_secrets

SectionName = Literal["lfe", "lab", "lpb", "stem", "stage1", "stage2", "stage3", "stage4"]
"""A section of the network; see ``LABN.sections``."""


DEFAULT_CACHE = Path("~/.cache/labn")


class AugmentConfig(Section):
    """Random changes of each training image, drawn again in every epoch."""

    horizontal_flip: bool = True
    """Mirror half of the images, left to right."""
    vertical_flip: bool = False
    """Mirror half of the images, top to bottom."""
    rotation_deg: Annotated[Number, Field(ge=0, le=180)] = 0.0
    """Largest rotation, either way, in degrees."""
    zoom: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Largest relative change of size: 0.1 scales by 0.9 to 1.1."""
    brightness: NonNegative = 0.0
    """Largest shift, in standard deviations of the training pixels."""
    contrast: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Largest relative change of the distance from the image's mean."""
    colour: NonNegative = 0.0
    """Largest shift of each channel by itself, in standard deviations of the training pixels."""


class SyntheticConfig(Section):
    """The embedded synthetic fundus set."""

    num_images: Annotated[Integer, Field(ge=20)] = 400
    """Images to make."""
    positive_fraction: InnerFraction = 0.5
    """Share of them with lesions."""
    lesions: Literal["plain", "varied"] = "plain"
    """Large spots of two kinds; or four kinds, from tiny to large, as in photographs."""
    seed: Whole = 0
    """Seed of the images."""


class DataConfig(Section):
    """The images, their subsets, and their processing for training."""

    name: Literal["idrid", "magnetograms", "folder", "synthetic"]
    """The kind of data set; `folder` has one folder of images per class."""
    root: Location | None = None
    """The folder of the data; s3:// or gs:// is mirrored into `cache_dir`."""
    negative_class: str | None = None
    """For `folder`: the folder of class 0; None: one with a name such as `negative` or `normal`."""
    task: Literal["binary", "grade"] = "binary"
    """For `idrid`: `grade` learns its five grades; `binary` whether there is any retinopathy."""
    image_size: Annotated[Integer, Field(ge=16)] = 224
    """Side in pixels to which every image is resized."""
    local_contrast: Annotated[Number, Field(gt=0, le=0.25)] | None = None
    """For fundus photographs: the network sees the difference of images from their local mean over
    a window of this share of the image's side, such as 0.06 (Graham 2015); null: the images."""
    cache_dir: Path = DEFAULT_CACHE
    """The folder for decoded images, which every run on the same data shares."""
    validation_fraction: InnerFraction = 0.2
    """Share of the training images used for validation, if the data set has no such subset."""
    test_fraction: InnerFraction = 0.2
    """The same for testing, if the data set has no subsets at all."""
    split_seed: Whole = 0
    """Seed of the drawing of subsets, apart from `train.seed`."""
    group_by: str | None = "auto"
    """Groups that no split separates: `time` (images taken within `group_gap_s` of one another),
    `folder`, or `FILE:COLUMN` of a table; null: none, as in the paper; auto: `time` for `idrid`."""
    group_gap_s: Positive = 120.0
    """Seconds without a capture that end a group of `time`."""
    folds: Annotated[Integer, Field(ge=2)] | None = None
    """Number of stratified, grouped folds of the training images; one of them validates."""
    fold: Whole = 0
    """The fold that validates, from 0."""
    split_file: Path | None = None
    """A table of subsets that `labn data split` has written; None: subsets are drawn, and stored in
    the run's `data.csv`."""
    new_images: Literal["ignore", "assign"] = "ignore"
    """What to do with images that the run's `data.csv`, or `split_file`, does not name."""
    allow_changed: bool = False
    """Continue although images of that table are missing, which are left out, or have changed,
    which are used as they are; `--allow-changed-data` sets it for one command."""
    cross_partition_duplicates: Literal["drop_train", "keep", "error"] = "drop_train"
    """What to do with a training image whose identical copy is in the test subset."""
    conflicting_labels: Literal["drop", "keep", "error"] = "drop"
    """What to do with identical training images that carry different labels."""
    bias_copies: Whole = 1
    """Copies of the bias image in an epoch, as negatives; 0 leaves it out of the training set."""
    on_device: Literal["auto", "always", "never"] = "auto"
    """Keep all images in the GPU's memory; auto: where they take at most a quarter of it."""
    augment: AugmentConfig = AugmentConfig()
    synthetic: SyntheticConfig = SyntheticConfig()


class ModelConfig(Section):
    """The network."""

    backbone: str = "lambda_resnet50"
    """lambda_resnet50, 26, 38, 101 or 152; lambda_cnn; resnet50 or resnet26 (convolutions)."""
    split: Whole = 7
    """B of the paper: the number of bottlenecks before the attention branch."""
    theta_alpha: Fraction = 0.75
    """Attention at or below it becomes 0 before the perception branch (eq. 2)."""
    branch_width: Count | None = None
    """Inner width of the attention branch's bottlenecks; None: the channels of its input."""
    branch: Literal["attention", "none"] = "attention"
    """`none` leaves the attention branch and its losses out, for a plain network."""
    residual_attention: bool = False
    """The perception branch sees (1 + alpha') * h_LFE, as in Fukui 2019, not alpha' * h_LFE."""
    pretrained: Path | None = None
    """A checkpoint, or a run's folder, whose tensors are used where name and shape agree."""
    pretrained_at_least: Fraction = 0.5
    """Share of the backbone's tensors that `pretrained` must have."""


class LossConfig(Section):
    """Eq. 8: CE(LPB) + lambda_lab CE(LAB) + lambda_kl KL; and lambda_area times the mean alpha~."""

    theta_b: Fraction = 0.2
    """Size of the mask of L_KL's masked image x~ (eq. 12); see `mask_rule`."""
    mask_rule: Literal["share", "threshold"] = "share"
    """The pixels that x~ keeps: the share theta_b with the largest alpha~, or all with alpha~ above
    theta_b (eq. 12 to the letter)."""
    lambda_lab: NonNegative = 1.0
    """Weight of the attention branch's cross-entropy."""
    lambda_kl: NonNegative = 1.0
    """Weight of the divergence between the classes of x and x~; 0 leaves that pass out."""
    lambda_area: NonNegative = 0.0
    """A penalty on the attended area, by the mean of alpha~; not in the paper."""
    masked_statistics: bool = True
    """Let the pass of x~ update batch norm's running statistics, as an ordinary pass does. With
    `mask_rule: share` four fifths of x~ are the bias image: validation, which uses the running
    statistics on whole images, then sees another network than training."""
    class_weights: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    """Weight of each class in the cross-entropies, in the order of the classes."""


class TrainConfig(Section):
    """Optimisation and checkpoints."""

    epochs: Count = 100
    """Passes over the training subset, at most."""
    batch_size: Annotated[Integer, Field(ge=2)] = 32
    """Images in one step, over all workers."""
    seed: Whole = 0
    """Seed of initial weights, order and augmentation."""
    learning_rate_head: Positive = 1e-3
    """Learning rate of the attention branch and the linear layer."""
    learning_rate_backbone: Positive = 1e-4
    """Learning rate of all other parameters."""
    weight_decay: NonNegative = 0.09
    """Of AdamW."""
    warmup_epochs: NonNegative = 5.0
    """Epochs in which the learning rates rise from 0; a cosine follows."""
    monitor: Literal["val_loss", "val_pid", "val_auroc"] = "val_loss"
    """The metric that decides which epoch is the best; early stopping follows it."""
    min_auroc: Fraction = 0.0
    """`val_auroc` that the best epoch must reach, if any epoch does."""
    min_accuracy: Fraction = 0.0
    """`val_accuracy` that the best epoch must reach, if any epoch does."""
    early_stopping_patience: Count | None = 6
    """Epochs in a row without a better one, after the warm-up; None: train to the end."""
    freeze: tuple[SectionName, ...] = ()
    """Sections whose weights and statistics stay as they are: lfe, lab, lpb, stem, stage1 ..."""
    balanced_sampling: bool = False
    """Draw each class equally often."""
    accumulation_steps: Count = 1
    """Parts in which a batch is computed, to save memory."""
    recompute: Literal["none", "blocks"] = "none"
    """Keep only the inputs of bottlenecks for the backward pass: less memory, slower steps."""
    gradient_clip: Positive | None = None
    """Largest norm of the gradient."""
    ema_decay: InnerFraction | None = None
    """Decay of an average of the weights, which is then what is validated and kept."""
    precision: Literal["auto", "float32", "tf32", "bf16"] = "auto"
    """Of products and activations; auto: bf16 on GPUs that have it, float32 elsewhere."""
    force_precision: bool = False
    """Take bf16 even where no instruction computes in it."""
    channels_last: bool = True
    """Keep the channels of a pixel together in memory, which is faster."""
    compile: bool = False
    """Compile the network, once for each size of batch: minutes before a run, faster steps."""
    cuda_graphs: bool = False
    """Record the compiled network's kernels once and launch them together; needs `compile`."""
    device: str = "auto"
    """cpu, cuda or cuda:N; auto: a GPU if there is one."""
    checkpoint_steps: Count | None = None
    """Steps between checkpoints within an epoch; one is always written at its end."""
    keep_checkpoints: Count = 2
    """Number of newest checkpoints to keep, in the run's folder and in storage."""
    storage: Location | None = None
    """A second folder for checkpoints: a path, s3:// or gs://; a machine whose `output_dir` is
    empty resumes from there."""
    log_steps: Count = 10
    """Steps between readings of the loss (each waits for the device)."""


class ValidationConfig(Section):
    """The measurements of each epoch besides the loss."""

    batch_size: Count = 64
    """Images, and frames of PID, in one pass."""
    pid_patch_size: Count = 16
    """Side m of a patch, in pixels of the resized image."""
    pid_num_points: Annotated[Integer, Field(ge=2)] = 17
    """Points of each curve."""
    pid_growth_epochs: tuple[Count, ...] = ()
    """Epochs at which the number of intervals of a curve doubles; after the last, all points."""
    pid_max_images: Count | None = None
    """Score only the first positives by name; None: all."""
    pid_centre: bool = False
    """Score a centred Gaussian too, for `val_pid_over_centre`: how much better the attention is, at
    matched confidence."""


BEST_FILE = "checkpoints/best.pt"
"""The file in a run's folder with its best epoch's network."""

TRACKER_FILE = "tracker.json"
"""The file in an output folder with the tracker's address and the entry there."""


def default_tracking_uri() -> str:
    """Return the default address of the tracker: the environment's, or a file's."""
    return os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


class TrackingConfig(Section):
    """The tracker of runs; ``uri: none`` for no tracking."""

    uri: str = Field(default_factory=default_tracking_uri)
    """Default: ``MLFLOW_TRACKING_URI`` of the environment, else ``sqlite:///mlflow.db``."""
    experiment: str | None = None
    """None: ``labn/<data set>``."""
    run_name: str | None = None
    """None: the name of `output_dir`."""
    parent_run_id: str | None = None
    """The tracker's run that lists this one, as a search lists its trials."""
    log_model: bool = True
    """Log the best network in a form that MLflow serves."""


class Config(Section):
    """The settings of one run. Its files go to ``output_dir``."""

    data: DataConfig
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    validation: ValidationConfig = ValidationConfig()
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    output_dir: Path
    """The folder of the run's files; the same folder again resumes the run."""

    @model_validator(mode="after")
    def _check_relations(self) -> Config:
        if self.model.backbone not in PLANS:
            raise ConfigProblem(
                "model.backbone",
                self.model.backbone,
                f"must be one of {', '.join(PLANS)}.{did_you_mean(self.model.backbone, PLANS)}",
            )
        num_bottlenecks = PLANS[self.model.backbone].num_bottlenecks
        if self.model.split > num_bottlenecks:
            raise ConfigProblem(
                "model.split",
                self.model.split,
                f"must be 0 to {num_bottlenecks}, the bottlenecks of {self.model.backbone}",
            )
        self._check_folds()
        self._check_branch()
        for key, place in (("data.root", self.data.root), ("train.storage", self.train.storage)):
            if place is not None and is_remote(place) and (fault := address_error(str(place))):
                raise ConfigProblem(key, without_secrets(str(place)), fault)
        if self.data.name != "synthetic" and self.data.root is None:
            raise ConfigProblem(
                "data.root",
                None,
                f"{self.data.name} needs the folder of its images; give data.root=PATH",
            )
        if self.data.task == "grade" and self.data.name != "idrid":
            raise ConfigProblem(
                "data.task", "grade", f"{self.data.name} has no grades; leave data.task=binary"
            )
        if self.train.accumulation_steps > self.train.batch_size:
            raise ConfigProblem(
                "train.accumulation_steps",
                self.train.accumulation_steps,
                f"must not exceed train.batch_size ({self.train.batch_size})",
            )
        if self.train.cuda_graphs and not self.train.compile:
            raise ConfigProblem(
                "train.cuda_graphs", True, "needs the compiled network; set train.compile=true"
            )
        if self.train.recompute != "none" and self.train.compile:
            raise ConfigProblem(
                "train.recompute",
                self.train.recompute,
                "is not for a compiled network; set train.compile=false or train.recompute=none",
            )
        if self.data.local_contrast is not None and self.data.name == "magnetograms":
            raise ConfigProblem(
                "data.local_contrast",
                self.data.local_contrast,
                "takes dark for what is not an image, as beside an eye, which magnetograms have"
                " within; set data.local_contrast=null",
            )
        if self.validation.pid_patch_size > self.data.image_size:
            raise ConfigProblem(
                "validation.pid_patch_size",
                self.validation.pid_patch_size,
                f"must not exceed data.image_size ({self.data.image_size})",
            )
        return self

    def _check_branch(self) -> None:
        plan = PLANS[self.model.backbone]
        for name in self.train.freeze:
            if name.startswith("stage") and int(name[-1]) > len(plan.stage_depths):
                raise ConfigProblem(
                    "train.freeze",
                    list(self.train.freeze),
                    f"{self.model.backbone} has {len(plan.stage_depths)} stages",
                )
        if {"lfe", "lpb"} <= {*self.train.freeze} and (
            "lab" in self.train.freeze or self.model.branch == "none"
        ):
            raise ConfigProblem("train.freeze", list(self.train.freeze), "leaves nothing to train")
        if self.model.branch == "none":
            for key, value, is_of_branch in (
                ("train.monitor", "val_pid", self.train.monitor == "val_pid"),
                ("train.freeze", list(self.train.freeze), "lab" in self.train.freeze),
                ("model.residual_attention", True, self.model.residual_attention),
            ):
                if is_of_branch:
                    raise ConfigProblem(
                        key,
                        value,
                        "is the attention branch's, which model.branch = none leaves out",
                    )

    def _check_folds(self) -> None:
        data = self.data
        if data.group_by not in (None, "auto", "time", "folder") and ":" not in data.group_by:
            raise ConfigProblem(
                "data.group_by", data.group_by, "must be auto, time, folder, FILE:COLUMN or null"
            )
        if data.group_by == "folder" and data.name != "folder":
            raise ConfigProblem("data.group_by", "folder", f"{data.name} has no folders of groups")
        if data.fold >= (data.folds or 1):
            raise ConfigProblem("data.fold", data.fold, f"must be below data.folds ({data.folds})")


EARLIER_VALUES: dict[str, Any] = {
    "data.allow_changed": False,
    "data.augment.colour": 0.0,
    "data.fold": 0,
    "data.folds": None,
    "data.group_by": None,
    "data.group_gap_s": 120.0,
    "data.local_contrast": None,
    "data.new_images": "ignore",
    "data.on_device": "never",
    "data.split_file": None,
    "data.synthetic.lesions": "plain",
    "data.task": "binary",
    "loss.lambda_area": 0.0,
    "loss.mask_rule": "threshold",
    "loss.masked_statistics": True,
    "model.branch": "attention",
    "model.pretrained_at_least": 0.0,
    "model.residual_attention": False,
    "train.cuda_graphs": False,
    "train.force_precision": False,
    "train.freeze": [],
    "train.min_accuracy": 0.0,
    "train.min_auroc": 0.0,
    "train.monitor": "val_loss",
    "train.precision": "float32",
    "train.recompute": "none",
    "validation.pid_centre": False,
}
"""For each key that is newer than the first release, or had another default, what that one did."""


def known_keys() -> list[str]:
    """Return every key of a run, dotted."""
    return list(keys_of(Config))
