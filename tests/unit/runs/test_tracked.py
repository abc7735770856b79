"""Tracker entries: how they are closed, and what is logged of a configuration."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import yaml

import labn
from labn.config import Config, load_config, load_study
from labn.config.reading import resolve_base
from labn.errors import Interrupted, UserError
from labn.runs.folder import RunFolder
from labn.runs.tracked import closing_entry, experiment_name, log_settings, open_entry
from labn.tracking import NoTracker


class Remembering(NoTracker):
    """A tracker that records the text of files and its final status."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.status: str | None = None

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        self.files[path.name] = path.read_text()

    def finish(self, status: str) -> None:
        assert self.status is None, "closed twice"
        self.status = status


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("out of memory"), "FAILED"),
        (UserError("no such data"), "FAILED"),
        (Interrupted(), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(1), "KILLED"),
    ],
)
def test_an_entry_is_closed_by_what_leaves_its_block(error, status):
    tracker = Remembering()
    with pytest.raises(type(error)), closing_entry(tracker):
        raise error
    assert tracker.status == status


def test_an_entry_whose_block_ends_is_finished():
    with closing_entry(Remembering()) as tracker:
        assert tracker.status is None
    assert tracker.status == "FINISHED"


@pytest.mark.parametrize(
    ("tracking", "name"), [({}, "labn/synthetic"), ({"experiment": "mine"}, "mine")]
)
def test_an_experiment_is_named_by_the_settings_or_else_by_the_data(tracking, name):
    tree = {"data": {"name": "synthetic"}, "output_dir": "run", "tracking": tracking}
    assert experiment_name(Config.model_validate(tree)) == name


def test_settings_are_logged_without_the_passwords_of_their_addresses(tmp_path):
    text = "tracking:\n  uri: postgresql://{}host/db\n  experiment: e\n"
    file = tmp_path / "config.yaml"
    file.write_text(text.format("me:hunter2@"))
    tracker = Remembering()

    log_settings(tracker, file)

    assert tracker.files == {"config.yaml": text.format("")}
    assert file.read_text() == text.format("me:hunter2@")


@pytest.fixture
def tracked_folder(tmp_path, monkeypatch):
    """An output folder whose entry is in a tracker that the environment no longer names."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment:5000")
    entry = {"uri": "http://tracked:5000", "run_id": "0123"}
    (tmp_path / "tracker.json").write_text(json.dumps(entry))
    return tmp_path


def write_run(folder, **tracking):
    tree = {"data": {"name": "synthetic"}, "output_dir": str(folder), "tracking": tracking}
    file = folder / "given.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def test_a_run_is_resumed_in_its_own_tracker_whatever_the_environment_names(tracked_folder):
    file = write_run(tracked_folder, experiment="mine")
    assert load_config(file).tracking.uri == "http://tracked:5000"


def test_a_tracker_that_the_settings_name_is_taken(tracked_folder):
    file = write_run(tracked_folder, uri="http://moved:5000")
    assert load_config(file).tracking.uri == "http://moved:5000"
    assert load_config(file, ["tracking.uri=none"]).tracking.uri == "none"


def test_a_study_is_resumed_in_its_own_tracker_whatever_the_environment_names(tracked_folder):
    tree = {"base": {"data": {"name": "synthetic"}}, "output_dir": str(tracked_folder)}
    tree |= {"conditions": {"full": {}, "no-kl": {"loss.lambda_kl": 0}}, "seeds": [0]}
    file = tracked_folder / "given.yaml"
    file.write_text(yaml.safe_dump(tree))
    base = resolve_base(load_study(file), file)
    assert base.tracking.uri == "http://tracked:5000"


def test_only_the_package_of_tracking_makes_trackers():
    package = Path(labn.__file__).parent
    makers = {
        path.relative_to(package).parts[0]
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Name | ast.Attribute)
        and (node.id if isinstance(node, ast.Name) else node.attr)
        in ("MlflowTracker", "ResilientTracker")
    }
    assert makers == {"tracking"}


def test_a_record_with_a_relative_tracker_means_the_one_that_was_used(tmp_path, monkeypatch):
    entry = {"uri": "sqlite:////first/mlflow.db", "run_id": "0123"}
    (tmp_path / "tracker.json").write_text(json.dumps(entry))
    file = write_run(tmp_path, uri="sqlite:///mlflow.db").rename(tmp_path / "config.yaml")
    assert load_config(file).tracking.uri == "sqlite:////first/mlflow.db"
    moved = load_config(file, ["tracking.uri=sqlite:///moved.db"])
    assert moved.tracking.uri == "sqlite:///moved.db"


def test_a_run_records_the_whole_path_of_its_tracker(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(write_run(tmp_path, uri="sqlite:///mlflow.db"))
    RunFolder(tmp_path / "run").adopt(config)
    record = load_config(tmp_path / "run" / "config.yaml")
    assert record.tracking.uri == f"sqlite:///{tmp_path}/mlflow.db"


def test_a_tracker_that_is_gone_is_not_made_again_in_its_place(tmp_path):
    config = load_config(write_run(tmp_path, uri=f"sqlite:///{tmp_path}/gone.db"))
    folder = RunFolder(tmp_path / "run")
    folder.keep_tracker_run_id(config.tracking.uri, "0123")
    with pytest.raises(UserError, match=r"tracking.uri = .*gone.db: no such file, but .*tracker"):
        open_entry(config, folder)
    assert not (tmp_path / "gone.db").exists()
