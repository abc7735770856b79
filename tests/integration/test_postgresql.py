"""A search whose study and tracker are in a real PostgreSQL server, which is killed meanwhile."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import optuna
import psutil
import pytest
import sqlalchemy
from command_line import wait_for
from optuna.trial import TrialState
from searches import NUM_EPOCHS, PATIENCE_S, Silent, end, epochs_done, start_search, write_search

from labn.config import load_search
from labn.errors import RunFailed, UserError
from labn.sweeps.search import study_storage
from labn.sweeps.search.search_driver import run_search

pytestmark = pytest.mark.slow


def _programs() -> Path | None:
    """Return the folder of PostgreSQL's programs, which Debian keeps off the path."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders else None


class Server:
    """A server on a free port of the loopback interface, with its data in a folder of its own."""

    def __init__(self) -> None:
        self._programs = _programs()
        # Not below pytest's folder, which the server's user may not enter.
        self.folder = Path(tempfile.mkdtemp(prefix="labn-postgresql-"))
        # The server refuses to run as root.
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(self.folder, self._user)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._run("initdb", "--auth=trust", "--username=labn", "--no-sync", "-D", self._data)

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def start(self) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -k {self.folder}"
        self._run(
            "pg_ctl", "-D", self._data, "-o", options, "-l", str(self.folder / "log"), "start"
        )

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self._data, "-m", "immediate", "stop")
        shutil.rmtree(self.folder)

    def kill(self) -> None:
        """Kill the server as a loss of power does, and all its processes."""
        file = self.folder / "data/postmaster.pid"
        first = psutil.Process(int(file.read_text().split()[0]))
        processes = [*first.children(), first]
        for process in reversed(processes):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes[:-1], timeout=PATIENCE_S)
        # The first may stay a zombie, whose number this file would take for a running server.
        file.unlink()

    def create(self, database: str) -> str:
        """Create a database; return its URL."""
        url = f"postgresql+psycopg://labn:secret@127.0.0.1:{self.port}"
        engine = sqlalchemy.create_engine(f"{url}/postgres", isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(f"create database {database}"))
        engine.dispose()
        return f"{url}/{database}"

    def _run(self, program: str, *arguments: str) -> None:
        assert self._programs is not None
        subprocess.run(
            [self._programs / program, *arguments], user=self._user, cwd=self.folder, check=True,
            stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
        )  # fmt: skip


@pytest.fixture(scope="module")
def server():
    if _programs() is None:
        pytest.skip("needs PostgreSQL's server (the package postgresql)")
    one = Server()
    one.start()
    yield one
    one.stop()


def _trials(url: str) -> list[optuna.trial.FrozenTrial]:
    storage = optuna.storages.RDBStorage(url)
    trials = optuna.load_study(study_name=None, storage=storage).trials
    storage.engine.dispose()
    return trials


def test_a_server_that_is_killed_and_comes_back_loses_nothing(server, tmp_path):
    study, tracker = server.create("study"), server.create("tracker")
    path = write_search(tmp_path, pruning=None, storage=study)
    process = start_search(path, f"tracking.uri={tracker}")
    wait_for(lambda: epochs_done(tmp_path, 0) >= 1, process)
    with pytest.raises(UserError, match="another process runs this search"):
        run_search(load_search(path, [f"tracking.uri={tracker}"]), path, Silent())

    server.kill()
    waiting = next(line for line in process.stderr if "does not answer" in line)
    server.start()

    printed, messages = end(process)
    assert "secret" not in waiting + messages + printed
    trials = _trials(study)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    for trial in trials:
        assert sorted(trial.intermediate_values) == list(range(1, NUM_EPOCHS + 1))
    engine = sqlalchemy.create_engine(tracker)
    with engine.connect() as connection:
        query = "select name, status from runs"
        runs = dict(connection.execute(sqlalchemy.text(query)).all())
    engine.dispose()
    assert runs == {name: "FINISHED" for name in ("search", *(f"search-{n}" for n in range(4)))}
    assert "database system was not properly shut down" in server.log


def test_a_search_resumes_from_the_server_after_it_was_killed_itself(server, tmp_path):
    study = server.create("resumed")
    path = write_search(tmp_path, pruning=None, storage=study, trials=2)
    process = start_search(path)
    wait_for(lambda: epochs_done(tmp_path, 0) >= 1, process)
    process.kill()
    process.communicate(timeout=PATIENCE_S)

    end(start_search(path))

    assert [trial.state for trial in _trials(study)] == [TrialState.COMPLETE] * 2


def test_a_server_that_stays_away_ends_the_search_in_one_line(server, tmp_path, monkeypatch):
    monkeypatch.setattr(study_storage, "LONGEST_WAIT_S", 0.0)
    storage = study_storage.open_storage(server.create("away"))
    server.kill()
    try:
        with pytest.raises(
            RunFailed, match=r"does not answer.*run the same command again"
        ) as caught:
            storage.get_all_studies()
    finally:
        server.start()
    assert "secret" not in str(caught.value)
    assert storage.get_all_studies() == []
    storage.engine.dispose()
