"""What every test needs: checked types, quiet libraries, the public data where it is."""

from __future__ import annotations

import os
from pathlib import Path

# jaxtyping recompiles whatever is first imported from within the package that it checks; these
# are large, so they are imported before.
import matplotlib
import pandas  # noqa: F401
import pytest
import sklearn.model_selection  # noqa: F401
import torch
import torchmetrics  # noqa: F401
from jaxtyping import install_import_hook

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
