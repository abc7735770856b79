from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from labn.config import Config, flatten, known_keys, load_config
from labn.errors import UserError

SMALLEST = "data:\n  name: synthetic\noutput_dir: runs/test\n"


def write(folder, text):
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def message_for(path, *overrides):
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_file_with_a_data_set_and_a_place_is_enough(tmp_path):
    config = load_config(write(tmp_path, SMALLEST))
    assert config.data.name == "synthetic" and config.output_dir == Path("runs/test")
    # Table 1 of the paper, for IDRiD.
    assert (config.model.backbone, config.model.split) == ("lambda_resnet50", 7)
    assert (config.model.theta_alpha, config.loss.theta_b) == (0.75, 0.2)
    assert config.data.bias_copies == 1


def test_the_keys_that_others_rely_on_exist():
    relied_on = {
        "data.name",
        "data.root",
        "data.image_size",
        "model.backbone",
        "model.split",
        "model.theta_alpha",
        "loss.theta_b",
        "loss.lambda_lab",
        "loss.lambda_kl",
        "loss.class_weights",
        "train.epochs",
        "train.batch_size",
        "train.seed",
        "tracking.uri",
        "output_dir",
    }
    assert relied_on <= set(known_keys())


def test_the_known_keys_are_those_of_a_written_configuration(tmp_path):
    config = load_config(write(tmp_path, SMALLEST))
    assert list(flatten(config.model_dump())) == known_keys()


@pytest.mark.parametrize("key", ["data.name", "train.epochs", "data.augment.zoom"])
def test_every_known_key_can_be_overridden(tmp_path, key):
    values = {"data.name": "synthetic", "train.epochs": 3, "data.augment.zoom": 0.25}
    config = load_config(write(tmp_path, SMALLEST), [f"{key}={values[key]}"])
    assert flatten(config.model_dump())[key] == values[key]


def test_a_configuration_cannot_be_changed(tmp_path):
    config = load_config(write(tmp_path, SMALLEST))
    with pytest.raises(ValidationError):
        config.train.epochs = 3
    with pytest.raises(ValidationError):
        config.output_dir = Path("elsewhere")


# Each case: the key, its value, the rule and the fix, as in the message.
WRONG_VALUES = [
    ("train.epochs", "1.5", "must be a valid integer; for example train.epochs=100"),
    ("train.epochs", "many", "must be a valid integer; for example train.epochs=100"),
    ("train.epochs", "0", "must be greater than or equal to 1; for example train.epochs=100"),
    ("train.epochs", "null", "must be a valid integer; for example train.epochs=100"),
    ("train.epochs", "true", "must not be true or false; for example train.epochs=100"),
    ("train.epochs", "2020-01-01", "must be a valid integer; for example train.epochs=100"),
    ("train.batch_size", "1", "must be greater than or equal to 2"),
    ("train.weight_decay", "-1", "must be greater than or equal to 0"),
    ("train.learning_rate_head", "fast", "must be a valid number"),
    ("train.learning_rate_head", "0", "must be greater than 0"),
    ("train.learning_rate_head", "false", "must not be true or false"),
    ("train.learning_rate_head", ".inf", "must be a finite number"),
    ("train.channels_last", "maybe", "must be true or false; for example train.channels_last=true"),
    ("train.precision", "fp16", 'must be one of auto, float32, tf32, bf16. Did you mean "bf16"?'),
    ("model.theta_alpha", "1.5", "must be less than or equal to 1; for example model.theta_alpha"),
    ("model.theta_alpha", "-0.5", "must be greater than or equal to 0"),
    ("model.theta_alpha", ".nan", "must be "),
    ("data.fold", "1", "must be below data.folds (None)"),
    ("data.group_by", "patient", "must be auto, time, folder, FILE:COLUMN or null"),
    ("data.group_by", "folder", "synthetic has no folders of groups"),
    ("data.task", "grade", "synthetic has no grades; leave data.task=binary"),
    ("loss.theta_b", "75", "must be less than or equal to 1; for example loss.theta_b=0.2"),
    ("model.split", "17", "must be 0 to 16, the bottlenecks of lambda_resnet50"),
    ("model.split", "-1", "must be greater than or equal to 0; for example model.split=7"),
    ("model.backbone", "lambda_resnet51", 'Did you mean "lambda_resnet50"?'),
    ("model.backbone", "vgg", "must be one of lambda_cnn, "),
    ("model.backbone", "50", "must be text (digits go in quotes)"),
    (
        "data.name",
        "idird",
        'must be one of idrid, magnetograms, folder, synthetic. Did you mean "id',
    ),
    ("data.image_size", "8", "must be greater than or equal to 16"),
    ("data.local_contrast", "0", "must be greater than 0"),
    ("data.local_contrast", "0.5", "must be less than or equal to 0.25"),
    ("data.validation_fraction", "1", "must be less than 1"),
    ("loss.class_weights", "2", "must be a list, such as [1, 2]"),
    ("loss.class_weights", "[1, 0]", "must be greater than 0"),
    ("loss.class_weights", "[1, 'a']", "must be a valid number"),
    ("train.accumulation_steps", "64", "must not exceed train.batch_size (32)"),
    ("train.cuda_graphs", "true", "needs the compiled network; set train.compile=true"),
    ("validation.pid_patch_size", "500", "must not exceed data.image_size (224)"),
    ("output_dir", "2024", "must be a path (digits go in quotes)"),
]


