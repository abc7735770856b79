"""Which tracker `labn ui` opens. Those of a server's address are only named, not started."""

from __future__ import annotations

import json

import pytest
from command_line import assert_mistake, write_config


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@environment:5000")


def opened(done):
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[0]


def test_without_a_folder_the_environments_tracker_is_opened(labn):
    assert opened(labn("ui")) == "MLflow: http://environment:5000"


def test_without_a_folder_and_a_word_of_the_environment_it_is_the_file_here(labn, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert_mistake(labn("ui"), "tracking.uri = sqlite:///mlflow.db: no such file")


def test_an_environment_that_tracks_nothing_is_refused(labn, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "none")
    assert_mistake(labn("ui"), "MLFLOW_TRACKING_URI: names no tracker")


def test_a_configuration_without_an_address_goes_to_the_environments_tracker(labn, tmp_path):
    config = write_config(tmp_path, tracking={"experiment": "mine"})
    assert opened(labn("ui", config)) == "MLflow: http://environment:5000"


def test_a_configurations_own_address_wins_over_the_environment(labn, tmp_path):
    config = write_config(tmp_path, tracking={"uri": "http://configured:5000"})
    assert opened(labn("ui", config)) == "MLflow: http://configured:5000"


def test_the_address_that_a_run_was_tracked_at_wins_over_the_environment(labn, tmp_path):
    (tmp_path / "run").mkdir()
    entry = {"uri": "http://tracked:5000", "run_id": "0123"}
    (tmp_path / "run" / "tracker.json").write_text(json.dumps(entry))
    assert opened(labn("ui", tmp_path / "run")) == "MLflow: http://tracked:5000"


def test_a_tracker_that_cannot_be_opened_is_a_mistake(labn, tmp_path):
    (tmp_path / "mlflow.db").write_text("no database, but long enough to be taken for one " * 4)
    config = write_config(tmp_path, tracking={"uri": f"sqlite:///{tmp_path}/mlflow.db"})
    assert_mistake(labn("ui", config), "cannot be opened")
