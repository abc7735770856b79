"""What is wrong with a node, in one line with its fix. Real nodes: tests/integration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from labn.config import Config
from labn.config.workers import Workers
from labn.distributed.checks.nodes import Report, Requirements, check_nodes, find_faults
from labn.errors import UserError

VERSIONS = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.14.1", "labn": "0.1.0"}
REQUIREMENTS = Requirements(
    output_dir=Path("/mnt/labn/runs/x"),
    data_root=Path("/mnt/labn/idrid"),
    tracking_uri="http://10.0.0.10:5000",
    workers=Workers(num=2, gpus=1),
)
GOOD = Report("10.0.0.11", versions=VERSIONS, token="secret")


def test_a_run_requires_its_places_by_paths_that_mean_the_same_in_every_process(monkeypatch):
    monkeypatch.chdir("/")
    config = Config.model_validate(
        {
            "data": {"name": "idrid", "root": "/mnt/labn/idrid"},
            "tracking": {"uri": "http://10.0.0.10:5000"},
            "output_dir": "mnt/labn/runs/x",
        }
    )

    assert Requirements.of(config, Workers(num=2, gpus=1)) == REQUIREMENTS


def test_a_node_that_has_all_has_no_fault():
    assert find_faults([GOOD, GOOD], REQUIREMENTS, "secret", VERSIONS) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"versions": VERSIONS | {"ray": "2.59.0"}},
         "node 10.0.0.11: ray is 2.59.0, here 2.60.0; install the same on all nodes"),
        ({"token": "another"}, "output_dir = /mnt/labn/runs/x: node 10.0.0.11 cannot use it"),
        ({"token": None, "output_fault": "No such file or directory"},
         "cannot use it (No such file or directory); give a folder on storage"),
        ({"sees_data": False}, "data.root = /mnt/labn/idrid: node 10.0.0.11 does not see it"),
        ({"tracker": "the server does not answer: timed out"},
         "tracking.uri = http://10.0.0.10:5000: node 10.0.0.11: the server does not answer"),
        ({"gpu": "torch sees none"}, "its GPUs cannot be used (torch sees none); see `nvidia-smi`"),
        ({"failure": "ModuleNotFoundError: No module named 'labn'"},
         "cannot run our code (ModuleNotFoundError: No module named 'labn'); is labn installed"),
    ],
)  # fmt: skip
def test_each_lack_is_one_line_with_its_fix(change, message):
    (fault,) = find_faults([GOOD, replace(GOOD, **change)], REQUIREMENTS, "secret", VERSIONS)

    assert message in fault
    assert ";" in fault
    assert "\n" not in fault


def test_a_tracker_that_a_node_does_not_reach_is_named_without_its_password():
    required = replace(REQUIREMENTS, tracking_uri="http://me:hunter2@host:5000")
    (fault,) = find_faults([GOOD, replace(GOOD, tracker="no")], required, "secret", VERSIONS)
    assert fault.startswith("tracking.uri = http://host:5000: node")


def test_a_tracker_in_a_file_is_refused_on_several_nodes():
    required = replace(REQUIREMENTS, tracking_uri="sqlite:///mlflow.db")
    (fault,) = find_faults([GOOD, GOOD], required, "secret", VERSIONS)
    assert "give a server's address, or none" in fault


def test_output_outside_of_shared_storage_is_refused_on_a_head(monkeypatch):
    """Before Ray is asked for anything."""
    monkeypatch.setenv("LABN_SHARED", "/mnt/labn")
    required = replace(REQUIREMENTS, output_dir=Path("/home/me/runs/x"))
    with pytest.raises(UserError, match="such as output_dir=/mnt/labn/runs/x"):
        check_nodes(required, print)
