"""Settings that an earlier release recorded mean what they meant then, where keys are newer."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import yaml

from labn.config import Config, flatten, known_keys, load_config
from labn.config.run import EARLIER_VALUES
from labn.errors import UserError
from labn.runs.folder import RunFolder

ARCHIVE = Path(__file__).parents[2] / "golden" / "release_0_1" / "made.tar.xz"
RUN = {"data": {"name": "synthetic"}}


@pytest.fixture(scope="module")
def recorded():
    """The settings that the first release wrote into a run's folder."""
    with tarfile.open(ARCHIVE) as archive:
        return yaml.safe_load(archive.extractfile("run-interrupted/config.yaml").read())


def write(path, tree):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def values_of(config):
    flat = flatten(config.model_dump(mode="json"))
    return {key: flat[key] for key in EARLIER_VALUES}


def test_every_key_that_is_newer_than_the_first_release_has_a_value_that_means_the_same(recorded):
    assert set(known_keys()) == flatten(recorded).keys() | EARLIER_VALUES.keys()
    assert values_of(Config.model_validate(RUN | {"output_dir": "x"})) != EARLIER_VALUES


def test_a_recorded_run_is_read_as_it_was_trained_wherever_it_lies(recorded, tmp_path):
    write(tmp_path / "moved/config.yaml", recorded)
    assert values_of(RunFolder(tmp_path / "moved").load_config()) == EARLIER_VALUES
    changed = RunFolder(tmp_path / "moved").load_config(["loss.mask_rule=share"])
    assert changed.loss.mask_rule == "share"


@pytest.mark.parametrize("place", ["", "trials/3", "trials/3/seed-0", "full/seed-0"])
def test_the_command_that_started_a_run_resumes_it_as_it_was(recorded, tmp_path, place):
    folder = tmp_path / "out"
    write(folder / place / "config.yaml", recorded | {"output_dir": str(folder / place)})
    given = write(tmp_path / "run.yaml", recorded | {"output_dir": str(folder), "loss": {}})

    assert values_of(load_config(given)) == EARLIER_VALUES
    if not place:
        RunFolder(folder).check_same(load_config(given))
        with pytest.raises(UserError, match="mask_rule is threshold there, share now"):
            RunFolder(folder).check_same(load_config(given, ["loss.mask_rule=share"]))


def test_a_users_settings_have_the_defaults_of_today(tmp_path):
    given = write(tmp_path / "run.yaml", RUN | {"output_dir": str(tmp_path / "new")})
    assert load_config(given).loss.mask_rule == "share"
