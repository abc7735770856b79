"""Workers on several nodes of a real Ray cluster; nodes leave, join and are taken back."""

from __future__ import annotations

import json
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import warnings
from pathlib import Path

import pandas as pd
import pytest
from command_line import ENVIRONMENT, wait_for, write_config

from labn.tracking import server as browsing
from labn.training import checkpoint

pytestmark = pytest.mark.slow
PATIENCE_S = 240
PLACEMENTS = (
    "import json, ray; ray.init(log_to_driver=False, logging_level='error');"
    "table = ray.util.placement_group_table().values();"
    "print(json.dumps([group for group in table if group['state'] == 'CREATED']))"
)
RAY = Path(sys.executable).with_name("ray")
# As `labn train`, but capacity is checked more often, and one failure is the most.
COMMAND = (
    "import labn.distributed.train_driver as driver;"
    "driver._RESIZE_S = driver._CAPACITY_CHECK_S = 3.0;"
    "driver._MAX_FAILURES = 1;"
    "from labn.cli import main; main()"
)


@pytest.fixture
def cluster():
    """A head of one CPU, to which tests add nodes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "resources": {"fast": 1}}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        yield cluster
        cluster.shutdown()


def world_sizes(store):
    """Give the number of workers of each epoch, as the tracker has it; none while it is set up."""
    if not store.exists():
        return []
    with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as opened:
        query = "select step, value from metrics where key = 'world_size' order by step"
        try:
            return [value for _, value in opened.execute(query)]
        except sqlite3.OperationalError:  # the table grows column by column
            return []


@pytest.fixture
def started():
    """Start processes that end with the test, whatever befalls it."""
    processes = []

    def start(*arguments, **settings):
        processes.append(subprocess.Popen(*arguments, **settings))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def tracker(tmp_path):
    """A server, which several nodes need, with its store in a file that the test reads."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with browsing.serving(f"sqlite:///{tmp_path / 'mlflow.db'}", "127.0.0.1", port):
        yield f"http://127.0.0.1:{port}"


