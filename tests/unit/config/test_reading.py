"""Files and overrides: one strict reader for a run, a search and a study."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from labn.config import dump_config, load_config, load_search, load_study, reading
from labn.errors import UserError

SMALLEST = "data:\n  name: synthetic\noutput_dir: runs/test\n"


def write(folder, text):
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def message_for(path, *overrides, load=load_config):
    with pytest.raises(UserError) as caught:
        load(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_overrides_beat_the_file(tmp_path):
    path = write(tmp_path, SMALLEST + "train:\n  epochs: 5\n  seed: 9\n")
    config = load_config(path, ["train.epochs=7", "loss.class_weights=[2, 1]"])
    assert (config.train.epochs, config.train.seed) == (7, 9)
    assert config.loss.class_weights == (2.0, 1.0)


def test_an_override_fixes_what_is_wrong_or_missing_in_the_file(tmp_path):
    path = write(tmp_path, "data:\n  name: synthetic\ntrain:\n  epochs: -5\n")
    config = load_config(path, ["train.epochs=6", "output_dir=elsewhere"])
    assert (config.train.epochs, config.output_dir) == (6, Path("elsewhere"))


@pytest.mark.parametrize("section", ["train:", "train: null", "train: {}"])
def test_an_override_fills_an_empty_section(tmp_path, section):
    config = load_config(write(tmp_path, SMALLEST + section), ["train.epochs=6"])
    assert config.train.epochs == 6


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "0.001", "1E-3"])
def test_a_number_may_be_written_with_an_exponent(tmp_path, text):
    path = write(tmp_path, SMALLEST + f"train:\n  learning_rate_head: {text}\n")
    assert load_config(path).train.learning_rate_head == 1e-3
    overridden = load_config(path, [f"train.learning_rate_backbone={text}"])
    assert overridden.train.learning_rate_backbone == 1e-3


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["loss.class_weights=[2, 1]", "train.early_stopping_patience=null", "data.cache_dir=~/c"],
        ["tracking.uri=none", "tracking.run_name='12'", "train.weight_decay=1e-8"],
    ],
)
def test_what_is_written_is_read_back_the_same(tmp_path, overrides):
    config = load_config(write(tmp_path, SMALLEST), overrides)
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config))
    assert load_config(again) == config


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "images").mkdir()
    path = write(tmp_path, "data:\n  name: folder\n  root: ~/images\noutput_dir: runs/test\n")
    assert load_config(path).data.root == Path("~/images")


def test_an_override_does_not_hide_a_wrong_section(tmp_path):
    path = write(tmp_path, SMALLEST + "loss: 3\n")
    assert message_for(path, "loss.theta_b=0.5").startswith(f"{path}: loss = 3: ")


@pytest.mark.parametrize("kind", ["absent", "file"])
def test_a_folder_that_does_not_exist_is_named_with_where_it_was_searched(
    tmp_path, monkeypatch, kind
):
    monkeypatch.chdir(tmp_path)
    if kind == "file":
        (tmp_path / "images").write_text("")
    path = write(tmp_path, "data:\n  name: folder\n  root: images\noutput_dir: a\n")
    expected = f"data.root = images: no such folder (looked in {tmp_path}); give data.root=PATH"
    assert message_for(path) == f"{path}: {expected}"
    assert message_for(path, "data.root=images") == f"command line: {expected}"


def test_a_checkpoint_to_start_from_must_be_there(tmp_path):
    message = message_for(write(tmp_path, SMALLEST), "model.pretrained=resnet50.pth")
    assert message.startswith("command line: model.pretrained = resnet50.pth: no such file")
    assert message.endswith("give model.pretrained=PATH")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SMALLEST + "output_dir: b\n", "line 4, column 1: not valid YAML: the key 'output_dir' is"),
        (
            SMALLEST + "train:\n  epochs: 1\n  epochs: 2\n",
            "line 6, column 3: not valid YAML: the key 'epochs' is given twice",
        ),
        (SMALLEST + "3: a\n", "line 4, column 1: not valid YAML: a key must be plain text"),
        (SMALLEST + "? [1]\n: a\n", "line 4, column 3: not valid YAML: a key must be plain text"),
        ("data: [1\n", "line 2, column 1: not valid YAML: "),
        ("data:\n\tname: idrid\n", "line 2, column 1: not valid YAML: "),
        ("data: name: idrid\n", "line 1, column 11: not valid YAML: "),
        (
            SMALLEST + "a: !!python/object/apply:os.system [ls]\n",
            "line 4, column 4: not valid YAML",
        ),
        (SMALLEST + "a: \x00\n", "not valid YAML: "),
        ("", "must hold keys and values, such as `output_dir: runs/demo`"),
        ("# nothing\n", "must hold keys and values, such as "),
        ("- a\n- b\n", "must hold keys and values, such as "),
        ("text\n", "must hold keys and values, such as "),
    ],
)
def test_a_file_that_is_no_configuration_is_named_with_the_location(tmp_path, text, expected):
    path = write(tmp_path, text)
    assert message_for(path).startswith(f"{path}: {expected}")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    absent = tmp_path / "absent.yaml"
    assert message_for(absent) == f"{absent}: no such configuration file"
    assert message_for(tmp_path).startswith(f"{tmp_path}: cannot be read as a configuration (")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert message_for(binary).startswith(f"{binary}: cannot be read as a configuration (")


@pytest.mark.parametrize("override", ["train.epochs", "--help", "=3", ""])
def test_an_override_without_key_or_value_is_shown_how_to_be_written(tmp_path, override):
    message = message_for(write(tmp_path, SMALLEST), override)
    expected = "overrides are written key=value, such as train.epochs=20"
    assert message == f"command line: {override!r}: {expected}"


@pytest.mark.parametrize("value", ["[1", "{a: ", "'open", "[*a]", "'a'b"])
def test_an_override_s_value_must_be_yaml(tmp_path, value):
    message = message_for(write(tmp_path, SMALLEST), f"tracking.run_name={value}")
    expected = f"tracking.run_name = {value.strip()}: must be valid YAML; put text in quotes"
    assert message == f"command line: {expected}"


@pytest.mark.parametrize(
    "text",
    [
        "eyes #2",
        "#2",
        "a: b",
        "*a",
        "%a",
        "@a",
        "- a",
        "=",
        "a=b",
        "<<",
        "2020-13-45",
        "010",
        "1:30",
    ],
)
def test_text_on_the_command_line_is_taken_as_it_looks(tmp_path, text):
    config = load_config(write(tmp_path, SMALLEST), [f"tracking.run_name={text}"])
    assert config.tracking.run_name == text


@pytest.mark.parametrize("value", ["010", "1:30", "0o10", "2020-01-01", "1:30.5", "-007"])
@pytest.mark.parametrize("is_override", [True, False])
def test_a_number_that_is_not_what_it_looks_like_is_refused(tmp_path, value, is_override):
    for key, kind in (("epochs", "integer"), ("weight_decay", "number")):
        text = SMALLEST if is_override else f"{SMALLEST}train:\n  {key}: {value}\n"
        given = [f"train.{key}={value}"] if is_override else []
        message = message_for(write(tmp_path, text), *given)
        advice = ", without leading zeros" if value in ("010", "-007") else ";"
        assert f"train.{key} = {value}: must be a valid {kind}{advice}" in message


@pytest.mark.parametrize(
    ("value", "number"), [("1_000", 1000), ("0x10", 16), ("+3", 3), (" 7 ", 7)]
)
def test_numbers_in_their_other_forms_are_kept(tmp_path, value, number):
    assert load_config(write(tmp_path, SMALLEST), [f"train.seed={value}"]).train.seed == number


def test_a_value_of_several_lines_is_shown_on_one(tmp_path):
    path = write(tmp_path, SMALLEST + 'model:\n  backbone: "lambda\\nresnet"\n')
    assert message_for(path).startswith(f"{path}: model.backbone = lambda resnet: must be one of")


RUN = {"data": {"name": "synthetic"}, "output_dir": "runs/test"}
MANY = {
    load_search: {
        "base": RUN,
        "space": {"loss.theta_b": {"type": "float", "low": 0.1, "high": 0.9}},
        "output_dir": "runs/test",
    },
    load_study: {"base": RUN, "conditions": {"full": {}}, "seeds": [0], "output_dir": "runs/test"},
}
READERS = [load_config, load_search, load_study]


def write_file(folder, load):
    return write(folder, yaml.safe_dump(MANY.get(load, RUN)))


@pytest.mark.parametrize(
    ("load", "override", "key"),
    [
        (load_config, "loss.class_weights=[{a: 1, a: 2}]", "a"),
        (load_search, "trial={cpus: 1, cpus: 2}", "cpus"),
        (load_search, "space={train.epochs: {type: int, low: 1, low: 2, high: 9}}", "low"),
        (load_study, "each_run={cpus: 1, cpus: 2}", "cpus"),
        (load_study, "conditions={a: {}, b: {}, a: {loss.lambda_kl: 0}}", "a"),
    ],
)
def test_a_key_given_twice_in_an_override_is_refused(tmp_path, load, override, key):
    message = message_for(write_file(tmp_path, load), override, load=load)

    where, _, text = override.partition("=")
    assert message == f"command line: {where} = {text}: the key {key!r} is given twice; keep one"


@pytest.mark.parametrize("load", READERS)
@pytest.mark.parametrize("second", [4, 3])
def test_an_override_given_twice_is_refused_and_both_are_named(tmp_path, load, second):
    overrides = ["train.epochs=3", f"train.epochs={second}"]

    message = message_for(write_file(tmp_path, load), *overrides, load=load)

    assert message == (
        f"command line: train.epochs = {second}: is also set by train.epochs = 3; keep one of the"
        " two"
    )


@pytest.mark.parametrize(
    ("load", "first", "second"),
    [
        (load_search, "trial.cpus=2", "trial={gpus: 1}"),
        (load_search, "trial={gpus: 1}", "trial.cpus=2"),
        (load_search, "fixed={train.epochs: 3}", "train.epochs=4"),
        (load_study, "train.epochs=4", "fixed={train.epochs: 3}"),
        (load_study, "each_run={gpus: 1}", "each_run.cpus=2"),
    ],
)
def test_overrides_that_set_the_same_are_refused_and_both_are_named(tmp_path, load, first, second):
    message = message_for(write_file(tmp_path, load), first, second, load=load)

    assert message.startswith("command line: ") and "is also set by " in message
    for key, _, _ in (first.partition("="), second.partition("=")):
        assert f"{key} = " in message


@pytest.mark.parametrize("load", [load_search, load_study])
def test_fixed_settings_are_joined_with_those_of_the_command_line(tmp_path, load):
    path = write_file(tmp_path, load)

    read = load(path, ["fixed={train.epochs: 3}", "train.seed=4"])

    assert read.fixed == {"train.epochs": 3, "train.seed": 4}


@pytest.mark.parametrize("load", READERS)
@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs=0", "train.epochs = 0: must be greater than or equal to 1; for example tr"),
        ("train.epochs=true", "train.epochs = true: must not be true or false"),
        ("train.weight_decay=.inf", "train.weight_decay = inf: must be a finite number"),
        ("data.root=nowhere", "data.root = nowhere: no such folder"),
        ("model.split=99", "model.split = 99: must be 0 to 16"),
        ("train.epochs=[1", "train.epochs = [1: must be valid YAML; put text in quotes"),
        ("train.epohcs=1", 'train.epohcs = 1: unknown key. Did you mean "train.epochs"?'),
    ],
)
def test_a_wrong_setting_of_a_run_is_attributed_to_the_command_line(
    tmp_path, load, override, expected
):
    message = message_for(write_file(tmp_path, load), override, load=load)

    assert message.startswith(f"command line: {expected}"), message


@pytest.mark.parametrize(
    ("load", "override", "expected"),
    [
        (load_search, "trial={cpu: 2}", 'trial.cpu = 2: unknown key. Did you mean "trial.cpus"?'),
        (load_search, "trial={cpus: 0}", "trial.cpus = 0: must be greater than 0"),
        (load_search, "sampler.name=tep", "sampler.name = tep: must be one of tpe, gp, cmaes, qmc"),
        (load_study, "seeds=[0, true]", "seeds = [0, True]: must not be true or false"),
        (load_study, "fixed=[1]", "fixed = [1]: must be a mapping from keys to values"),
        (load_study, "evaluate.split=tset", "evaluate.split = tset: must be one of train, valida"),
    ],
)
def test_an_error_within_an_override_is_attributed_to_the_command_line(
    tmp_path, load, override, expected
):
    message = message_for(write_file(tmp_path, load), override, load=load)

    assert message.startswith(f"command line: {expected}"), message


@pytest.mark.parametrize("load", [load_search, load_study])
def test_an_error_in_a_base_or_in_fixed_is_named_with_its_location(tmp_path, load):
    tree = MANY[load] | {"base": RUN | {"train": {"epochs": 0}}}
    path = write(tmp_path, yaml.safe_dump(tree))
    message = message_for(path, "train.seed=3", load=load)
    assert message.startswith(f"{path}: base.train.epochs = 0: must be greater")

    path = write(tmp_path, yaml.safe_dump(MANY[load] | {"fixed": {"train.epochs": 0}}))
    message = message_for(path, "train.seed=3", load=load)
    assert message.startswith(f"{path}: fixed.train.epochs = 0: must be greater")


@pytest.mark.parametrize("load", [load_search, load_study])
def test_what_is_fixed_may_not_be_a_list_even_with_overrides(tmp_path, load):
    path = write(tmp_path, yaml.safe_dump(MANY[load] | {"fixed": [1]}))

    message = message_for(path, "train.epochs=3", load=load)

    assert message.startswith(f"{path}: fixed = [1]: must be a mapping from keys to values")


@pytest.mark.parametrize(
    "override",
    [
        "data.root=~nobody-of-this-name/eyes", "output_dir=~nobody-of-this-name/a",
        "model.pretrained=~nobody-of-this-name/b", "data.cache_dir=~nobody-of-this-name/c",
    ],
)  # fmt: skip
def test_a_home_folder_that_does_not_exist_is_named(tmp_path, override):
    message = message_for(write(tmp_path, SMALLEST), override)
    key, _, value = override.partition("=")
    assert message.startswith(
        f"command line: {key} = {value}: there is no home folder ~nobody-of-this-name; give a full"
    )


def test_a_null_byte_in_a_path_is_refused(tmp_path):
    message = message_for(write(tmp_path, 'data: {name: synthetic}\noutput_dir: "a\\0b"\n'))
    assert "output_dir: a path must not contain a null byte" in message


def test_the_cache_moves_out_of_a_home_folder_that_cannot_be_written(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(reading, "cache_folder", lambda given: tmp_path / "elsewhere")
    file = write(tmp_path, SMALLEST)
    assert load_config(file).data.cache_dir == tmp_path / "elsewhere"
    assert "data.cache_dir = ~/.cache/labn: cannot be written" in caplog.text
    assert load_config(file, ["data.cache_dir=/given"]).data.cache_dir == Path("/given")
