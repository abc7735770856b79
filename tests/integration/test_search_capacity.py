"""Trials on nodes that join, leave and are lost, and in processes that run out of memory.

The clusters are real; their GPUs are numbers that Ray counts. Where trials need one, a wait
replaces their training.
"""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter
from dataclasses import asdict

import pytest
import ray
import torch
from ray import tune
from ray.cluster_utils import Cluster
from searches import trials_of, write_search

from labn.config import load_search
from labn.runs.train import TrainingHooks
from labn.sweeps.search import callback, search_driver
from labn.sweeps.search.trial import NODE, OUTCOME
from labn.sweeps.worker import Outcome

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
GPU_NODE = {"num_cpus": 1, "num_gpus": 1}


@pytest.fixture
def start_cluster(monkeypatch):
    """Start a head to which tests add nodes, and connect to it."""
    started = []

    def start(**head):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            started.append(Cluster(initialize_head=True, head_node_args=head))
            ray.init(started[-1].address, log_to_driver=False, include_dashboard=False)
        return started[-1]

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    # It would find that the GPUs are none.
    monkeypatch.setattr(search_driver, "check_nodes", lambda *_: None)
    yield start
    ray.shutdown()
    for cluster in started:
        cluster.shutdown()


class Scenes:
    """A reporter that plays scenes: each waits for a status, then changes something."""

    def __init__(self, *scenes):
        self.scenes, self.said = list(scenes), []
        self.most_at_once = self.num_seen = 0

    def message(self, text):
        self.said.append(text)

    def show(self, status):
        self.most_at_once = max(self.most_at_once, len(status.running))
        # Seen twice, so that the search has acted on it.
        self.num_seen = self.num_seen + 1 if self.scenes and self.scenes[0][0](status) else 0
        if self.num_seen == 2:
            self.num_seen = 0
            self.scenes.pop(0)[1]()


def search(folder, reporter, **settings):
    path = write_search(folder, sampler={"name": "random"}, pruning=None, **settings)
    summary = search_driver.run_search(load_search(path), path, reporter)
    assert not reporter.scenes, reporter.said
    return summary


def waiting_trial(folder):
    """Return a trial that waits for a file of its number."""

    def run_trial(given, worker, required):
        tune.report({NODE: ray.get_runtime_context().get_node_id()})
        tune.report({"epoch": 1, "val_pid": 0.5})
        with (folder / "nodes").open("a") as file:
            file.write(f"{ray.get_runtime_context().get_node_id()}\n")
        while not (folder / f"end-{given['number']}").exists():
            time.sleep(0.1)
        tune.report({OUTCOME: asdict(Outcome(state="finished", metrics={"val_pid": 0.5}))})

    return run_trial


def test_trials_of_several_workers_are_counted_again_as_nodes_join_and_leave(
    tmp_path, start_cluster, monkeypatch
):
    """The head has no GPU, as in cluster/gpu.yaml; the first nodes join after the start."""
    cluster, joined = start_cluster(num_cpus=0, num_gpus=0), []

    def join():
        joined.extend(cluster.add_node(**GPU_NODE) for _ in range(2))

    def leave():
        for node in joined[-2:]:
            cluster.remove_node(node, allow_graceful=True)

    def end(*numbers):
        for number in numbers:
            (tmp_path / f"end-{number}").touch()

    fits = "trials that fit at once: {} (a trial needs 2 x 1 CPUs and 1 GPUs; the cluster has {})"
    scenes = Scenes(
        (lambda status: set(status.running) == {0}, lambda: (join(), join())),
        (lambda status: set(status.running) == {0, 1}, join),
        (lambda status: set(status.running) == {0, 1, 2}, leave),
        (lambda _: fits.format(2, "4 CPUs and 4 GPUs") in scenes.said[-1], lambda: end(0)),
        (lambda status: set(status.running) == {1, 2}, lambda: end(1)),
        (lambda status: set(status.running) == {2, 3}, lambda: end(2, 3, 4)),
    )
    monkeypatch.setattr(search_driver, "run_trial", waiting_trial(tmp_path))

    summary = search(tmp_path, scenes, trials=5, trial={"cpus": 1, "gpus": 1, "workers": 2})

    counts = [text for text in scenes.said if text.startswith("trials that fit")]
    print("\n".join(scenes.said))
    assert counts[0] == fits.format(0, "0 CPUs and 0 GPUs")
    assert fits.format(3, "6 CPUs and 6 GPUs") in counts
    assert counts[-1] == fits.format(2, "4 CPUs and 4 GPUs")
    assert scenes.most_at_once == 3
    assert summary["counts"] == {"finished": 5}