def test_workers_lie_where_they_are_asked_to(tmp_path, cluster, started):
    cluster.add_node(num_cpus=1, resources={"fast": 1})
    cluster.wait_for_nodes()
    config = write_config(tmp_path, train__epochs=5000, train__early_stopping_patience=None)
    command = [
        sys.executable, "-m", "labn", "train", str(config), "--workers", "2",
        "--placement", "STRICT_SPREAD", "--resource",
    ]  # fmt: skip
    environment = ENVIRONMENT | {"RAY_ADDRESS": cluster.address}

    waiting = started([*command, "fast=2"], stderr=subprocess.PIPE, text=True, env=environment)
    message = next(line for line in waiting.stderr if line.startswith("waiting for capacity"))
    assert "needs 2 x 1 CPUs and 2 fast; the cluster has 2 CPUs and 0 GPUs and 2 fast" in message
    waiting.send_signal(signal.SIGTERM)
    waiting.communicate(timeout=PATIENCE_S)

    process = started(
        [*command, "fast=1"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    wait_for(lambda: checkpoint.newest_path(tmp_path / "run/checkpoints") is not None, process)

    listed = subprocess.run(
        [sys.executable, "-c", PLACEMENTS], check=True, capture_output=True, text=True,
        env=environment, timeout=PATIENCE_S,
    )  # fmt: skip
    process.send_signal(signal.SIGTERM)
    assert "stopped as asked" in process.communicate(timeout=PATIENCE_S)[1]
    (group,) = json.loads(listed.stdout)
    assert group["strategy"] == "STRICT_SPREAD"
    assert list(group["bundles"].values()) == [{"CPU": 1, "fast": 1}] * 2
    assert len(set(group["bundles_to_node_id"].values())) == 2


def test_a_node_that_is_taken_back_costs_no_more_than_the_warning_allows(
    tmp_path, cluster, started
):
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    config = write_config(
        tmp_path, data__synthetic__num_images=400, train__epochs=5000,
        train__early_stopping_patience=None, train__log_steps=1, train__keep_checkpoints=1000,
    )  # fmt: skip
    process = started(
        [sys.executable, "-c", COMMAND, "train", str(config), "--workers", "1:2"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=ENVIRONMENT | {
            "RAY_ADDRESS": cluster.address,
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
            "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5",
        },
    )  # fmt: skip
    folder = tmp_path / "run/checkpoints"
    wait_for(lambda: checkpoint.newest_path(folder) is not None, process)
    steps_per_epoch = checkpoint.step_of(checkpoint.newest_path(folder))

    def out_of_turn():
        """Give the steps of checkpoints in the middle of an epoch."""
        steps = [checkpoint.step_of(path) for path in folder.glob("step-*.pt")]
        return [step for step in steps if step % steps_per_epoch]

    # As an agent of a cloud does when a spot machine is to be taken back.
    subprocess.run(
        [RAY, "drain-node", "--address", cluster.address, "--node-id", node.node_id,
         "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken back",
         "--deadline-remaining-seconds", "30"],
        check=True, capture_output=True,
    )  # fmt: skip
    wait_for(out_of_turn, process)
    cluster.remove_node(node, allow_graceful=False)
    num_saved = len(list(folder.iterdir()))
    wait_for(lambda: len(list(folder.iterdir())) > num_saved + 2, process)

    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert re.search(r"the node of worker [01] is about to be preempted in \d+ s", errors), errors
    assert "workers were lost; continuing with 1" in errors
    assert len(out_of_turn()) <= 2, "the warning's, and the stop's"


def test_a_run_whose_node_is_lost_reports_what_it_waits_for_and_resumes_when_that_comes(
    tmp_path, cluster, started
):
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    config = write_config(tmp_path, train__epochs=5000, train__early_stopping_patience=None)
    folder = tmp_path / "run/checkpoints"
    process = started(
        [sys.executable, "-c", COMMAND, "train", str(config), "--workers", "2"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=ENVIRONMENT | {"RAY_ADDRESS": cluster.address},
    )  # fmt: skip
    wait_for(lambda: checkpoint.newest_path(folder) is not None, process)

    cluster.remove_node(node, allow_graceful=False)

    lack = "waiting for capacity: the run needs 2 x 1 CPUs; the cluster has 1 CPUs and 0 GPUs\n"
    for again in range(2):
        if again:
            cluster.remove_node(node, allow_graceful=False)
        assert any(line == lack for line in process.stderr), "it ended without a word"
        saved = checkpoint.newest_path(folder)
        node = cluster.add_node(num_cpus=1)
        wait_for(lambda saved=saved: checkpoint.newest_path(folder) != saved, process)

    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert "workers were lost; started them again (restart 2)" in errors


def test_a_run_continues_with_the_workers_there_are(tmp_path, cluster, tracker, started):
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    store = tmp_path / "mlflow.db"
    config = write_config(
        tmp_path, train__epochs=5000, train__early_stopping_patience=None,
        train__checkpoint_steps=1, train__batch_size=7, tracking__uri=tracker,
        tracking__log_model=False,
    )  # fmt: skip
    process = started(
        [sys.executable, "-c", COMMAND, "train", str(config), "--workers", "1:2"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=ENVIRONMENT | {
            "RAY_ADDRESS": cluster.address,
            # Ray first waits for as many as there were; a minute, by default.
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
        },
    )  # fmt: skip
    wait_for(lambda: world_sizes(store)[-2:] == [2, 2], process)

    cluster.remove_node(node, allow_graceful=False)

    wait_for(lambda: world_sizes(store)[-2:] == [1, 1], process)

    cluster.add_node(num_cpus=1)

    wait_for(lambda: world_sizes(store)[-2:] == [2, 2], process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1, errors
    assert "error: stopped as asked; everything is saved" in errors
    assert "Traceback" not in errors
    assert "workers were lost; continuing with 1" in errors
    assert "workers joined; continuing with 2" in errors
    # No epoch is missing, and all took the steps of batches of seven: 25 images, the bias image.
    history = pd.read_csv(tmp_path / "run/history.csv")
    assert history["epoch"].tolist() == list(range(1, len(history) + 1))
    _, newest = checkpoint.load_newest(tmp_path / "run/checkpoints")
    progress = newest["progress"]
    assert progress["global_step"] == 4 * progress["epoch"] + progress["step"]
    assert newest["schedule"]["last_epoch"] == progress["global_step"]
    with sqlite3.connect(store) as opened:
        assert opened.execute("select count(*) from runs").fetchone() == (1,)
        (restarts,) = opened.execute("select value from tags where key = 'restarts'").fetchone()
    assert int(restarts) >= 2
