"""What the user may get wrong: one line with what, where, and the fix; exit code 2."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest
from command_line import assert_mistake, write_config

from labn.data.readers.synthetic import write_synthetic
from labn.runs.folder import RunFolder


@pytest.fixture
def tree(tmp_path):
    """A small set as files, a folder a class, and a folder a part."""
    whole = tmp_path / "whole"
    write_synthetic(whole, num_images=24, positive_fraction=0.5, seed=0, image_size=24)
    root = tmp_path / "tree"
    for name in ("negative", "positive"):
        for number, image in enumerate(sorted((whole / name).iterdir())):
            part = root / ("val" if number < 3 else "train") / name
            part.mkdir(parents=True, exist_ok=True)
            image.rename(part / image.name)
    return root


def folder_config(tmp_path, root, **changes):
    return write_config(tmp_path, data__name="folder", data__root=root, **changes)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"train__epohcs": 3}, ["train.epohcs = 3", 'Did you mean "train.epochs"?']),
        ({"model__split": 2}, ["model.split = 2", "must be 0 to 1", "lambda_cnn"]),
        ({"model__theta_alpha": 1.5}, ["model.theta_alpha = 1.5", "less than or equal to 1"]),
        ({"loss__theta_b": -0.1}, ["loss.theta_b = -0.1", "greater than or equal to 0"]),
        ({"data__name": "folder"}, ["data.root = null", "folder needs the folder"]),
        (
            {"data__name": "idrid", "data__root": "/no/such/place"},
            ["data.root = /no/such/place", "no such folder"],
        ),
        ({"train__batch_size": "many"}, ["train.batch_size = many", "must be a valid integer"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_setting_is_named_with_its_file_its_value_and_its_rule(
    labn, tmp_path, changes, parts
):
    config = write_config(tmp_path, **changes)

    assert_mistake(labn("train", config), f"error: {config}: ", *parts)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("train", "no-such.yaml"), ["no-such.yaml: no such configuration file", "labn init"]),
        (("train", "configs/search/demo.yaml"), ["of a search; use `labn search configs/search"]),
        (("ablate", "configs/search/demo.yaml"), ["of a search; use `labn search configs/search"]),
        (("train", "configs/ablation/demo.yaml"), ["of an ablation; use `labn ablate configs/ab"]),
        (("search", "configs/demo.yaml"), ["of a run; use `labn train configs/demo.yaml`"]),
        (("train",), ["no configuration given", "a shipped one's name such as demo"]),
        (("train", "train.epochs=3"), ["no configuration given"]),
        (("train", "CONFIG", "train.epochs=0"), ["command line: train.epochs = 0", "must be"]),
        (("train", "CONFIG", "train.lr=1"), ["command line: train.lr = 1: unknown key"]),
        (("train", "CONFIG", "epochs"), ["'epochs': overrides are written key=value"]),
        (("train", "FOLDER"), ["is a folder but not a run"]),
        (("train", "--resume", "FOLDER"), ["is a folder but not a run"]),
        (("evaluate", "FOLDER"), ["not a run (it has no config.yaml)"]),
        (("data", "check", "FOLDER"), ["expected one of", "tree of at least two class folders"]),
        (
            ("data", "check", "FOLDER", "data.group_by=folder", "--name", "folder"),
            [
                "data.group_by=folder: a folder is checked with the default settings",
                "labn data check demo data.name=folder data.root=",
            ],
        ),
        (
            ("data", "check", "CONFIG", "--name", "folder"),
            ["--name folder: is for folders", "set data.name=folder"],
        ),
        (
            ("data", "check", "no-such-folder"),
            [
                "no-such-folder: no such folder or configuration file, nor a shipped one's name",
                "demo",
            ],
        ),
        (("data", "synth", "FOLDER"), ["must be a new or an empty folder"]),
        (("train", "CONFIG", "train.device=nonsense"), ["train.device = nonsense", "use auto"]),
        (
            ("train", "CONFIG", "loss.class_weights=[1,2,3]"),
            ["loss.class_weights = [1.0, 2.0, 3.0]", "2 classes (negative, positive)"],
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_argument_is_named(labn, tmp_path, arguments, parts):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "notes.txt").write_text("no run, no data")
    words = {"CONFIG": write_config(tmp_path), "FOLDER": folder}

    assert_mistake(labn(*(words.get(word, word) for word in arguments)), *parts)


@pytest.mark.parametrize("text", ['{"best_epoch": 1}', "[1]", "not JSON", None])
def test_only_a_search_is_exported(labn, tmp_path, text):
    if text is not None:
        (tmp_path / "summary.json").write_text(text)
    expected = "holds no search" if text is None else "its summary.json is not a search's"
    assert_mistake(labn("search", "export", tmp_path), f"{tmp_path}: {expected}", "output_dir")


@pytest.mark.parametrize("has_best", [True, False])
def test_a_class_that_was_added_before_a_run_resumes_is_named(labn, tmp_path, tree, has_best):
    config = folder_config(tmp_path, tree, train__epochs=1)
    assert labn("train", config).returncode == 0
    (tmp_path / "run" / "summary.json").unlink()
    if not has_best:
        (tmp_path / "run" / "checkpoints" / "best.pt").unlink()
    for subset in ("train", "val"):
        shutil.copytree(tree / subset / "positive", tree / subset / "severe")
    done = labn("train", config)
    assert done.returncode == 2
    assert "has the classes negative, positive, severe, the run " in done.stderr.splitlines()[-1]
    assert "give data of the same classes" in done.stderr.splitlines()[-1]


def test_an_evaluation_before_the_first_epoch_names_what_to_do(labn, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    config = write_config(tmp_path)
    shutil.copy(config, folder.config_file)

    assert_mistake(
        labn("evaluate", folder.path),
        "has no trained network yet",
        f"labn train --resume {folder.path}",
    )


def test_a_run_that_another_process_trains_is_left_alone(labn, tmp_path):
    config = write_config(tmp_path)
    folder = RunFolder(tmp_path / "run")

    with folder.claimed():
        done = labn("train", config)

    assert_mistake(done, f"output_dir = {folder.path}", "another process is training this run")
    assert [path.name for path in folder.path.iterdir()] == [".lock"]


def test_an_unreadable_image_is_named(labn, tmp_path, tree):
    broken = min((tree / "train" / "positive").iterdir())
    broken.write_bytes(broken.read_bytes()[:200])

    done = labn("train", folder_config(tmp_path, tree))

    assert_mistake(
        done, "1 of 24 images cannot be read", f"train/positive/{broken.name}", "labn data check"
    )


def test_a_grade_out_of_range_is_named(labn, tmp_path, tree):
    root = write_idrid(tmp_path, tree, grades=[0, 1, 0, 7, 0, 2])

    done = labn("train", write_config(tmp_path, data__name="idrid", data__root=root))

    assert_mistake(done, "IDRiD_004", "7", "label_out_of_range", "labn data check")


def write_idrid(tmp_path, tree, grades):
    """Lay out six images, all for training, as IDRiD's owner does."""
    grading = tmp_path / "idrid" / "B. Disease Grading"
    images = grading / "1. Original Images" / "a. Training Set"
    tables = grading / "2. Groundtruths"
    for folder in (images, tables):
        folder.mkdir(parents=True)
    names = [f"IDRiD_{number:03d}" for number in range(1, len(grades) + 1)]
    for name, image in zip(names, sorted((tree / "train" / "negative").iterdir()), strict=False):
        shutil.copy(image, images / f"{name}.jpg")
    table = pd.DataFrame({"Image name": names, "Retinopathy grade": grades})
    table["Risk of macular edema "] = 0
    table.to_csv(tables / "a. IDRiD_Disease Grading_Training Labels.csv", index=False)
    return tmp_path / "idrid"


