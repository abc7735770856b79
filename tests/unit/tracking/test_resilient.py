"""What happens to a run while its tracker cannot be reached."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from labn.errors import UserError
from labn.tracking import (
    CallRefused,
    NoTracker,
    Preparation,
    open_tracker,
    resilient,
)
from labn.tracking.resilient import ResilientTracker
from labn.tracking.spool import Spool

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
PREPARATION = Preparation(class_names=("no", "yes"), image_size=4, mean=(0.2, 0.3), std=(0.5, 0.5))

FOREVER_S = 3600.0


class FlakyTracker(NoTracker):
    """Remembers calls, and the text of files as they were when it was called."""

    run_id = "run-1"

    def __init__(self) -> None:
        self.is_down = False
        self.num_failures = 0
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.num_calls = 0
        self.calls: list[tuple[Any, ...]] = []

    def _take(self, *call: Any) -> None:
        self.num_calls += 1
        self.may_answer.wait()
        self.num_failures -= 1
        if self.is_down or self.num_failures >= 0:
            raise ConnectionError("https://me:hunter2@host is\ndown")
        self.calls.append(call)

    def log_params(self, params: Any) -> None:
        self._take("params", dict(params))

    def set_tags(self, tags: Any) -> None:
        if "never" in tags:
            raise CallRefused("this tag is not allowed")
        self._take("tags", dict(tags))

    def log_metrics(self, metrics: Any, step: int, *, time_ms: int | None = None) -> None:
        self._take("metrics", dict(metrics), step, time_ms)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        self._take("artifact", path.name, path.read_text(), folder)

    def log_dataset(self, manifest: pd.DataFrame, *, name: str, source: str, digest: str) -> None:
        self._take("dataset", manifest, name, source, digest)

    def log_saved_model(self, folder: Path) -> None:
        self._take("model", sorted(path.name for path in folder.rglob("*") if path.is_file()))

    def finish(self, status: str) -> None:
        self._take("finish", status)

    @property
    def steps(self) -> list[int]:
        return [call[2] for call in self.calls if call[0] == "metrics"]


def deliver_all(spool_dir: Path, tracker: FlakyTracker) -> int:
    """Deliver what waits on disk; return how many records that were."""
    return Spool(spool_dir).drain(lambda call, arguments: getattr(tracker, call)(**arguments))


@pytest.fixture
def flaky() -> FlakyTracker:
    return FlakyTracker()


class Clock:
    """Stands in for the time module: it advances only when someone sleeps."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, time_s: float) -> None:
        self.now_s += time_s

    def time_ns(self) -> int:
        return round(self.now_s * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stopped = Clock()
    monkeypatch.setattr(resilient, "time", stopped)
    return stopped


@pytest.fixture
def spool_dir(tmp_path: Path) -> Path:
    return tmp_path / "run" / "spool"


@pytest.fixture
def wrap(flaky: FlakyTracker, spool_dir: Path) -> Callable[..., ResilientTracker]:
    def wrap_it(**settings: Any) -> ResilientTracker:
        chosen = {"backoff_s": 0.001, "retry_after_s": FOREVER_S} | settings
        return ResilientTracker(flaky, spool_dir, name="http://me:hunter2@host", **chosen)

    return wrap_it


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    records = [record for record in caplog.records if record.name.startswith("labn")]
    return [record.getMessage() for record in records if record.levelno >= logging.WARNING]


def test_a_short_failure_is_tried_again_and_leaves_no_trace(
    flaky: FlakyTracker,
    wrap: Callable[..., ResilientTracker],
    clock: Clock,
    spool_dir: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tracker = wrap(backoff_s=0.25)
    flaky.num_failures = 1
    start_s = clock.now_s
    tracker.log_metrics({"loss": 1.0}, step=0)
    assert clock.now_s - start_s == 0.25, "it backed off once"
    assert flaky.steps == [0]
    assert warnings_in(caplog) == []
    assert not spool_dir.exists()


def test_an_outage_is_one_warning_that_names_tracker_and_spool(
    flaky: FlakyTracker,
    wrap: Callable[..., ResilientTracker],
    spool_dir: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tracker = wrap(num_tries=3)
    flaky.is_down = True
    for step in range(5):
        tracker.log_metrics({"loss": 1.0}, step=step)
    (warning,) = warnings_in(caplog)
    assert "http://host" in warning
    assert str(spool_dir / "untracked.jsonl") in warning
    assert "hunter2" not in warning
    assert "\n" not in warning
    assert flaky.num_calls == 3, "after the first call, the others go to the spool untried"


def test_everything_arrives_in_order_once_the_tracker_is_back(
    flaky: FlakyTracker,
    wrap: Callable[..., ResilientTracker],
    clock: Clock,
    spool_dir: Path,
    tmp_path: Path,
) -> None:
    picture = tmp_path / "loss.png"
    manifest = pd.DataFrame({"name": ["a", "b"], "label": [0, 1], "grade": [np.nan, 3.5]})
    tracker = wrap(retry_after_s=60.0)
    flaky.is_down = True
    tracker.log_params({"lr": 1e-4, "weights": (1.0, 2.0)})
    tracker.set_tags({"a": "https://me:hunter2@host"})
    picture.write_text("first")
    tracker.log_artifact(picture, "figures")
    picture.write_text("second")
    tracker.log_artifact(picture)
    tracker.log_dataset(manifest, name="set", source="/data", digest="d")
    measured_ms = clock.time_ns() // 1_000_000
    tracker.log_metrics({"loss": 0.5}, step=1)
    assert "hunter2" not in (spool_dir / "untracked.jsonl").read_text()
    assert flaky.calls == []

    flaky.is_down = False
    clock.now_s += 61
    tracker.log_metrics({"loss": 0.25}, step=2)
    tracker.finish("FINISHED")

    params, tags, first, second, dataset, early, late, finish = flaky.calls
    assert params == ("params", {"lr": "0.0001", "weights": "(1.0, 2.0)"})
    assert tags == ("tags", {"a": "https://host"})
    assert first == ("artifact", "loss.png", "first", "figures")
    assert second == ("artifact", "loss.png", "second", None)
    pd.testing.assert_frame_equal(dataset[1], manifest)
    assert dataset[2:] == ("set", "/data", "d")
    assert early == ("metrics", {"loss": 0.5}, 1, measured_ms), "not the time of delivery"
    assert late[:3] == ("metrics", {"loss": 0.25}, 2)
    assert finish == ("finish", "FINISHED")
    assert list(spool_dir.iterdir()) == []


def test_a_network_waits_like_any_record(
    flaky: FlakyTracker, wrap: Callable[..., ResilientTracker]
) -> None:
    class Network(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> Any:
            return SimpleNamespace(logits=images.mean(dim=(2, 3)), attention=images[:, :1])

    tracker = wrap()
    flaky.is_down = True
    tracker.log_model(Network(), PREPARATION)
    flaky.is_down = False
    tracker.finish("FINISHED")
    (_, files), finish = flaky.calls
    assert {"MLmodel", "model.pt2", "labn_served.py", "requirements.txt"} <= set(files)
    assert finish == ("finish", "FINISHED")


def test_a_network_that_cannot_be_exported_is_a_warning_and_the_run_continues(
    flaky: FlakyTracker,
    wrap: Callable[..., ResilientTracker],
    caplog: pytest.LogCaptureFixture,
) -> None:
    tracker = wrap()
    tracker.log_model(torch.nn.Linear(4, 2), PREPARATION)
    tracker.finish("FINISHED")
    (warning,) = warnings_in(caplog)
    assert "cannot be exported and is not tracked (AttributeError: " in warning
    assert flaky.calls == [("finish", "FINISHED")]


def test_an_outage_in_the_middle_of_the_delivery_keeps_the_rest(
    flaky: FlakyTracker, wrap: Callable[..., ResilientTracker], spool_dir: Path
) -> None:
    tracker = wrap()
    flaky.is_down = True
    for step in range(4):
        tracker.log_metrics({"loss": 1.0}, step=step)
    flaky.is_down = False
    take = flaky._take

    def take_two(*call: Any) -> None:
        flaky.is_down = len(flaky.calls) == 2
        take(*call)

    flaky._take = take_two  # type: ignore[method-assign]
    with pytest.raises(ConnectionError):
        deliver_all(spool_dir, flaky)
    assert flaky.steps == [0, 1]
    flaky._take = take  # type: ignore[method-assign]
    flaky.is_down = False
    assert deliver_all(spool_dir, flaky) == 2
    assert flaky.steps == [0, 1, 2, 3]
    assert deliver_all(spool_dir, flaky) == 0


def test_a_run_that_ends_in_an_outage_names_the_place_of_its_records(
    flaky: FlakyTracker,
    wrap: Callable[..., ResilientTracker],
    spool_dir: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tracker = wrap()
    flaky.is_down = True
    tracker.log_metrics({"loss": 1.0}, step=0)
    caplog.clear()
    tracker.finish("FAILED")
    (warning,) = warnings_in(caplog)
    assert "2 records of run run-1" in warning
    assert str(spool_dir / "untracked.jsonl") in warning

    flaky.is_down = False
    assert deliver_all(spool_dir, flaky) == 2
    assert flaky.calls[-1] == ("finish", "FAILED")


def test_a_resumed_run_delivers_what_its_predecessor_could_not_but_not_its_end(
    flaky: FlakyTracker, wrap: Callable[..., ResilientTracker], spool_dir: Path
) -> None:
    flaky.is_down = True
    first = wrap()
    first.log_metrics({"loss": 1.0}, step=0)
    first.finish("KILLED")
    flaky.is_down = False
    second = wrap()
    second.log_metrics({"loss": 0.5}, step=1)
    assert flaky.steps == [0, 1]
    assert ("finish", "KILLED") not in flaky.calls
    assert list(spool_dir.iterdir()) == []


def test_records_of_one_run_are_not_given_to_another(
    flaky: FlakyTracker, wrap: Callable[..., ResilientTracker], spool_dir: Path
) -> None:
    flaky.is_down = True
    wrap().log_metrics({"loss": 1.0}, step=0)
    with pytest.raises(UserError, match=r"untracked\.jsonl: contains records of run run-1"):
        open_tracker(f"sqlite:///{spool_dir}/new.db", experiment="e", spool_dir=spool_dir)
    assert not (spool_dir / "new.db").exists()


def test_a_refused_call_is_left_out_and_stops_neither_the_run_nor_later_records(
    flaky: FlakyTracker,
    wrap: Callable[..., ResilientTracker],
    spool_dir: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tracker = wrap()
    tracker.set_tags({"never": "1"})
    assert "set_tags was refused and is dropped (this tag is not allowed)" in caplog.text
    assert not spool_dir.exists()
    flaky.is_down = True
    tracker.log_metrics({"loss": 1.0}, step=0)
    tracker.set_tags({"never": "1"})
    tracker.log_metrics({"loss": 1.0}, step=1)
    flaky.is_down = False
    tracker.finish("FINISHED")
    assert flaky.steps == [0, 1]


def test_a_tracker_that_hangs_holds_up_no_call_and_gets_each_once(
    flaky: FlakyTracker, wrap: Callable[..., ResilientTracker]
) -> None:
    tracker = wrap(time_limit_s=0.2)
    flaky.may_answer.clear()
    tracker.log_metrics({"loss": 1.0}, step=0)
    tracker.log_metrics({"loss": 1.0}, step=1)
    assert flaky.num_calls == 1
    assert flaky.steps == [], "both calls returned while the tracker still hung"
    flaky.may_answer.set()
    tracker.finish("FINISHED")
    # The call that hung arrives late, and again from the spool, with the same time: one metric.
    assert flaky.steps == [0, 0, 1]
    assert flaky.calls[0] == flaky.calls[1]


class SlowWorker:
    """Makes calls at once, each of which takes ``time_s`` of the clock."""

    def __init__(self, clock: Clock, time_s: float) -> None:
        self._clock, self._time_s = clock, time_s

    def submit(self, call: Callable[..., None], *arguments: Any) -> Any:
        def result(timeout_s: float | None) -> None:
            if timeout_s is not None and timeout_s < self._time_s:
                raise TimeoutError
            self._clock.now_s += self._time_s
            call(*arguments)

        return SimpleNamespace(result=result, cancel=lambda: None)


def test_delivery_in_mid_run_takes_no_longer_than_the_limit(
    flaky: FlakyTracker,
    wrap: Callable[..., ResilientTracker],
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tracker = wrap(time_limit_s=1.0)
    flaky.is_down = True
    for step in range(20):
        tracker.log_metrics({"loss": 1.0}, step=step)
    flaky.is_down = False
    monkeypatch.setattr(tracker, "_worker", SlowWorker(clock, 0.25))
    clock.now_s += FOREVER_S
    start_s = clock.now_s
    tracker.log_metrics({"loss": 1.0}, step=20)
    assert clock.now_s - start_s == 1.0, "unlimited, it takes 5.25 s"
    assert flaky.steps == [0, 1, 2, 3]
    tracker.finish("FINISHED")
    assert list(dict.fromkeys(flaky.steps)) == list(range(21))


def test_a_torn_line_is_left_out_with_a_warning(
    flaky: FlakyTracker,
    wrap: Callable[..., ResilientTracker],
    spool_dir: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    flaky.is_down = True
    tracker = wrap()
    tracker.log_metrics({"loss": 1.0}, step=0)
    tracker.log_metrics({"loss": 1.0}, step=1)
    log = spool_dir / "untracked.jsonl"
    log.write_text(log.read_text()[:-20])
    flaky.is_down = False
    assert deliver_all(spool_dir, flaky) == 1
    assert flaky.steps == [0]
    assert f"{log}: line 2 is incomplete" in caplog.text


def test_a_record_is_on_the_disk_when_the_call_returns(
    flaky: FlakyTracker,
    wrap: Callable[..., ResilientTracker],
    spool_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    synced: dict[int, int] = {}
    fsync = os.fsync

    def remember(descriptor: int) -> None:
        fsync(descriptor)
        status = os.fstat(descriptor)
        synced[status.st_ino] = status.st_size

    monkeypatch.setattr(os, "fsync", remember)
    picture = tmp_path / "loss.png"
    picture.write_text("picture")
    tracker = wrap()
    flaky.is_down = True
    tracker.log_artifact(picture)
    files = [path for path in spool_dir.rglob("*") if path.is_file()]
    assert len(files) == 2
    for path in files:
        assert synced[path.stat().st_ino] == path.stat().st_size


def test_a_spool_that_cannot_be_written_stops_no_run(
    flaky: FlakyTracker,
    wrap: Callable[..., ResilientTracker],
    spool_dir: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    spool_dir.parent.mkdir(parents=True)
    spool_dir.write_text("a file where the folder should be")
    tracker = wrap(num_tries=1)
    flaky.is_down = True
    for step in range(3):
        tracker.log_metrics({"loss": 1.0}, step=step)
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "its records are lost" in errors[0].getMessage()


def test_a_file_that_is_not_there_is_the_callers_mistake(
    wrap: Callable[..., ResilientTracker], tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        wrap().log_artifact(tmp_path / "nothing.png")


class Server:
    """A real MLflow server over one store, that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log = (self._folder / "server.log").open("ab")
        self._process = subprocess.Popen(
            (
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"),
                *("--port", str(self.port), "--workers", "1"),
                *("--backend-store-uri", f"sqlite:///{self._folder}/server.db"),
                *("--artifacts-destination", str(self._folder / "files")),
            ),
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "server.log").read_text()
            time.sleep(0.2)

    def kill(self) -> None:
        """Kill the server and its worker, the process group that ``start`` made."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path)
    running.start()
    yield running
    running.kill()


@pytest.mark.slow
def test_a_run_outlives_the_death_of_its_server_and_loses_nothing(
    server: Server,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.3")
    picture = tmp_path / "loss.png"
    picture.write_text("picture")
    spool = tmp_path / "spool"
    tracker = open_tracker(server.uri, experiment="e", spool_dir=spool)
    assert tracker.run_id is not None
    tracker.log_metrics({"loss": 0.0}, step=0)

    server.kill()
    tries = []
    log_metrics = tracker._tracker.log_metrics

    def count(*arguments: Any, **settings: Any) -> None:
        tries.append(settings["step"])
        log_metrics(*arguments, **settings)

    monkeypatch.setattr(tracker._tracker, "log_metrics", count)
    for step in range(1, 10):
        tracker.log_metrics({"loss": float(step)}, step=step)
    tracker.log_artifact(picture, "figures")
    assert set(tries) == {1}, "after the first call, the others go to the spool untried"
    assert len(tries) <= 3
    (warning,) = warnings_in(caplog)
    assert server.uri in warning
    assert str(spool / "untracked.jsonl") in warning
    assert len((spool / "untracked.jsonl").read_text().splitlines()) == 10
    with pytest.raises(UserError, match=r"tracking\.uri = .* start its server"):
        open_tracker(server.uri, experiment="e", spool_dir=tmp_path / "other")

    server.start()
    tracker.log_metrics({"loss": 10.0}, step=10)
    tracker.finish("FINISHED")
    assert len(warnings_in(caplog)) == 1
    assert not (spool / "untracked.jsonl").exists()

    from mlflow import MlflowClient

    client = MlflowClient(server.uri)
    history = client.get_metric_history(tracker.run_id, "loss")
    assert [metric.step for metric in history] == list(range(11))
    assert [metric.value for metric in history] == [float(step) for step in range(11)]
    times = [metric.timestamp for metric in history]
    assert times == sorted(times)
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    (file,) = client.list_artifacts(tracker.run_id, "figures")
    assert (file.path, file.file_size) == ("figures/loss.png", 7)
    assert capfd.readouterr().out == ""
