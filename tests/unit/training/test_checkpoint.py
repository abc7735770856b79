from __future__ import annotations

import contextlib
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from labn.errors import UserError
from labn.training.checkpoint import (
    keep_newest,
    load,
    load_newest,
    newest_path,
    random_states,
    restore_random_states,
    save_atomically,
    step_path,
)


def content_of(number, num_values=4):
    """A checkpoint identified by a number."""
    return {
        "model": {"fc.weight": torch.full((num_values,), float(number))},
        "average": None,
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]},
        "schedule": {"last_epoch": 7},
        "progress": {"epoch": number, "history": [{"val_loss": 0.5}]},
        "random_states": random_states(),
        "config": {"train": {"epochs": 3}, "class_weights": (1.0, 2.0)},
    }


def number_in(loaded):
    assert loaded["model"]["fc.weight"].unique().item() == loaded["progress"]["epoch"]
    return loaded["progress"]["epoch"]


class Marker:
    """Unpickled with code allowed, it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@contextlib.contextmanager
def largest_file(num_bytes):
    """Let writes beyond a size fail, as they do on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "new" / "folder" / "step.pt"
    content = content_of(5)
    save_atomically(content, path)
    loaded = load(path)
    assert torch.equal(loaded["model"]["fc.weight"], torch.full((4,), 5.0))
    assert torch.equal(loaded["random_states"]["cpu"], content["random_states"]["cpu"])
    for key in ("average", "schedule", "progress", "config"):
        assert loaded[key] == content[key]
    assert loaded["optimizer"]["param_groups"] == [{"lr": 1e-3}]
    assert list(path.parent.iterdir()) == [path]


def test_draws_continue_from_restored_states():
    states = random_states()
    expected = torch.rand(5)
    torch.rand(3)
    restore_random_states(states)
    assert torch.equal(torch.rand(5), expected)


def test_a_checkpoint_may_be_read_by_those_whom_the_umask_lets(tmp_path):
    before = os.umask(0o022)
    try:
        save_atomically(content_of(1), tmp_path / "best.pt")
    finally:
        os.umask(before)
    assert (tmp_path / "best.pt").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("old", [True, False])
