"""Entries in the tracker: how they are closed, and what is told of a configuration."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import labn
from labn.config import Config
from labn.errors import Interrupted, Stopped, UserError
from labn.runs.tracked import closing_entry, experiment_name, log_settings
from labn.tracking import NoTracker


class Remembering(NoTracker):
    """Remembers the text of files, and how it was closed."""

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
        (Stopped("stopped as asked"), "KILLED"),
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


def test_only_the_room_of_tracking_makes_trackers():
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
