"""A trained run keeps its subsets, whatever becomes of its data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bitwise import assert_same
from command_line import assert_mistake, run_here, write_config
from PIL import Image

from labn.config import load_config
from labn.errors import Interrupted
from labn.runs.folder import RunFolder
from labn.runs.reporter import Reporter
from labn.runs.train import train_run
from labn.training import checkpoint

QUICK = ("--methods", "random")


def add_images(root: Path, start: int, num: int, seed: int = 0) -> None:
    """Write images of two classes whose colours differ, with numbers from ``start``."""
    random = np.random.default_rng([seed, start])
    for label, name in enumerate(("negative", "positive")):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(start, start + num):
            pixels = random.integers(0, 200, (32, 32, 3), dtype=np.uint8)
            pixels[8:16, 8:16] = 100 * label
            Image.fromarray(pixels).save(root / name / f"{number:03d}.png")


def subsets_of(run: Path) -> dict[str, str]:
    rows = pd.read_csv(run / "data.csv")
    return dict(zip(rows["name"], rows["partition"], strict=True))


def scored_by(run: Path, subset: str) -> set[str]:
    return set(pd.read_csv(run / "evaluation" / subset / "images.csv")["name"])


def members(subsets: dict[str, str], subset: str) -> set[str]:
    return {name for name, one in subsets.items() if one == subset}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A finished run beside its data."""
    folder = tmp_path_factory.mktemp("original")
    add_images(folder / "data", 100, 10)
    config = write_config(
        folder, data__name="folder", data__root=folder / "data", train__epochs=1,
        tracking__log_model=False,
    )  # fmt: skip
    train_run(load_config(config), Reporter())
    return folder


@pytest.fixture
def own(original, tmp_path):
    """A run of one's own, with its data."""
    folder = Path(shutil.copytree(original, tmp_path / "own"))
    for file in (folder / "config.yaml", folder / "run" / "config.yaml"):
        file.write_text(file.read_text().replace(str(original), str(folder)))
    return folder


def test_added_images_stay_unused_and_move_no_other(own, original):
    before = subsets_of(original / "run")
    add_images(own / "data", 0, 8)

    done = run_here("evaluate", own / "run", *QUICK)

    assert done.returncode == 0, done.stderr
    assert scored_by(own / "run", "test") == members(before, "test")
    assert f"16 images are not in {own}/run/data.csv and stay unused: negative/000" in done.stderr
    assert "drew" not in done.stderr


def test_added_images_are_assigned_on_request_and_recorded_by_training(own, original):
    before = subsets_of(original / "run")
    add_images(own / "data", 0, 30)
    # A copy of an image that is known is not another image.
    shutil.copy(own / "data/positive/100.png", own / "data/positive/copy.png")

    done = run_here("evaluate", own / "run", "data.new_images=assign", *QUICK)

    assert done.returncode == 0, done.stderr
    scored = scored_by(own / "run", "test-new_images")
    assert members(before, "test") < scored
    assert not scored & (members(before, "train") | members(before, "validation"))
    assert 4 <= len(scored - before.keys()) <= 24  # of 60, a fifth on average
    (own / "run" / "summary.json").unlink()
    for file in (own / "run" / "checkpoints").iterdir():
        file.unlink()
    assert run_here("train", "--resume", own / "run", "data.new_images=assign").returncode == 0
    after = subsets_of(own / "run")
    assert len(after) == 80
    assert before.items() <= after.items()
    assert "positive/copy.png" not in after
    assert members(after, "test") == scored


@pytest.mark.parametrize("command", ["evaluate", "sanity", "train"])
def test_missing_and_changed_images_are_an_error_that_names_them(own, command):
    (own / "data/negative/103.png").unlink()
    Image.new("RGB", (32, 32)).save(own / "data/positive/104.png")

    done = run_here(command, own / "run")

    assert_mistake(
        done, "20 images", f"{own}/run/data.csv", "1 changed (positive/104.png)",
        "1 missing (negative/103.png)", "--allow-changed-data",
    )  # fmt: skip


def test_consent_leaves_missing_images_out_for_one_command(own, original):
    before = subsets_of(original / "run")
    lost = sorted(members(before, "test"))[0]
    (own / "data" / lost).unlink()

    done = run_here("evaluate", own / "run", "--allow-changed-data", *QUICK)

    assert done.returncode == 0, done.stderr
    assert f"1 missing ({lost}); missing ones are left out" in done.stderr
    assert scored_by(own / "run", "test-changed") == members(before, "test") - {lost}
    assert subsets_of(own / "run") == before
    again = run_here("train", own / "run", "--allow-changed-data")
    assert again.returncode == 0, again.stderr
    assert "data.csv" in run_here("evaluate", own / "run", *QUICK).stderr