def test_on_a_full_disk_the_old_file_stays_and_the_user_is_informed(tmp_path, old):
    path = tmp_path / "best.pt"
    if old:
        save_atomically(content_of(1), path)
    with largest_file(20_000), pytest.raises(UserError) as caught:
        save_atomically(content_of(2, num_values=100_000), path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: cannot be written (File too large)")
    assert "free some space" in message
    assert list(tmp_path.iterdir()) == ([path] if old else [])
    if old:
        assert number_in(load(path)) == 1


def test_a_place_that_cannot_be_a_folder_is_the_users_to_fix(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        save_atomically(content_of(1), tmp_path / "file" / "best.pt")


def test_content_that_cannot_be_saved_leaves_the_old_file(tmp_path):
    path = tmp_path / "best.pt"
    save_atomically(content_of(1), path)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save_atomically(content_of(2) | {"config": {"function": lambda: None}}, path)
    assert number_in(load(path)) == 1
    assert list(tmp_path.iterdir()) == [path]


KILLED_WRITER = """
import os, sys
from pathlib import Path
import torch
from labn.training.checkpoint import save_atomically, step_path

os.fsync = lambda handle: os._exit(9)  # the process dies with the data on its way to the disk
save_atomically({"model": {"w": torch.ones(3)}}, step_path(Path(sys.argv[1]), 2))
"""


def test_a_writer_that_is_killed_leaves_what_stood_there(tmp_path):
    save_atomically(content_of(1), step_path(tmp_path, 1))
    save_atomically(content_of(2), step_path(tmp_path, 2))
    arguments = [sys.executable, "-c", KILLED_WRITER, str(tmp_path)]
    assert subprocess.run(arguments, check=False).returncode == 9
    left = list(tmp_path.glob("*.tmp"))
    assert len(left) == 1

    path, loaded = load_newest(tmp_path)
    assert path == step_path(tmp_path, 2) and number_in(loaded) == 2
    keep_newest(tmp_path, 2)
    assert sorted(tmp_path.iterdir()) == [step_path(tmp_path, 1), step_path(tmp_path, 2)]


def test_the_newest_is_that_of_the_most_steps(tmp_path):
    for step in (9, 10, 123_456_768, 2):
        save_atomically(content_of(step), step_path(tmp_path, step))
    save_atomically(content_of(1000), tmp_path / "best.pt")
    save_atomically(content_of(1001), tmp_path / "step-copy.pt")
    path, loaded = load_newest(tmp_path)
    assert path == newest_path(tmp_path) == step_path(tmp_path, 123_456_768)
    assert number_in(loaded) == 123_456_768


def test_file_names_sort_by_step():
    names = [step_path(Path("run"), step).name for step in (2, 10, 100)]
    assert names == ["step-00000002.pt", "step-00000010.pt", "step-00000100.pt"]


@pytest.mark.parametrize("name", [".", "absent"])
def test_where_nothing_was_saved_nothing_is_found(tmp_path, name):
    assert load_newest(tmp_path / name) is None
    assert newest_path(tmp_path / name) is None


def damage(path, kind):
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "checkpoint with code":
        torch.save({"model": Marker(path.parent / "ran")}, path)
    else:
        path.write_bytes(pickle.dumps(Marker(path.parent / "ran")))


DAMAGES = ["truncated", "empty", "text", "checkpoint with code", "pickle with code"]


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_file_that_is_no_checkpoint_is_refused_and_none_of_it_is_run(tmp_path, kind):
    path = tmp_path / "best.pt"
    save_atomically(content_of(1), path)
    damage(path, kind)
    with pytest.raises(UserError) as caught:
        load(path)
    expected = "not a whole checkpoint: damaged, or more than tensors and plain values"
    assert str(caught.value) == f"{path}: {expected}"
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError) as caught:
        load(tmp_path / "best.pt")
    assert str(caught.value) == f"{tmp_path / 'best.pt'}: no such checkpoint"
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    assert str(caught.value) == f"{tmp_path}: the checkpoint cannot be read (Is a directory)"


@pytest.mark.parametrize("kind", DAMAGES)
def test_where_the_newest_is_damaged_the_one_before_is_used_and_it_is_said(tmp_path, caplog, kind):
    for step in (1, 2, 3):
        save_atomically(content_of(step), step_path(tmp_path, step))
    for step in (2, 3):
        damage(step_path(tmp_path, step), kind)
    path, loaded = load_newest(tmp_path)
    assert path == step_path(tmp_path, 1) and number_in(loaded) == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    for record, step in zip(caplog.records, (3, 2), strict=True):
        message = record.getMessage()
        assert message.startswith(f"{step_path(tmp_path, step)}: not a whole checkpoint")
        assert message.endswith("; the one before is used")
    assert not (tmp_path / "ran").exists()


def test_where_all_are_damaged_none_is_found(tmp_path):
    save_atomically(content_of(1), step_path(tmp_path, 1))
    damage(step_path(tmp_path, 1), "truncated")
    assert load_newest(tmp_path) is None


@pytest.mark.parametrize(("num_kept", "left"), [(1, [12]), (2, [11, 12]), (9, [8, 9, 10, 11, 12])])
def test_only_the_newest_are_kept_and_other_files_left_alone(tmp_path, num_kept, left):
    for step in range(8, 13):
        save_atomically(content_of(step), step_path(tmp_path, step))
    for name in ("best.pt", "step-x.pt", "notes.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "step-00000013.pt.123.tmp").write_text("half of it")
    keep_newest(tmp_path, num_kept)
    expected = {step_path(tmp_path, step).name for step in left}
    assert {path.name for path in tmp_path.iterdir()} == expected | {
        "best.pt",
        "step-x.pt",
        "notes.txt",
    }