def test_a_training_subset_without_positives_is_refused(labn, tmp_path, tree):
    for image in (tree / "train" / "positive").iterdir():
        image.unlink()
    shutil.copytree(tree / "val" / "positive", tree / "test" / "positive")

    done = labn("train", folder_config(tmp_path, tree))

    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "positive" in done.stderr


def test_a_validation_subset_without_positives_trains_without_pid(labn, tmp_path, tree):
    shutil.rmtree(tree / "val" / "positive")

    done = labn("train", folder_config(tmp_path, tree, train__epochs=1), "--json")

    assert done.returncode == 0, done.stderr
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert "val_loss" in history.columns
    assert not [name for name in history.columns if "pid" in name or "auroc" in name]
    assert not (tmp_path / "run/evaluation/validation/curves.png").exists()
    for given in ("train.monitor=val_pid", "train.monitor=val_auroc", "train.min_auroc=0.5"):
        words = (folder_config(tmp_path, tree), given, f"output_dir={tmp_path / 'other'}")
        for command in (("train", *words), ("train", *words, "--dry-run")):
            key, value = given.split("=")
            assert_mistake(
                labn(*command), f"{key} = {value}: cannot be measured", "validation subset"
            )


def test_a_setting_that_was_refused_does_not_bind_the_folder(labn, tmp_path):
    config = write_config(tmp_path, train__epochs=1)
    refused = labn("train", config, "loss.class_weights=[1,2,3]")
    assert refused.returncode == 2

    fixed = labn("train", config, "loss.class_weights=[1,2]")

    assert fixed.returncode == 0, fixed.stderr
    assert (tmp_path / "run" / "summary.json").is_file()
