"""How many processes fit on the nodes of a cluster, whose descriptions stand in for Ray's."""

from __future__ import annotations

import pytest

from labn.config.workers import Workers
from labn.distributed import capacity
from labn.distributed.capacity import check_capacity, max_concurrent, num_lost, num_slots, resources
from labn.errors import UserError


@pytest.fixture
def nodes(monkeypatch, tmp_path):
    """Replace the cluster by the resources of nodes, of which those named "down" are lost."""

    def give(**resources_by_name):
        described = [
            {"NodeID": name, "Alive": not name.startswith("down"), "Resources": has}
            for name, has in resources_by_name.items()
        ]
        totals = {}
        for node in described:
            for key, amount in node["Resources"].items() if node["Alive"] else ():
                totals[key] = totals.get(key, 0) + amount
        monkeypatch.setattr(capacity.ray, "nodes", lambda: described)
        monkeypatch.setattr(capacity.ray, "cluster_resources", lambda: totals)

    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return give


@pytest.mark.parametrize(
    ("workers", "fitting"),
    [
        (Workers(num=1, cpus=1), 5),
        (Workers(num=1, cpus=2), 2),
        (Workers(num=1, cpus=1, gpus=1), 2),
        (Workers(num=1, cpus=0.5, gpus=2), 1),
        # A fraction lies on one GPU: two of 0.4 on each.
        (Workers(num=1, cpus=0.5, gpus=0.4), 4),
        (Workers(num=1, cpus=1, resources={"fast": 1}), 1),
        (Workers(num=1, cpus=1, resources={"absent": 1}), 0),
    ],
)
def test_processes_are_counted_on_each_node_that_is_up(nodes, workers, fitting):
    nodes(a={"CPU": 4, "GPU": 2, "fast": 1}, b={"CPU": 1}, down={"CPU": 64, "GPU": 8})

    assert num_slots(workers) == fitting


def test_runs_at_once_are_as_many_as_fit_and_never_none(nodes):
    workers = Workers(num=2, gpus=1)
    nodes(head={"CPU": 1})
    assert max_concurrent(workers) == 1

    nodes(head={"CPU": 1}, a={"CPU": 4, "GPU": 4}, b={"CPU": 4, "GPU": 2})
    assert max_concurrent(workers) == 3
    assert max_concurrent(workers, 2) == 2
    assert max_concurrent(Workers(num=1, gpus=0.5)) == 8


@pytest.mark.parametrize("kind", ["aws", "gcp", "kuberay"])
def test_on_a_cluster_that_may_grow_one_trial_more_waits_for_what_is_added(
    nodes, monkeypatch, tmp_path, kind
):
    workers = Workers(num=2, gpus=1)
    if kind == "kuberay":
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    else:
        (tmp_path / "ray_bootstrap_config.yaml").write_text(f"provider: {{type: {kind}}}")

    nodes(head={"CPU": 1})
    assert max_concurrent(workers) == 1
    nodes(head={"CPU": 1}, a={"CPU": 4, "GPU": 4})
    assert max_concurrent(workers) == 3
    assert max_concurrent(workers, 2) == 2
    assert max_concurrent(Workers(num=1, gpus=1)) is None
    assert max_concurrent(Workers(num=1, gpus=1), 8) == 8


def test_machines_of_ones_own_are_all_there_are(nodes, tmp_path):
    (tmp_path / "ray_bootstrap_config.yaml").write_text("provider: {type: local}")
    nodes(a={"CPU": 4}, b={"CPU": 4})

    assert max_concurrent(Workers(num=2)) == 4


def test_a_driver_of_several_workers_reserves_no_cpu_and_stays_on_the_head():
    assert resources(Workers(num=2, gpus=1)) == {"CPU": 0, "node:__internal_head__": 0.001}
    assert resources(Workers(num=1, cpus=2, gpus=1)) == {"CPU": 2, "GPU": 1}


def test_a_run_that_this_machine_can_never_hold_is_refused_with_the_keys_to_change(nodes):
    nodes(here={"CPU": 2})
    keys = ("trial.workers", "trial.cpus", "trial.gpus")
    check_capacity(Workers(num=4, least=2), keys)

    with pytest.raises(UserError) as error:
        check_capacity(Workers(num=2, gpus=1), keys)

    assert str(error.value) == (
        "trial.workers = 2: needs 2 x 1 CPUs and 1 GPUs, but this machine has 2 CPUs and 0 GPUs;"
        " reduce trial.workers, trial.cpus or trial.gpus"
    )
    with pytest.raises(UserError, match=r"^--workers 2: needs .*; reduce --workers or --resource$"):
        check_capacity(Workers(num=2, gpus=1), ("--workers", "--resource"))


def test_nodes_that_are_no_longer_up_or_known_are_lost(nodes):
    nodes(a={}, down={})

    assert num_lost({"a"}) == num_lost(set()) == 0
    assert num_lost({"a", "down", "forgotten"}) == 2
