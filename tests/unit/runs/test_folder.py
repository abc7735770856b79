from __future__ import annotations

import logging
import threading

import pytest
from filelock import FileLock

from labn.config import Config
from labn.errors import UserError
from labn.runs.folder import RunFolder
from labn.storage import files


@pytest.fixture
def held(tmp_path, monkeypatch):
    """A folder locked by another thread, and the event that releases it."""
    monkeypatch.setattr(files, "_QUIET_WAIT_S", 0.1)
    held, may_end = threading.Event(), threading.Event()

    def hold():
        with RunFolder(tmp_path).claimed():
            held.set()
            may_end.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(30)
    yield may_end
    may_end.set()
    holder.join()


class Releasing(logging.Handler):
    """A log handler that releases the folder once another process logs that it waits."""

    def __init__(self, may_end):
        super().__init__(logging.WARNING)
        self._may_end = may_end

    def emit(self, record):
        self._may_end.set()


def test_waiting_for_a_locked_folder_is_logged_and_succeeds(tmp_path, held, caplog, request):
    handler = Releasing(held)
    files.logger.addHandler(handler)
    request.addfinalizer(lambda: files.logger.removeHandler(handler))

    with caplog.at_level(logging.WARNING), RunFolder(tmp_path).claimed(wait_s=30):
        assert held.is_set()

    (record,) = caplog.records
    assert f"output_dir = {tmp_path}: another process is training this run" in record.getMessage()
    assert "waiting up to 30 s" in record.getMessage()


def test_a_folder_that_stays_locked_is_refused(tmp_path, held, monkeypatch):
    waits_s = []
    acquire = FileLock.acquire

    def remember(lock, timeout):
        waits_s.append(timeout)
        return acquire(lock, timeout)

    monkeypatch.setattr(FileLock, "acquire", remember)

    with pytest.raises(UserError, match="another process is training this run; wait for it"):
        RunFolder(tmp_path).claimed(wait_s=0.5).__enter__()

    assert sum(waits_s) == 0.5


def test_nothing_is_logged_for_a_free_folder(tmp_path, caplog):
    with caplog.at_level(logging.WARNING), RunFolder(tmp_path).claimed(wait_s=30):
        assert (tmp_path / ".lock").exists()

    assert not caplog.records


def config_of(folder, **train):
    data = {"name": "synthetic"}
    return Config.model_validate({"data": data, "train": train, "output_dir": folder})


@pytest.mark.parametrize("name", ["thesis.tex", "data", "study.yaml"])
def test_a_folder_with_other_files_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"is not a run's folder, and holds other files .{name}"):
        RunFolder(tmp_path).check_same(config_of(tmp_path))


@pytest.mark.parametrize("names", [(), (".DS_Store", "train.log"), ("tracker.json", "untracked")])
def test_a_folder_is_vacant_with_what_a_run_finds_there(tmp_path, names):
    for name in names:
        (tmp_path / name).touch()
    RunFolder(tmp_path).check_same(config_of(tmp_path))
    RunFolder(tmp_path / "new").check_same(config_of(tmp_path / "new"))


def test_how_to_train_longer_is_said(tmp_path):
    RunFolder(tmp_path).adopt(config_of(tmp_path, epochs=2))
    with pytest.raises(UserError) as error:
        RunFolder(tmp_path).check_same(config_of(tmp_path, epochs=4))
    for part in ("train.epochs is 2 there, 4 now", f"model.pretrained={tmp_path}", "output_dir"):
        assert part in str(error.value)
    with pytest.raises(UserError, match="delete that folder"):
        RunFolder(tmp_path).check_same(config_of(tmp_path, epochs=4, batch_size=4))


def test_consent_to_changed_data_is_not_kept(tmp_path):
    config = config_of(tmp_path)
    data = config.data.model_copy(update={"allow_changed": True})
    RunFolder(tmp_path).adopt(config.model_copy(update={"data": data}))
    assert RunFolder(tmp_path).load_config().data == config.data


def test_a_run_is_the_same_where_its_data_and_first_weights_have_gone(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "weights.pt").touch()
    tree = {
        "data": {"name": "folder", "root": str(tmp_path / "data")},
        "model": {"pretrained": str(tmp_path / "weights.pt")},
        "output_dir": str(tmp_path / "run"),
    }
    config = Config.model_validate(tree)
    run = RunFolder(tmp_path / "run")
    run.adopt(config)
    (tmp_path / "data").rename(tmp_path / "moved")
    (tmp_path / "weights.pt").unlink()

    run.check_same(config.model_copy(
        update={"data": config.data.model_copy(update={"root": tmp_path / "moved"})}
    ))  # fmt: skip

    with pytest.raises(UserError, match=r"data.root = .*no such folder"):
        run.load_config()
