"""The configuration of a run: one frozen, validated tree, read from YAML and ``key=value``."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from labn.errors import UserError, did_you_mean
from labn.model.plans import PLANS

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class ConfigProblem(ValueError):
    """A rule that binds several keys is broken; ``key`` is the one to mend."""

    def __init__(self, key: str, value: object, rule: str) -> None:
        super().__init__(f"{key} = {value}: {rule}")
        self.key, self.value, self.rule = key, value, rule


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bool_for_others(cls, value: object, info: ValidationInfo) -> object:
        """Refuse true and false for numbers, which Python, and so Pydantic, takes for 1 and 0."""
        if (
            isinstance(value, bool)
            and cls.model_fields[str(info.field_name)].annotation is not bool
        ):
            raise ValueError("must not be true or false")
        return value


class AugmentConfig(_Section):
    """Random changes of each training image, drawn anew every epoch."""

    horizontal_flip: bool = True
    vertical_flip: bool = False
    rotation_deg: Annotated[float, Field(ge=0, le=180)] = 0.0
    zoom: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest relative change of size: 0.1 scales by 0.9 to 1.1."""
    brightness: Annotated[float, Field(ge=0)] = 0.0
    """Largest shift, in standard deviations of the training pixels."""
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest relative change of the distance from the image's mean."""


class SyntheticConfig(_Section):
    """The embedded synthetic fundus set."""

    num_images: Annotated[int, Field(ge=20)] = 400
    positive_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.5
    seed: Annotated[int, Field(ge=0)] = 0


class DataConfig(_Section):
    """Which images, how they are split, what training sees of them."""

    name: Literal["idrid", "magnetograms", "folder", "synthetic"]
    root: Path | None = None
    negative_class: str | None = None
    """Which folder of `folder` is class 0; none: one with a name such as `negative` or `normal`."""
    image_size: Annotated[int, Field(ge=16)] = 224
    cache_dir: Path = Path("~/.cache/labn")
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the training images set apart, where the data set names none for validation."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The same for testing, where the data set names no parts at all."""
    split_seed: Annotated[int, Field(ge=0)] = 0
    cross_partition_duplicates: Literal["drop_train", "keep", "error"] = "drop_train"
    """What to do with a training image whose identical copy is in the test part."""
    conflicting_labels: Literal["drop", "keep", "error"] = "drop"
    """What to do with identical training images that carry different labels."""
    bias_copies: Annotated[int, Field(ge=0)] = 1
    """Copies of the bias image in an epoch, as negatives; 0 leaves it out of the training set."""
    augment: AugmentConfig = AugmentConfig()
    synthetic: SyntheticConfig = SyntheticConfig()


class ModelConfig(_Section):
    """The network."""

    backbone: str = "lambda_resnet50"
    split: Annotated[int, Field(ge=0)] = 7
    """B of the paper: how many bottlenecks come before the attention branch."""
    theta_alpha: Fraction = 0.75
    branch_width: Count | None = None
    """Inner width of the attention branch's bottlenecks; none: the channels it is given."""
    pretrained: Path | None = None
    """A checkpoint whose tensors are taken over where name and shape agree."""


class LossConfig(_Section):
    """Eq. 8: CE(LPB) + lambda_lab CE(LAB) + lambda_kl KL."""

    theta_b: Fraction = 0.2
    lambda_lab: NonNegative = 1.0
    lambda_kl: NonNegative = 1.0
    class_weights: tuple[Positive, ...] | None = None


class TrainConfig(_Section):
    """Optimisation, and what is kept of it."""

    epochs: Count = 100
    batch_size: Annotated[int, Field(ge=2)] = 32
    """Images in one step, however many workers share them."""
    seed: Annotated[int, Field(ge=0)] = 0
    learning_rate_head: Positive = 1e-3
    """Of the attention branch and the linear layer."""
    learning_rate_backbone: Positive = 1e-4
    weight_decay: NonNegative = 0.09
    warmup_epochs: NonNegative = 5.0
    early_stopping_patience: Count | None = 6
    """Epochs in a row without a better validation loss; none trains to the end."""
    balanced_sampling: bool = False
    accumulation_steps: Count = 1
    """Parts in which one batch is computed, to save memory."""
    gradient_clip: Positive | None = None
    """Largest norm of the gradient."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    precision: Literal["float32", "bf16"] = "float32"
    channels_last: bool = True
    compile: bool = False
    device: str = "auto"
    checkpoint_steps: Count | None = None
    """Steps between checkpoints within an epoch; one is always written at an epoch's end."""
    keep_checkpoints: Count = 2
    log_steps: Count = 10
    """Steps between looks at the loss (each look waits for the device)."""


