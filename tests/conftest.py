"""Set-up of all tests: checked types, quiet libraries, the public data if it is available."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path

# jaxtyping recompiles whatever is first imported from within the package that it checks; these
# are large, so they are imported before.
import matplotlib
import pandas  # noqa: F401
import psutil
import pytest
import sklearn.model_selection  # noqa: F401
import torch
from jaxtyping import install_import_hook
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# What starts a Ray of its own, or shares one; and clusters of several nodes.
_GROUPS = {
    "ray": (
        "test_ablation.py",
        "test_ablation_faults.py",
        "test_distributed.py",
        "test_distributed_faults.py",
        "test_earlier_release.py",
        "test_search.py",
        "test_search_faults.py",
    ),
    "nodes": (
        "test_cluster.py",
        "test_ray_nodes.py",
        "test_search_capacity.py",
        "test_search_preflight.py",
    ),
}
_MARK = "LABN_TESTS"
"""Marks the processes that tests start, orphans included."""
os.environ[_MARK] = str(os.getpid())
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MPLBACKEND"] = "agg"
matplotlib.use("agg")
# The tests' tensors are too small to share out, and sums in another order round differently.
torch.set_num_threads(1)
install_import_hook("labn", "typechecker.check")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Return the folder of public data that LABN_TEST_DATA names."""
    place = os.environ.get("LABN_TEST_DATA")
    if not place:
        pytest.skip("LABN_TEST_DATA does not name the folder of the public data")
    return Path(place).resolve()


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist ships no types
    """Give each process whole groups: the files that must not meet, or one file, or one test.

    Not by the mark ``xdist_group``, which xdist 3.8 does not see under pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        folder, _, name = nodeid.partition("::")[0].rpartition("/")
        if not folder.endswith("integration"):
            return nodeid
        return next((group for group, names in _GROUPS.items() if name in names), name)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> GroupScheduling:
    """Share the tests out by groups."""
    return GroupScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give what runs whole commands more time than other tests, and the slow proofs still more."""
    for item in items:
        is_slow = item.get_closest_marker("slow") is not None
        if item.get_closest_marker("timeout") is None and (
            is_slow or "integration" in item.path.parts
        ):
            item.add_marker(pytest.mark.timeout(1200 if is_slow else 600))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None]:
    """End the processes of a fixture that failed."""
    yield from _ending_processes()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None]:
    """End the processes of a test that failed."""
    yield from _ending_processes()


def _ending_processes() -> Generator[None]:
    before = set(psutil.pids())
    try:
        yield
    except pytest.skip.Exception:
        raise
    except BaseException:
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.pid not in before and _is_ours(process):
                    process.kill()
        raise


def _is_ours(process: psutil.Process) -> bool:
    """Return whether tests started a process, other than a server of multiprocessing they share."""
    servers = ("multiprocessing.forkserver", "multiprocessing.resource_tracker")
    command = " ".join(process.cmdline())
    is_server = process.ppid() == os.getpid() and any(name in command for name in servers)
    return process.environ().get(_MARK) == str(os.getpid()) and not is_server
