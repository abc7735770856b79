"""One contract for every tracker, and what opening one promises."""

from __future__ import annotations

import inspect
import logging
import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from labn.errors import UserError
from labn.tracking import (
    CallRefused,
    NoTracker,
    Preparation,
    Tracker,
    open_tracker,
    resolve_uri,
    save_servable,
)
from labn.tracking.mlflow_tracker import MlflowTracker
from labn.tracking.resilient import ResilientTracker

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
PREPARATION = Preparation(class_names=("no", "yes"), image_size=8, mean=(0.25,), std=(0.5,))


class Output(NamedTuple):
    logits: torch.Tensor
    branch_logits: torch.Tensor
    attention: torch.Tensor


class TinyNetwork(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(1, 3, 3, stride=2, padding=1)
        self.norm = torch.nn.BatchNorm2d(3)
        self.head = torch.nn.Linear(3, 2)

    def forward(self, images: torch.Tensor) -> Output:
        features = self.norm(self.stem(images)).relu()
        attention = features.mean(dim=1, keepdim=True).sigmoid()
        logits = self.head((features * attention).mean(dim=(2, 3)))
        return Output(logits, logits, attention)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    address = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
    MlflowTracker(address, experiment="first", log_system_metrics=False).finish("FINISHED")
    return address


@pytest.fixture
def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri)