def test_a_trial_that_runs_out_of_memory_fails_alone_and_its_process_is_replaced(
    tmp_path, start_cluster, monkeypatch
):
    start_cluster(num_cpus=1)
    run_trial = search_driver.run_trial

    def run_trial_1_out_of_memory(given, worker, required):
        with (tmp_path / "processes").open("a") as file:
            file.write(f"{given['number']} {os.getpid()}\n")

        def complete(hooks):
            if hooks.config.output_dir.name == "1":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. And")
            return original(hooks)

        original = TrainingHooks.complete
        TrainingHooks.complete = complete
        try:
            run_trial(given, worker, required)
        finally:
            TrainingHooks.complete = original

    monkeypatch.setattr(search_driver, "run_trial", run_trial_1_out_of_memory)
    scenes = Scenes()

    summary = search(tmp_path, scenes, trials=4, trial={"cpus": 1}, fixed={"train.epochs": 1})

    print("\n".join(scenes.said), summary["counts"])
    reason = (
        "train.batch_size = 8 at data.image_size = 32: out of memory (CUDA out of memory. Tried to"
        " allocate 2.00 GiB); set train.accumulation_steps=2 (batch norm sees the parts), or a"
        " smaller train.batch_size"
    )
    assert summary["counts"] == {"finished": 3, "failed": 1}
    assert trials_of(tmp_path)[1].user_attrs["reason"] == reason
    assert "trial 1 ran out of memory; replacing its process" in scenes.said
    (failed,) = [text for text in scenes.said if text.startswith("trial 1 failed in ")]
    assert failed.endswith(f" s: {reason}")
    started = [line.split() for line in (tmp_path / "processes").read_text().splitlines()]
    assert [number for number, _ in started[:2]] == ["0", "1"]
    assert sorted(number for number, _ in started[2:]) == ["1", "2", "3"]
    first, exhausted, *others = [process for _, process in started]
    assert first == exhausted, "trials share a process"
    assert set(others) == {others[0]}, "its successor reports the failure, and serves the others"
    assert others[0] != exhausted


def test_lost_nodes_are_no_failures_of_a_trial(tmp_path, start_cluster, monkeypatch):
    """Its process may be lost once, and is lost with three nodes, unannounced."""
    cluster, nodes = start_cluster(num_cpus=0, num_gpus=0), []
    monkeypatch.setattr(callback, "MAX_RESTARTS", 1)
    monkeypatch.setattr(callback, "_CHECK_S", 0)
    monkeypatch.setattr(search_driver, "MAX_RESTARTS", 1)
    monkeypatch.setattr(search_driver, "run_trial", waiting_trial(tmp_path))
    nodes.append(cluster.add_node(**GPU_NODE))

    def replace_node():
        cluster.remove_node(nodes.pop(), allow_graceful=False)
        nodes.append(cluster.add_node(**GPU_NODE))

    def has_started(times):
        """Return whether the trial runs on the newest node, and the others are known as lost."""
        lost = Counter(scenes.said)["trial 0 lost its process; resuming in another"]
        if lost < times or sum(node["Alive"] for node in ray.nodes()) > 2:
            return False
        started = tmp_path / "nodes"
        # The file is empty for a moment before its first line is in it.
        return started.exists() and started.read_text().split()[-1:] == [nodes[-1].node_id]

    scenes = Scenes(
        *[(lambda _, n=n: has_started(n), replace_node) for n in range(3)],
        (lambda _: has_started(3), lambda: (tmp_path / "end-0").touch()),
    )

    summary = search(tmp_path, scenes, trials=1, trial={"cpus": 1, "gpus": 1})

    print("\n".join(scenes.said))
    assert Counter(scenes.said)["trial 0 lost its process; resuming in another"] == 3
    assert summary["counts"] == {"finished": 1}


def test_drivers_of_trials_are_on_the_head_whatever_other_nodes_have_room(
    tmp_path, start_cluster, monkeypatch
):
    cluster = start_cluster(num_cpus=0, num_gpus=0, memory=500_000)
    for _ in range(2):
        cluster.add_node(num_cpus=4, num_gpus=1)
    head = cluster.head_node.node_id

    def run_trial(given, worker, required):
        here = ray.get_runtime_context().get_node_id()
        state = Outcome(state="finished", metrics={"val_pid": float(here == head)})
        tune.report({OUTCOME: asdict(state)})

    monkeypatch.setattr(search_driver, "run_trial", run_trial)

    search(tmp_path, Scenes(), trials=3, trial={"cpus": 1, "gpus": 1, "workers": 2})

    assert [trial.values for trial in trials_of(tmp_path)] == [[1.0]] * 3