def nested(key, value):
    """Add one key to the smallest file, under its section."""
    section, _, leaf = key.rpartition(".")
    if key == "output_dir":
        return SMALLEST.replace("runs/test", value)
    if key == "data.name":
        return SMALLEST.replace("synthetic", value)
    if section == "data":
        return SMALLEST.replace("synthetic\n", f"synthetic\n  {leaf}: {value}\n")
    return f"{SMALLEST}{section}:\n  {leaf}: {value}\n"


def test_a_compiled_network_recomputes_no_blocks(tmp_path):
    message = message_for(write(tmp_path, SMALLEST), "train.compile=true", "train.recompute=blocks")
    assert "train.recompute = blocks: is not for a compiled network" in message


@pytest.mark.parametrize(("key", "value", "rule"), WRONG_VALUES)
@pytest.mark.parametrize("source", ["file", "command line"])
def test_a_wrong_value_is_named_with_its_source_key_rule_and_fix(
    tmp_path, source, key, value, rule
):
    if source == "file":
        path = write(tmp_path, nested(key, value))
        message = message_for(path)
        assert message.startswith(f"{path}: ")
    else:
        message = message_for(write(tmp_path, SMALLEST), f"{key}={value}")
        assert message.startswith("command line: ")
    assert f": {key} = {value.removeprefix('.')}: " in message
    assert rule in message


UNKNOWN_KEYS = [
    ("train.epoch", "train.epochs"),
    ("trian.epochs", "train.epochs"),
    ("epochs", "train.epochs"),
    ("seed", "train.seed"),
    ("batch_size", "train.batch_size"),
    ("train.lr", "train.learning_rate_head"),
    ("train.wd", "train.weight_decay"),
    ("train.learning_rate", "train.learning_rate_head"),
    ("train.patience", "train.early_stopping_patience"),
    ("model.theta_b", "loss.theta_b"),
    ("model.theta", "model.theta_alpha"),
    ("tracking.url", "tracking.uri"),
    ("mlflow.uri", "tracking.uri"),
    ("data.augment.zooom", "data.augment.zoom"),
    ("loss.lambda_k1", "loss.lambda_kl"),
]


@pytest.mark.parametrize(("key", "nearest"), UNKNOWN_KEYS)
def test_an_unknown_key_is_answered_with_the_nearest(tmp_path, key, nearest):
    expected = f'{key} = 3: unknown key. Did you mean "{nearest}"?'
    assert message_for(write(tmp_path, SMALLEST), f"{key}=3") == f"command line: {expected}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train:\n  epoch: 3\n", 'train.epoch = 3: unknown key. Did you mean "train.epochs"?'),
        ("trian:\n  epochs: 3\n", "trian = {'epochs': 3}: unknown key. Did you mean \"train\"?"),
        ("epochs: 3\n", 'epochs = 3: unknown key. Did you mean "train.epochs"?'),
        ("train.epochs: 3\n", "train.epochs = 3: must be nested: in a file, write epochs under tr"),
        ("model:\n  foo: 3\n", "model.foo = 3: unknown key. Known in model: backbone, split, thet"),
        ("foo: a\n", "foo = a: unknown key. Known: data, model, loss, train, validation, tracking"),
    ],
)
def test_an_unknown_key_of_a_file_is_named_with_the_file(tmp_path, text, expected):
    path = write(tmp_path, SMALLEST + text)
    assert message_for(path).startswith(f"{path}: {expected}")


