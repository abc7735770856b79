"""The look at every node before a cluster works, on a real cluster of two nodes on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from labn.config.workers import Workers
from labn.distributed.checks.nodes import Requirements, check_nodes
from labn.errors import UserError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    """Two nodes; the second claims to have a GPU, and has none."""
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
    nodes.add_node(num_cpus=1, num_gpus=1)
    ray.init(nodes.address, log_to_driver=False, include_dashboard=False)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def requirements(folder, **changes):
    given = {"data_root": None, "tracking_uri": "none", "workers": Workers(num=2)}
    return Requirements(output_dir=folder / "out", **given | changes)


def test_a_sound_cluster_is_passed_and_left_clean(cluster, tmp_path):
    messages = []

    check_nodes(requirements(tmp_path, data_root=tmp_path), messages.append)

    assert messages == ["checking 2 nodes"]
    assert list((tmp_path / "out").iterdir()) == []


def test_every_lack_of_every_node_is_said(cluster, tmp_path):
    messages = []
    wanted = requirements(
        tmp_path, data_root=Path("/nowhere"), tracking_uri="http://127.0.0.1:9",
        workers=Workers(num=1, gpus=1),
    )  # fmt: skip

    with pytest.raises(UserError, match=r"data.root = /nowhere: node .* \(and 2 more, above\)"):
        check_nodes(wanted, messages.append)

    assert any("tracking.uri = http://127.0.0.1:9" in line for line in messages)
    assert any("its GPUs cannot be used (torch sees none)" in line for line in messages)
