"""Runs on the public data that LABN_TEST_DATA names."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from command_line import write_config

pytestmark = [pytest.mark.real_data, pytest.mark.slow]


def test_an_epoch_of_idrid_trains_on_330_images_and_validates_on_83(labn, test_data, tmp_path):
    config = write_config(
        tmp_path,
        data__name="idrid",
        data__root=test_data / "idrid256_dev",
        data__image_size=64,
        train__epochs=1,
        train__batch_size=32,
    )

    done = labn("train", config, "--json")

    assert done.returncode == 0, done.stderr
    counts = pd.read_csv(tmp_path / "run" / "data.csv")["partition"].value_counts().to_dict()
    assert counts == {"train": 330, "validation": 83}
    metrics = json.loads(done.stdout)["metrics"]
    assert -1 <= metrics["val_pid"] <= 1
    assert metrics["val_loss"] < 5


def test_the_check_of_the_official_layout_finds_the_image_with_two_grades(labn, test_data):
    done = labn("data", "check", test_data / "idrid_official_layout_sample", "--json")

    assert done.returncode == 2
    found = json.loads(done.stdout)
    (conflict,) = [f for f in found["findings"] if f["kind"] == "conflicting_labels"]
    assert conflict["severity"] == "error"
    assert conflict["names"] == ["train/IDRiD_118.jpg", "test/IDRiD_064.jpg"]
    assert "grade 0, negative" in conflict["detail"]
    assert "grade 3, positive" in conflict["detail"]
