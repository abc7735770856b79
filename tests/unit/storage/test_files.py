"""Atomic files, and locks."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import pytest

from labn.errors import UserError
from labn.storage import files
from labn.storage.files import (
    append,
    cache_folder,
    locked,
    put_in_place,
    replacing,
    write_atomically,
)


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """The names, below the test's folder, of what is synced and renamed, in order."""
    seen = []
    fsync, replace = os.fsync, os.replace

    def name(place):
        return str(Path(place).relative_to(tmp_path))

    def remember_fsync(descriptor):
        fsync(descriptor)
        seen.append(("fsync", name(Path(f"/proc/self/fd/{descriptor}").readlink())))

    def remember_replace(source, target):
        replace(source, target)
        seen.append(("replace", name(source), name(target)))

    monkeypatch.setattr(os, "fsync", remember_fsync)
    monkeypatch.setattr(os, "replace", remember_replace)
    return seen


@pytest.mark.parametrize("content", ["text", b"text", lambda file: file.write(b"text")])
def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_is_before_the_writer_returns(
    tmp_path, calls, content
):
    (tmp_path / "run").mkdir()

    write_atomically(tmp_path / "run/file", content)

    ((_, temporary), renamed, folder) = calls
    assert renamed == ("replace", temporary, "run/file")
    assert folder == ("fsync", "run")
    assert (tmp_path / "run/file").read_bytes() == b"text"
    assert list((tmp_path / "run").iterdir()) == [tmp_path / "run/file"]


def test_folders_that_are_made_for_a_file_are_kept_too(tmp_path, calls):
    write_atomically(tmp_path / "a/b/file", "text")

    assert calls[:2] == [("fsync", "."), ("fsync", "a")]
    assert calls[-1] == ("fsync", "a/b")


def test_a_folder_is_put_in_place_after_all_that_lies_in_it(tmp_path, calls):
    (tmp_path / "made/in").mkdir(parents=True)
    for name in ("one", "in/two"):
        (tmp_path / "made" / name).write_text("text")

    put_in_place(tmp_path / "made", tmp_path / "cache")

    synced = {name for kind, name, *_ in calls[:4] if kind == "fsync"}
    assert synced == {"made", "made/one", "made/in", "made/in/two"}
    assert calls[4:] == [("replace", "made", "cache"), ("fsync", ".")]


def test_what_is_appended_is_on_the_disk(tmp_path, calls):
    append(tmp_path / "log", "one\n")
    append(tmp_path / "log", "two\n")

    assert calls == [("fsync", "log"), ("fsync", ".")] * 2
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_writer_that_is_interrupted_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file"
    write_atomically(path, "old")

    with pytest.raises(error), replacing(path) as file:
        file.write(b"half of the new")
        raise error

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_at_the_end_leaves_the_old_file_and_is_reported(
    tmp_path, monkeypatch, call
):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(UserError) as caught:
        write_atomically(path, "new")

    assert str(caught.value).startswith(f"{path}: cannot be written (No space left on device); ")
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_its_file_system_cannot_sync_is_not_an_error(tmp_path, monkeypatch):
    fsync = os.fsync

    def refuse_folders(descriptor):
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(22, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    write_atomically(tmp_path / "file", "text")
    assert (tmp_path / "file").read_text() == "text"


def test_a_name_as_long_as_the_file_system_allows_can_be_written(tmp_path):
    write_atomically(tmp_path / ("n" * 255), "text")
    assert (tmp_path / ("n" * 255)).read_text() == "text"


def test_a_lock_that_another_holds_is_refused_after_the_time_allowed(tmp_path):
    path = tmp_path / "a/.lock"
    with locked(path), pytest.raises(TimeoutError), locked(path, timeout_s=0):
        pass
    with locked(path, timeout_s=0):
        pass


def test_a_lock_is_released_when_its_holder_fails(tmp_path):
    with pytest.raises(ValueError, match="failed"), locked(tmp_path / ".lock"):
        raise ValueError("failed")
    with locked(tmp_path / ".lock", timeout_s=0):
        pass


@pytest.mark.parametrize(("timeout_s", "level"), [(60, logging.WARNING), (None, logging.INFO)])
def test_a_long_wait_for_a_lock_is_logged(tmp_path, monkeypatch, caplog, timeout_s, level):
    monkeypatch.setattr(files, "_QUIET_WAIT_S", 0)
    is_held, may_end = threading.Event(), threading.Event()

    def hold():
        with locked(tmp_path / ".lock"):
            is_held.set()
            assert may_end.wait(60)

    class Release(logging.Handler):
        def emit(self, record):
            may_end.set()

    holder, handler = threading.Thread(target=hold), Release()
    holder.start()
    assert is_held.wait(60)
    limit = {} if timeout_s is None else {"timeout_s": timeout_s}
    files.logger.addHandler(handler)
    try:
        with caplog.at_level(logging.INFO), locked(tmp_path / ".lock", "waiting", **limit):
            pass
    finally:
        files.logger.removeHandler(handler)
        may_end.set()
        holder.join()
    assert [(one.levelno, one.getMessage()) for one in caplog.records] == [(level, "waiting")]


def test_a_cache_lies_in_the_home_folder_or_where_it_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder(Path("~/.cache/labn")) == tmp_path / ".cache/labn"
    assert cache_folder(Path("cache")) == Path("cache")


@pytest.mark.parametrize("is_missing", [True, False])
def test_without_a_home_folder_to_write_to_a_cache_is_temporary(tmp_path, monkeypatch, is_missing):
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: "/temporary")
    if is_missing:
        monkeypatch.setattr(files, "expanded", lambda path: None)
    else:
        monkeypatch.setattr(files.os, "access", lambda folder, mode: False)
        monkeypatch.setenv("HOME", str(tmp_path))
    place = cache_folder(Path("~/.cache/labn"))
    assert place == Path(f"/temporary/labn-{os.getuid()}/.cache/labn")
    assert cache_folder(tmp_path / "cache") == tmp_path / "cache" or is_missing


def test_a_cache_that_exists_is_read_where_nothing_can_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".cache").mkdir()
    monkeypatch.setattr(files.os, "access", lambda folder, mode: False)
    assert cache_folder(Path("~/.cache")) == tmp_path / ".cache"