class ValidationConfig(_Section):
    """What each epoch measures besides the loss."""

    batch_size: Count = 64
    pid_patch_size: Count = 16
    pid_num_points: Annotated[int, Field(ge=2)] = 17
    pid_max_images: Count | None = None
    """Positives that are scored, the first by name; none: all of them."""


class TrackingConfig(_Section):
    """Where runs are logged; ``uri: none`` logs nowhere."""

    uri: str = "sqlite:///mlflow.db"
    experiment: str | None = None
    """None: ``labn/<data set>``."""
    run_name: str | None = None
    log_model: bool = True


class Config(_Section):
    """All settings of one run. The run's files go to ``output_dir``."""

    data: DataConfig
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    validation: ValidationConfig = ValidationConfig()
    tracking: TrackingConfig = TrackingConfig()
    output_dir: Path

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
        if self.data.name != "synthetic" and self.data.root is None:
            raise ConfigProblem(
                "data.root",
                None,
                f"{self.data.name} needs the folder of its images; give data.root=PATH",
            )
        if self.train.accumulation_steps > self.train.batch_size:
            raise ConfigProblem(
                "train.accumulation_steps",
                self.train.accumulation_steps,
                f"must not exceed train.batch_size ({self.train.batch_size})",
            )
        if self.validation.pid_patch_size > self.data.image_size:
            raise ConfigProblem(
                "validation.pid_patch_size",
                self.validation.pid_patch_size,
                f"must not exceed data.image_size ({self.data.image_size})",
            )
        return self


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply ``key=value`` overrides, and validate the whole.

    Raises:
        UserError: names file, key, value, rule and mend, on one line.
    """
    tree = _read_yaml(path)
    overridden = set()
    for override in overrides:
        key, value = _parse_override(override)
        _set_key(tree, key, value)
        overridden.add(key)
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(_describe(error, tree, path, overridden)) from None
    _check_paths(config, path, overridden)
    return config


def dump_config(config: Config) -> str:
    """Write a configuration as YAML that ``load_config`` reads back to the same."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested mappings into one, keyed by dotted paths."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def known_keys() -> list[str]:
    """List every key of the configuration, dotted."""
    return list(_walk(Config, ""))