@pytest.mark.parametrize("key", ["train.scheduler", "model.num_classes", "data.path", "model.B"])
def test_a_key_that_resembles_none_is_answered_with_those_of_its_section(tmp_path, key):
    message = message_for(write(tmp_path, SMALLEST), f"{key}=3")
    section = key.split(".")[0]
    assert f"unknown key. Known in {section}: " in message
    names = message.split(f"Known in {section}: ")[1].split(", ")
    assert set(names) == set(Config.model_fields[section].annotation.model_fields)


@pytest.mark.parametrize("key", ["gpu", "a.b.c", "x"])
def test_a_key_of_no_section_is_answered_with_the_sections(tmp_path, key):
    message = message_for(write(tmp_path, SMALLEST), f"{key}=3")
    assert message.endswith(f"Known: {', '.join(Config.model_fields)}")


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        (["train.freeze=[stage9]"], 'must be one of lfe, lab, lpb, .*Did you mean "stage'),
        (["train.freeze=[lfe, lab, lpb]"], "leaves nothing to train"),
        (["train.freeze=[lfe, lpb]", "model.branch=none"], "leaves nothing to train"),
        (["train.freeze=[stage2]", "model.backbone=lambda_cnn", "model.split=0"], "has 1 stages"),
        (["train.monitor=val_pid", "model.branch=none"], "model.branch = none leaves out"),
        (["train.freeze=[lab]", "model.branch=none"], "train.freeze = .*branch = none leaves out"),
        (
            ["model.residual_attention=true", "model.branch=none"],
            "model.branch = none leaves out",
        ),
    ],
)
def test_settings_that_leave_nothing_to_do_are_refused(tmp_path, overrides, rule):
    message = message_for(write(tmp_path, SMALLEST), *overrides)
    assert re.search(rule, message), message


def test_a_section_is_no_key(tmp_path):
    message = message_for(write(tmp_path, SMALLEST), "loss=3")
    expected = "loss = 3: must be one key of this section: theta_b, mask_rule, lambda_lab, lambda_"
    assert message.startswith(f"command line: {expected}")


@pytest.mark.parametrize(
    ("text", "shown"), [("loss: 3\n", "3"), ("loss:\n", "null"), ("loss: [1]\n", "[1]")]
)
@pytest.mark.parametrize("overrides", [[], ["train.epochs=3"]])
def test_a_section_with_a_value_of_its_own_is_refused(tmp_path, overrides, text, shown):
    path = write(tmp_path, SMALLEST + text)
    expected = f"{path}: loss = {shown}: must be a section, with keys of its own: theta_b, "
    assert message_for(path, *overrides).startswith(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("output_dir: a\n", "data: required section is missing; its keys: name, root, "),
        ("data: {}\noutput_dir: a\n", "data.name: required key is missing; add it to the file or"),
        ("data:\n  name: synthetic\n", "output_dir: required key is missing; add it to the file"),
        # The misspelt key, not the one that is missing because of it.
        ("data:\n  nam: idrid\noutput_dir: a\n", 'data.nam = idrid: unknown key. Did you mean "da'),
    ],
)
def test_a_missing_key_is_named(tmp_path, text, expected):
    path = write(tmp_path, text)
    assert message_for(path).startswith(f"{path}: {expected}")


def test_the_number_of_further_problems_is_reported(tmp_path):
    path = write(tmp_path, SMALLEST + "train:\n  epochs: 0\n  seed: -1\nloss:\n  theta_b: 3\n")
    assert message_for(path).endswith(" (and 2 more)")


def test_magnetograms_have_no_local_contrast(tmp_path):
    path = write(tmp_path, SMALLEST.replace("synthetic", "magnetograms"))
    message = message_for(path, "data.root=.", "data.local_contrast=0.06")
    assert "data.local_contrast = 0.06: takes dark for what is not an image" in message


@pytest.mark.parametrize("name", ["idrid", "magnetograms", "folder"])
def test_a_data_set_on_disk_needs_its_folder(tmp_path, name):
    path = write(tmp_path, SMALLEST.replace("synthetic", name))
    expected = f"data.root = null: {name} needs the folder of its images; give data.root=PATH"
    assert message_for(path) == f"{path}: {expected}"
