"""What every test needs: checked types, quiet libraries, the public data where it is."""

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
import torchmetrics  # noqa: F401
from jaxtyping import install_import_hook

_MARK = "LABN_TESTS"
"""By this variable the processes that tests start are known, orphans included."""
os.environ[_MARK] = str(os.getpid())
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MPLBACKEND"] = "agg"
matplotlib.use("agg")
# The tests' tensors are too small to share out, and sums in another order round differently.
torch.set_num_threads(1)
install_import_hook("labn", "typechecker.check")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Give the folder of public data that LABN_TEST_DATA names."""
    place = os.environ.get("LABN_TEST_DATA")
    if not place:
        pytest.skip("LABN_TEST_DATA does not name the folder of the public data")
    return Path(place).resolve()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file of integration tests in one process, and give what is slow more time."""
    for item in items:
        if "integration" in item.path.parts and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
        if item.get_closest_marker("slow") and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(600))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None]:
    """End what a fixture that failed has started."""
    yield from _ending_processes()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None]:
    """End what a test that failed has started."""
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
    return process.environ().get(_MARK) == str(os.getpid())