def test_other_data_is_refused_in_the_folder_of_a_finished_run(own):
    add_images(own / "other", 100, 10, seed=1)

    done = run_here("train", own / "config.yaml", f"data.root={own / 'other'}")

    assert_mistake(done, f"data.root = {own}/other: is another data set", "another output_dir")


class StopAfterAnEpoch(Reporter):
    """A request to stop after the first epoch."""

    def __init__(self) -> None:
        self.is_over = False

    def epoch(self, *_: object) -> None:
        self.is_over = True


def test_a_run_resumes_the_same_training_beside_added_images(own):
    changes = {"train.epochs": 3, "train.early_stopping_patience": "null"}
    given = [f"{key}={value}" for key, value in changes.items()]
    whole = load_config(own / "config.yaml", [*given, f"output_dir={own / 'whole'}"])
    train_run(whole, Reporter())
    half = load_config(own / "config.yaml", [*given, f"output_dir={own / 'half'}"])
    reporter = StopAfterAnEpoch()
    with pytest.raises(Interrupted):
        train_run(half, reporter, lambda: reporter.is_over)

    add_images(own / "data", 0, 8)
    assert run_here("train", "--resume", own / "half").returncode == 0

    (_, expected), (_, resumed) = (
        checkpoint.load_newest(RunFolder(own / name).checkpoints) for name in ("whole", "half")
    )
    assert_same(expected["model"], resumed["model"])
    assert_same(expected["optimizer"], resumed["optimizer"])


def test_runs_share_the_subsets_of_a_table(own, tmp_path):
    table = tmp_path / "split.csv"
    done = run_here("data", "split", own / "config.yaml", "data.split_seed=7", "--out", table)
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(table)
    assert list(rows.columns) == ["name", "sha256", "partition", "label"]
    assert rows["partition"].value_counts().to_dict() == {"train": 12, "validation": 4, "test": 4}

    add_images(own / "data", 0, 8)
    other = (f"output_dir={own / 'other'}", f"data.split_file={table}")
    done = run_here("train", own / "config.yaml", *other)

    assert done.returncode == 0, done.stderr
    shared = dict(zip(rows["name"], rows["partition"], strict=True))
    assert subsets_of(own / "other") == shared
    assert shared != subsets_of(own / "run")
    # Nor may a run change its subsets for those of a table.
    done = run_here("train", own / "config.yaml", f"data.split_file={table}")
    assert_mistake(done, "data.csv has other subsets than", str(table), "give another output_dir")
    assert_mistake(run_here("data", "split", own / "config.yaml", "--out", table), "exists already")


def test_a_table_holds_folds(own, tmp_path):
    table = tmp_path / "folds.csv"
    done = run_here("data", "split", own / "config.yaml", "data.folds=3", "--out", table, "--json")
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(table, dtype={"fold": "Int64"}).set_index("name")
    assert json.loads(done.stdout)["counts"]["test"] == 4
    assert sorted(rows["fold"].dropna().unique()) == [0, 1, 2]
    assert (rows["fold"].isna() == (rows["partition"] == "test")).all()

    fold = ("data.folds=3", "data.fold=2", f"data.split_file={table}", "data.split_seed=9")
    done = run_here("train", own / "config.yaml", *fold, f"output_dir={own / 'two'}")

    assert done.returncode == 0, done.stderr
    assert members(subsets_of(own / "two"), "validation") == set(rows.index[rows["fold"] == 2])
    done = run_here("train", own / "config.yaml", f"data.split_file={table}",
                    f"output_dir={own / 'none'}")  # fmt: skip
    assert_mistake(done, "data.folds = null", str(table), "has 3 folds", "set data.folds=3")


def test_the_table_of_a_run_with_folds_has_its_own_subsets(own, tmp_path):
    table, run = tmp_path / "own.csv", own / "fold"
    folds = ("data.folds=3", "data.fold=1", f"output_dir={run}")
    assert run_here("train", own / "config.yaml", *folds).returncode == 0

    done = run_here("data", "split", run, "--out", table)

    assert done.returncode == 0, done.stderr
    assert f"use it by data.split_file={table} data.folds=null" in done.stdout
    rows = pd.read_csv(table)
    assert dict(zip(rows["name"], rows["partition"], strict=True)) == subsets_of(run)
    done = run_here("data", "split", run, "data.folds=2", "--out", tmp_path / "other.csv")
    assert_mistake(done, "data.folds=2: a run's own subsets are written")


def test_a_run_whose_data_moved_is_scored_and_resumed_where_they_are(own):
    shutil.move(own / "data", own / "moved")

    done = run_here("evaluate", own / "run", "--data", own / "moved", *QUICK)

    assert done.returncode == 0, done.stderr
    assert scored_by(own / "run", "test")
    done = run_here("train", "--resume", own / "run", f"data.root={own / 'moved'}")
    assert done.returncode == 0, done.stderr
    assert_mistake(run_here("evaluate", own / "run", *QUICK), "data.root = ", "no such folder")