@pytest.fixture
def experiment(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


@pytest.fixture
def open_mlflow(uri: str, experiment: str) -> Iterator[Callable[..., MlflowTracker]]:
    trackers = []

    def open_it(**arguments: Any) -> MlflowTracker:
        settings = {"experiment": experiment, "log_system_metrics": False} | arguments
        trackers.append(MlflowTracker(uri, **settings))
        return trackers[-1]

    yield open_it
    for tracker in trackers:
        tracker.finish("FINISHED")


@pytest.fixture(params=["null", "mlflow", "resilient"])
def tracker(
    request: pytest.FixtureRequest, open_mlflow: Callable[..., MlflowTracker], tmp_path: Path
) -> Tracker:
    if request.param == "null":
        return NoTracker()
    if request.param == "mlflow":
        return open_mlflow()
    return ResilientTracker(open_mlflow(), tmp_path / "spool", name="test")


@pytest.fixture
def manifest() -> pd.DataFrame:
    return pd.DataFrame(
        {"name": ["a.jpg", "b.jpg"], "label": [0, 1], "partition": ["train", "test"]}
    )


@pytest.mark.parametrize("kind", [MlflowTracker, ResilientTracker])
def test_no_call_is_left_to_the_base_which_does_nothing(kind):
    calls = {name for name, value in vars(Tracker).items() if inspect.isfunction(value)}

    assert {"log_metrics", "finish"} < calls
    assert calls - vars(kind).keys() == set()
    assert kind.__init__ is not Tracker.__init__  # which sets the run's id


def test_every_tracker_takes_every_call_and_keeps_what_it_can(
    tracker: Tracker, client: Any, manifest: pd.DataFrame, tmp_path: Path
) -> None:
    picture = tmp_path / "loss.png"
    picture.write_bytes(b"picture")
    tracker.log_params({"train.epochs": 3, "data.root": None, "loss.class_weights": (1.0, 2.0)})
    tracker.set_tags({"stage": "first"})
    tracker.set_tags({"stage": "second"})
    tracker.log_metrics({"val_loss": 0.5, "val_pid": 0.25}, step=1)
    tracker.log_metrics({"val_loss": 0.125}, step=2)
    tracker.log_metrics({}, step=2)
    tracker.log_artifact(picture, "figures")
    tracker.log_dataset(manifest, name="idrid", source=str(tmp_path), digest="5" * 64)
    tracker.finish("FAILED")

    if tracker.run_id is None:
        return
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FAILED"
    assert run.data.params == {
        "train.epochs": "3",
        "data.root": "None",
        "loss.class_weights": "(1.0, 2.0)",
    }
    assert run.data.tags["stage"] == "second"
    history = client.get_metric_history(tracker.run_id, "val_loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.5), (2, 0.125)]
    assert run.data.metrics["val_pid"] == 0.25
    files = client.list_artifacts(tracker.run_id, "figures")
    assert [(file.path, file.file_size) for file in files] == [("figures/loss.png", 7)]
    (logged,) = run.inputs.dataset_inputs
    assert (logged.dataset.name, logged.dataset.digest) == ("idrid", "5" * 36)
    assert str(tmp_path) in logged.dataset.source
    assert '"num_rows": 2' in logged.dataset.profile


def test_a_kept_network_predicts_both_outputs_for_any_batch(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    torch.manual_seed(0)
    network = TinyNetwork().train()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8)
    images = ((pixels[:, None] / 255 - 0.25) / 0.5).astype(np.float32)
    network(torch.from_numpy(images))  # moves the running statistics away from their start
    tracker.log_model(network, PREPARATION)
    assert network.training

    if tracker.run_id is None:
        return
    import mlflow.pyfunc
    import mlflow.pytorch

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    loaded = mlflow.pyfunc.load_model(f"runs:/{tracker.run_id}/model")
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(images))
    for num_images in (1, 2, 5):
        answer = loaded.predict(pixels[:num_images])
        # The exported program runs the same kernels; only their fusion may differ.
        np.testing.assert_allclose(
            answer["probabilities"], expected.logits[:num_images].softmax(-1), atol=1e-6
        )
        np.testing.assert_allclose(answer["attention"], expected.attention[:num_images], atol=1e-6)
    pictures = [Image.fromarray(image) for image in pixels]
    of_pictures = loaded.predict([pictures[0].resize((40, 20)), *pictures])
    np.testing.assert_array_equal(of_pictures["probabilities"][1:], answer["probabilities"])
    with pytest.raises(ValueError, match=r"got shape \(8, 8\) of float32, must be .* of uint8"):
        loaded.predict(images[:, 0])
    carried = loaded.metadata.metadata
    assert (carried["class_names"], carried["mean"], carried["std"]) == (
        ["no", "yes"],
        [0.25],
        [0.5],
    )
    assert {spec.name for spec in loaded.metadata.signature.outputs.inputs} == set(answer)
    assert loaded.metadata.run_id == tracker.run_id
    program = mlflow.pytorch.load_model(f"runs:/{tracker.run_id}/model")
    assert set(program(torch.from_numpy(images))) == {"probabilities", "attention"}


def test_an_upload_that_broke_off_is_taken_up_again(
    open_mlflow: Callable[..., MlflowTracker],
    client: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    tracker = open_mlflow()
    save_servable(TinyNetwork(), PREPARATION, tmp_path / "model")

    def break_off(*_: Any) -> None:
        raise ConnectionError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(tracker._client, "log_model_artifacts", break_off)
        with pytest.raises(ConnectionError):
            tracker.log_saved_model(tmp_path / "model")
    tracker.log_saved_model(tmp_path / "model")
    run = client.get_run(tracker.run_id)
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert model.status == "READY"
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]


@pytest.mark.slow
def test_a_kept_network_needs_neither_this_package_nor_its_class(
    open_mlflow: Callable[..., MlflowTracker], client: Any
) -> None:
    tracker = open_mlflow()
    tracker.log_model(TinyNetwork(), PREPARATION)
    run = client.get_run(tracker.run_id)
    model = client.get_logged_model(run.outputs.model_outputs[0].model_id)
    assert model.status == "READY"
    script = (
        "import sys, numpy, mlflow.pyfunc\n"
        "sys.modules['labn'] = None\n"
        f"model = mlflow.pyfunc.load_model({model.artifact_location!r})\n"
        "print(model.predict(numpy.ones((3, 30, 20), 'uint8'))['attention'].shape)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "(3, 1, 4, 4)"


def test_a_network_that_exports_with_one_batch_size_only_is_refused(tmp_path: Path) -> None:
    class Rigid(TinyNetwork):
        def forward(self, images: torch.Tensor) -> Output:
            return super().forward(images.view(2, 1, 8, 8))

    with pytest.raises(Exception, match="batch"):
        save_servable(Rigid(), PREPARATION, tmp_path / "model")


def test_metrics_that_are_not_finite_are_left_out(
    open_mlflow: Callable[..., MlflowTracker], client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = open_mlflow()
    with caplog.at_level(logging.DEBUG, logger="labn.tracking"):
        tracker.log_metrics({"nan": float("nan"), "inf": float("-inf"), "fine": 1.0}, step=0)
    assert client.get_run(tracker.run_id).data.metrics == {"fine": 1.0}
    assert "['inf', 'nan']" in caplog.text


def test_metrics_logged_twice_with_one_time_count_once(
    open_mlflow: Callable[..., MlflowTracker], client: Any
) -> None:
    tracker = open_mlflow()
    for _ in range(2):
        tracker.log_metrics({"val_loss": 0.5}, step=3, time_ms=1_700_000_000_000)
    (metric,) = client.get_metric_history(tracker.run_id, "val_loss")
    assert (metric.step, metric.timestamp) == (3, 1_700_000_000_000)


def test_a_resumed_run_continues_where_it_was(
    open_mlflow: Callable[..., MlflowTracker], client: Any
) -> None:
    first = open_mlflow(run_name="trial")
    first.log_params({"train.epochs": 3, "train.seed": 0})
    first.log_metrics({"val_loss": 0.5}, step=1)
    first.finish("KILLED")

    second = open_mlflow(run_id=first.run_id, tags={"resumed": "true"})
    assert client.get_run(first.run_id).info.status == "RUNNING"
    second.log_params({"train.epochs": 5, "train.seed": 0})
    second.log_metrics({"val_loss": 0.25}, step=2)
    second.finish("FINISHED")

    run = client.get_run(first.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "trial")
    assert [m.step for m in client.get_metric_history(first.run_id, "val_loss")] == [1, 2]
    assert run.data.params["train.epochs"] == "3"
    assert run.data.tags["changed.train.epochs"] == "5"
    assert "changed.train.seed" not in run.data.tags
    assert run.data.tags["resumed"] == "true"


def test_the_id_of_a_run_is_known_before_anything_else_can_fail(
    open_mlflow: Callable[..., MlflowTracker], client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MlflowTracker, "set_tags", end)
    known: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        open_mlflow(on_open=known.append)
    assert client.get_run(known[0]).info.status == "RUNNING"


def test_runs_in_one_process_do_not_mix_and_leave_none_active(
    open_mlflow: Callable[..., MlflowTracker], client: Any
) -> None:
    import mlflow

    outer = open_mlflow()
    inner = open_mlflow(tags={"mlflow.parentRunId": outer.run_id})
    outer.log_metrics({"val_loss": 1.0}, step=0)
    inner.log_metrics({"val_loss": 2.0}, step=0)
    assert client.get_run(outer.run_id).data.metrics == {"val_loss": 1.0}
    assert client.get_run(inner.run_id).data.metrics == {"val_loss": 2.0}
    assert mlflow.active_run() is None


def test_no_credentials_reach_the_store(
    open_mlflow: Callable[..., MlflowTracker], client: Any, manifest: pd.DataFrame, uri: str
) -> None:
    address = "https://me:hunter2@host/path"
    tracker = open_mlflow(tags={"opened": address})
    tracker.log_params({"tracking.uri": address})
    tracker.set_tags({"command": f"labn train {address}"})
    tracker.log_dataset(manifest, name="set", source=address, digest="1")
    run = client.get_run(tracker.run_id)
    assert run.data.params["tracking.uri"] == "https://host/path"
    assert b"hunter2" not in Path(uri.removeprefix("sqlite:///")).read_bytes()


def test_a_call_that_can_never_succeed_is_refused(
    open_mlflow: Callable[..., MlflowTracker],
) -> None:
    with pytest.raises(CallRefused, match="val\\*loss"):
        open_mlflow().log_metrics({"val*loss": 1.0}, step=0)


def test_system_metrics_are_logged(
    open_mlflow: Callable[..., MlflowTracker], client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    tracker = open_mlflow(log_system_metrics=True)
    monitor = tracker._monitor
    while not monitor.mlflow_logger.data and monitor._logging_step == 0:
        monitor._process.join(timeout=0.02)
    tracker.finish("FINISHED")
    metrics = client.get_run(tracker.run_id).data.metrics
    assert metrics["system/cpu_utilization_percentage"] >= 0


def test_a_locked_store_costs_no_more_than_the_limit_and_loses_nothing(
    open_mlflow: Callable[..., MlflowTracker],
    uri: str,
    client: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tracker = ResilientTracker(open_mlflow(), tmp_path, name="store", time_limit_s=0.3)
    tracker.log_metrics({"loss": 1.0}, step=0)
    lock = sqlite3.connect(uri.removeprefix("sqlite:///"), isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    for step in range(1, 4):
        tracker.log_metrics({"loss": 1.0}, step=step)
    # MLflow itself waits 20 s for the lock, three times.
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "log_metrics got no answer within 0.3 s" in warning
    assert len((tmp_path / "untracked.jsonl").read_text().splitlines()) == 3
    lock.execute("ROLLBACK")
    lock.close()
    tracker.finish("FINISHED")
    history = client.get_metric_history(tracker.run_id, "loss")
    assert [metric.step for metric in history] == [0, 1, 2, 3]
    assert list(tmp_path.iterdir()) == []


def test_files_lie_beside_the_sqlite_store_wherever_the_process_was_started(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, elsewhere = tmp_path / "home with space", tmp_path / "elsewhere"
    (home / "sub").mkdir(parents=True)
    elsewhere.mkdir()
    shutil.copyfile(uri.removeprefix("sqlite:///"), home / "sub" / "mlflow.db")
    monkeypatch.chdir(home)
    tracker = MlflowTracker("sqlite:///sub/mlflow.db", experiment="e", log_system_metrics=False)
    monkeypatch.chdir(elsewhere)
    (elsewhere / "note.txt").write_text("hello")
    tracker.log_artifact(elsewhere / "note.txt")
    tracker.finish("FINISHED")
    kept = home / "sub" / "mlruns" / tracker.run_id / "artifacts" / "note.txt"
    assert kept.read_text() == "hello"
    assert sorted(path.name for path in elsewhere.iterdir()) == ["note.txt"]


def test_a_sqlite_address_becomes_absolute_and_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    assert resolve_uri("sqlite:////data/mlflow.db") == "sqlite:////data/mlflow.db"
    assert resolve_uri("http://127.0.0.1:5000") == "http://127.0.0.1:5000"


def test_none_tracks_nothing(tmp_path: Path) -> None:
    tracker = open_tracker("none", experiment="e", spool_dir=tmp_path / "spool")
    tracker.log_metrics({"val_loss": 1.0}, step=0)
    tracker.finish("FINISHED")
    assert tracker.run_id is None
    assert list(tmp_path.iterdir()) == []


def test_opening_gives_a_tracker_that_outlives_its_store(
    uri: str, experiment: str, client: Any, tmp_path: Path
) -> None:
    tracker = open_tracker(
        uri, experiment=experiment, run_name="one", tags={"a": "b"}, spool_dir=tmp_path
    )
    tracker.finish("FINISHED")
    assert isinstance(tracker, ResilientTracker)
    assert tracker.run_id is not None
    run = client.get_run(tracker.run_id)
    assert (run.info.run_name, run.data.tags["a"]) == ("one", "b")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://me:hunter2@127.0.0.1:9", "refused"),
        ("file:///tmp/mlruns", "tracking.uri"),
        ("nonsense://host", "nonsense"),
        ("sqlite:////proc/nowhere/mlflow.db", "nowhere"),
    ],
)
def test_a_store_that_cannot_be_opened_is_one_line_that_names_the_key(
    address: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        open_tracker(address, experiment="e", spool_dir=tmp_path)
    message = str(caught.value)
    assert message.startswith("tracking.uri = ")
    assert "tracking.uri=none" in message
    assert "hunter2" not in message
    assert "\n" not in message


def test_a_file_that_is_no_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database, but long enough to be inspected " * 20)
    with pytest.raises(UserError, match="not a database"):
        MlflowTracker(f"sqlite:///{tmp_path}/mlflow.db", experiment="e")


def test_a_run_that_is_not_there_is_named(uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no run 0123abcd"):
        open_tracker(uri, experiment="e", run_id="0123abcd", spool_dir=tmp_path)


def test_a_deleted_run_is_named_with_what_to_do(
    open_mlflow: Callable[..., MlflowTracker], client: Any
) -> None:
    tracker = open_mlflow()
    client.delete_run(tracker.run_id)
    with pytest.raises(UserError) as error:
        open_mlflow(run_id=tracker.run_id)
    client.restore_run(tracker.run_id)
    for part in ("is deleted", "mlflow runs restore", "tracking.uri=none", "tracker.json"):
        assert part in str(error.value)


def test_a_deleted_experiment_is_named(
    open_mlflow: Callable[..., MlflowTracker], client: Any
) -> None:
    tracker = open_mlflow(experiment="gone")
    client.delete_experiment(client.get_run(tracker.run_id).info.experiment_id)
    with pytest.raises(UserError, match="experiment = gone: is deleted"):
        open_mlflow(experiment="gone")
    client.restore_experiment(client.get_run(tracker.run_id).info.experiment_id)


def test_importing_the_package_does_not_import_mlflow() -> None:
    script = "import sys, labn.tracking; sys.exit('mlflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def _open_and_log(uri: str, barrier: Barrier) -> None:
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 - so that all start together

    barrier.wait(timeout=120)
    tracker = MlflowTracker(uri, experiment="shared", log_system_metrics=False)
    tracker.log_metrics({"val_loss": 1.0}, step=0)
    tracker.finish("FINISHED")


@pytest.mark.slow
def test_four_processes_may_open_a_fresh_store_together(tmp_path: Path) -> None:
    path = tmp_path / "new" / "mlflow.db"
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(4)
    workers = [
        context.Process(target=_open_and_log, args=(f"sqlite:///{path}", barrier)) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (4,)
        assert connection.execute(
            "SELECT count(*) FROM experiments WHERE name = 'shared'"
        ).fetchone() == (1,)
    connection.close()
