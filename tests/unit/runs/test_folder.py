from __future__ import annotations

import logging
import threading

import pytest
from filelock import FileLock

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
