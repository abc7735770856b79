"""`labn predict`: any number of images, row by row; an interruption loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from command_line import assert_mistake, write_config
from PIL import Image

from labn.config import load_config
from labn.runs.predict_images import _ahead
from labn.runs.reporter import Reporter
from labn.runs.train import train_run

NUM_IMAGES = 10


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    # Large enough a step that the images' probabilities differ.
    rates = {"train__learning_rate_head": 0.02, "train__learning_rate_backbone": 0.02}
    train_run(load_config(write_config(folder, train__batch_size=6, **rates)), Reporter())
    return folder / "run"


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    for number in range(NUM_IMAGES):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 30 + number, 3), np.uint8)
        place = folder / f"{number % 2}" / f"eye {number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place)
    (folder / "notes.txt").write_text("no image")
    return folder


def test_rows_and_maps_are_those_of_explain(labn, run_folder, pictures, tmp_path):
    assert labn("explain", run_folder, pictures, "--out", tmp_path / "out").returncode == 0
    expected = pd.read_csv(tmp_path / "out/explanations.csv").set_index("file")

    done = labn(
        "predict", run_folder, pictures, "--out", tmp_path / "p.csv",
        "--maps", tmp_path / "maps", "--json",
    )  # fmt: skip

    found = pd.read_csv(tmp_path / "p.csv").set_index("file").loc[expected.index]
    assert list(found["predicted"]) == list(expected["predicted"])
    for column in [name for name in found if name.startswith("probability_")]:
        # The batches are of other sizes: sums in another order, in float32.
        np.testing.assert_allclose(found[column], expected[column], rtol=0, atol=1e-6)
    assert found["share_above_theta_alpha"].between(0, 1).all()
    for file in found["map_png"]:
        mine, explained = (Image.open(tmp_path / place / file) for place in ("maps", "out"))
        assert mine.mode == explained.mode == "I;16"
        difference = np.asarray(mine).astype(int) - np.asarray(explained)
        assert np.abs(difference).max() <= 1
    content = json.loads(done.stdout)
    assert content["num_predicted"] == NUM_IMAGES
    assert sum(content["num_by_class"].values()) == NUM_IMAGES
    assert content["ignored"] == ["notes.txt"]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_torn_file_is_continued_and_ends_as_an_undisturbed_one(
    labn, run_folder, pictures, tmp_path, suffix
):
    whole, torn = tmp_path / f"whole.{suffix}", tmp_path / f"torn.{suffix}"
    assert labn("predict", run_folder, pictures, "--out", whole).returncode == 0
    lines = whole.read_text().splitlines(keepends=True)
    torn.write_text("".join(lines[:5]) + lines[5][:20])

    done = labn("predict", run_folder, pictures, "--out", torn, "--json")

    content = json.loads(done.stdout)
    kept = 5 - (suffix == "csv")  # without the headings
    assert (content["num_kept"], content["num_predicted"]) == (kept, NUM_IMAGES - kept)
    read = pd.read_csv if suffix == "csv" else lambda path: pd.read_json(path, lines=True)
    rows = [read(path).sort_values("file", ignore_index=True) for path in (whole, torn)]
    pd.testing.assert_frame_equal(*rows, rtol=0, atol=1e-6)


def test_a_killed_command_given_again_predicts_the_rest(run_folder, pictures, tmp_path):
    out = tmp_path / "p.csv"
    command = [
        sys.executable, "-m", "labn", "predict", str(run_folder), str(pictures),
        "validation.batch_size=2", "--out", str(out),
    ]  # fmt: skip
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while first.poll() is None and not (out.exists() and out.read_text().count("\n") > 2):
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    before = pd.read_csv(out)["file"].dropna()

    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)

    assert json.loads(done.stdout)["num_kept"] >= 2
    after = pd.read_csv(out)["file"]
    assert after.is_unique
    assert len(after) == NUM_IMAGES
    assert set(before[:2]) <= set(after)


def test_a_changed_image_is_predicted_anew_and_other_rows_stay(
    labn, run_folder, pictures, tmp_path
):
    out = tmp_path / "p.csv"
    assert labn("predict", run_folder, pictures, "--out", out).returncode == 0
    before = pd.read_csv(out).set_index("file")
    other = tmp_path / "other"
    other.mkdir()
    changed = pictures / "0" / "eye 2.png"
    Image.new("RGB", (9, 9), "white").save(other / "white.png")
    Image.new("RGB", (9, 9), "black").save(changed)

    again = labn("predict", run_folder, pictures, "--out", out, "--json")
    labn("predict", run_folder, other, "--out", out, "--maps", tmp_path / "maps")

    assert json.loads(again.stdout)["num_predicted"] == 1
    after = pd.read_csv(out).set_index("file")
    assert set(after.index) == {*before.index, "white.png"}
    same = before.index.drop("0/eye 2.png")
    pd.testing.assert_frame_equal(after.loc[same], before.loc[same], check_dtype=False)
    assert (tmp_path / "maps" / after.loc["white.png", "map_png"]).is_file()
    assert after.loc["0/eye 2.png", "sha256"] != before.loc["0/eye 2.png", "sha256"]


def test_an_unreadable_image_is_named_and_the_others_are_predicted(
    labn, run_folder, pictures, tmp_path
):
    (pictures / "0" / "broken.png").write_bytes(b"\x89PNG nothing")

    done = labn("predict", run_folder, pictures, "--out", tmp_path / "p.csv", "--json")

    assert done.returncode == 2
    content = json.loads(done.stdout)
    assert list(content["unreadable"]) == ["0/broken.png"]
    assert content["num_predicted"] == NUM_IMAGES


def test_mistakes_are_one_line(labn, run_folder, pictures, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text("file,label\na.png,1\n")
    cases = {
        "--out": [run_folder, pictures, "--out", tmp_path / "p.txt"],
        "another network": [run_folder, pictures, "--out", other],
        "no such image": [run_folder, tmp_path / "none"],
        "--maps": [run_folder, pictures, "--out", tmp_path / "p.csv", "--maps", pictures],
    }
    for expected, arguments in cases.items():
        assert_mistake(labn("predict", *arguments), expected)
    assert other.read_text() == "file,label\na.png,1\n"


def test_no_more_images_are_decoded_ahead_than_needed():
    drawn = []
    items = (drawn.append(number) or number for number in range(100))

    for number in _ahead(items, 8):
        assert len(drawn) - number <= 9
    assert drawn == list(range(100))