def _walk(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _walk(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


class _StrictLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice, which PyYAML would silently take the last of."""


def _construct_mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        problem = None
        if key_node.tag != "tag:yaml.org,2002:str":
            problem = "a key must be plain text"
        elif key_node.value in seen:
            problem = f"the key {key_node.value!r} is given twice"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
        seen.add(key_node.value)
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a configuration ({error})") from None
    try:
        tree = yaml.load(text, _StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UserError(f"{path}: {where}not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        # ValueError: what looks like a date, and is none.
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(
            f"{path}: must hold keys and values, such as `output_dir: runs/demo` on a line"
        )
    return tree


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(
            f"command line: {override!r}: must be written key=value, such as train.epochs=20"
        )
    if key not in known_keys():
        raise UserError(f"command line: {key} = {_shown(text)}: {_unknown(key)}")
    try:
        return key, yaml.load(text, _StrictLoader)
    except (yaml.YAMLError, ValueError):
        raise UserError(
            f"command line: {key} = {_shown(text)}: must be valid YAML; put text in quotes"
        ) from None


def _set_key(tree: dict[str, Any], key: str, value: object) -> None:
    *parents, leaf = key.split(".")
    branch: Any = tree
    for parent in parents:
        if branch.get(parent) is None:
            branch[parent] = {}
        branch = branch[parent]
        if not isinstance(branch, dict):
            return  # validation will say that this must be a section
    branch[leaf] = value


def _sections() -> list[str]:
    """List the keys that hold others, dotted; "" holds all."""
    parents = (key.split(".")[:n] for key in known_keys() for n in range(key.count(".") + 1))
    return list(dict.fromkeys(".".join(parent) for parent in parents))


def _unknown(key: str) -> str:
    """Say why a key cannot be set, and which can."""
    if key in known_keys():
        section, _, leaf = key.rpartition(".")
        return f"must be nested: in a file, write {leaf} under {section}"
    if key in _sections():
        return f"must be one key of this section: {_listed(key)}"
    section = key.rpartition(".")[0]
    while section not in _sections():
        section = section.rpartition(".")[0]
    candidates = {*_sections(), *known_keys()} - {section, ""}
    nearest = max(sorted(candidates), key=lambda candidate: _likeness(key, candidate))
    if _likeness(key, nearest):
        return f'unknown key. Did you mean "{nearest}"?'
    return f"unknown key. Known{f' in {section}' if section else ''}: {_listed(section)}"


def _likeness(key: str, other: str) -> float:
    """Score how likely one key was written for the other; 0 for too little."""
    leaf, other_leaf = key.rpartition(".")[2], other.rpartition(".")[2]
    whole = difflib.SequenceMatcher(None, key, other).ratio()
    last = difflib.SequenceMatcher(None, leaf, other_leaf).ratio()
    is_part = len(leaf) > 2 and leaf in other_leaf
    initials = "".join(word[:1] for word in other_leaf.split("_"))
    is_short = len(leaf) > 1 and initials.startswith(leaf)
    is_alike = last >= 0.75 or (last > 0.6 and whole > 0.8)
    return 2 * whole + last if is_part or is_short or is_alike else 0.0


def _listed(section: str) -> str:
    """List the names of the keys and sections directly in a section."""
    prefix = f"{section}." if section else ""
    inside = (key.removeprefix(prefix) for key in known_keys() if key.startswith(prefix))
    return ", ".join(dict.fromkeys(key.split(".")[0] for key in inside))


def _describe(
    error: ValidationError, tree: Mapping[str, Any], path: Path, overridden: set[str]
) -> str:
    """Say one thing that is wrong in one line, and how many more there are."""
    # A misspelt key often makes another one missing: it is the one to name.
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    if isinstance(cause := first.get("ctx", {}).get("error"), ConfigProblem):
        key, value, rule = cause.key, cause.value, cause.rule
    else:
        key = _key_of(first)
        value = flatten(tree).get(key, first["input"])
        rule = _rule(first, key)
    source = "command line" if key in overridden else str(path)
    shown = "" if first["type"] == "missing" else f" = {_shown(value)}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{source}: {key}{shown}: {rule}{more}"


def _key_of(problem: ErrorDetails) -> str:
    """Name what the user wrote: without the member of a union or tuple that did not fit."""
    parts = [str(part) for part in problem["loc"]]
    whole = ".".join(parts)
    if problem["type"] == "extra_forbidden":
        return whole
    known = {*known_keys(), *_sections()}
    return next(
        (key for n in range(len(parts), 0, -1) if (key := ".".join(parts[:n])) in known), whole
    )


def _shown(value: object) -> str:
    """Write a value on one line, as YAML has it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return " ".join(str(value).split())


_WANTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "path_type": "a path (digits go in quotes)",
    "string_type": "text (digits go in quotes)",
    "tuple_type": "a list, such as [1, 2]",
}
"""What must be, by Pydantic's name of the error, where its own words are for programmers."""


def _rule(problem: ErrorDetails, key: str) -> str:
    kind = problem["type"]
    if kind == "extra_forbidden":
        return _unknown(key)
    if kind == "model_type":
        return f"must be a section, with keys of its own: {_listed(key)}"
    if kind == "missing" and key in _sections():
        return f"required section is missing; its keys: {_listed(key)}"
    if kind == "missing":
        return f"required key is missing; add it to the file or give {key}=VALUE"
    if kind == "literal_error":
        options = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
        nearest = did_you_mean(str(problem["input"]), options)
        return f"must be one of {', '.join(options)}.{nearest}"
    default = _default(key)
    example = "" if default is None else f"; for example {key}={_shown(default)}"
    if kind == "value_error":
        return problem["msg"].removeprefix("Value error, ") + example
    wanted = _WANTED.get(kind, problem["msg"].removeprefix("Input should be "))
    return f"must be {wanted}{example}"


def _default(key: str) -> object:
    section: type[BaseModel] = Config
    *parents, leaf = key.split(".")
    for parent in parents:
        annotation = (
            section.model_fields[parent].annotation if parent in section.model_fields else None
        )
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return None
        section = annotation
    field = section.model_fields.get(leaf)
    if field is None or field.is_required() or isinstance(field.default, BaseModel):
        return None
    return field.default


def _check_paths(config: Config, path: Path, overridden: set[str]) -> None:
    """Refuse paths that are named but not there, before any work is done."""
    for key, value, kind in (
        ("data.root", config.data.root, "folder"),
        ("model.pretrained", config.model.pretrained, "file"),
    ):
        if value is None:
            continue
        place = value.expanduser()
        if not (place.is_dir() if kind == "folder" else place.is_file()):
            source = "command line" if key in overridden else str(path)
            raise UserError(
                f"{source}: {key} = {value}: no such {kind} (looked in {Path.cwd()});"
                f" give {key}=PATH"
            )
