"""The operators on tiles: Triton's kernels, by its interpreter, against torch in float64."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import ModuleType

import pytest
import torch

from labn.model import kernels
from labn.model.kernels import contraction
from tests.gpu.contraction_errors import CASES, MARGIN, SEEN, operands


def test_tritons_kernels_equal_torch_in_float64():
    pytest.importorskip("triton")
    # Triton reads the variable when it is imported, which this process may have done.
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.contraction_errors"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout)
    assert len(errors) == 2 * len(CASES)
    for name, error in errors.items():
        assert 0 < error < (1e-6 if "float32" in name else 5e-3), name


@pytest.mark.parametrize("case", CASES)
def test_fake_tensors_get_the_shapes_and_types_of_real_ones(case):
    cut, *sizes = CASES[case]
    q, lambdas, content, gradient, windows = operands(cut, *sizes)
    calls = {
        "contract": (q, lambdas, content, list(cut)),
        "contract_backward": (q, lambdas, content, gradient, list(cut)),
    }
    if cut.tile_height + 2 * MARGIN == SEEN[0]:
        calls["sum_windows"] = (windows, list(cut), list(SEEN), MARGIN)
    for name, arguments in calls.items():
        torch.library.opcheck(
            getattr(torch.ops.labn, name).default,
            arguments,
            test_utils=("test_schema", "test_faketensor"),
        )


def test_positions_beyond_the_map_get_no_gradient():
    cut, *sizes = CASES["beyond the map"]
    q, lambdas, content, gradient, _ = operands(cut, *sizes)
    _, dlambdas = contraction.contract_backward(q, lambdas, content, gradient, cut)
    corner = dlambdas[-1].view(-1, 4, 4, dlambdas.shape[3])
    assert corner[:, 0, 0].abs().min() > 0
    assert not corner[:, 1:].any()
    assert not corner[:, :, 1:].any()


@pytest.mark.parametrize(
    ("dtype", "has_triton", "by_triton"),
    [
        (torch.float32, True, True),
        (torch.bfloat16, True, True),
        (torch.float64, True, False),
        (torch.float32, False, False),
    ],
)
def test_a_gpu_takes_tritons_kernels_where_they_keep_the_precision(
    monkeypatch, dtype, has_triton, by_triton
):
    """There is no GPU here: what its dispatcher would call is called."""
    monkeypatch.setattr(contraction, "find_spec", lambda name: object() if has_triton else None)
    module = ModuleType("contraction_triton")
    module.contract = lambda *_: "Triton"
    monkeypatch.setitem(sys.modules, "labn.model.kernels.contraction_triton", module)
    monkeypatch.setattr(kernels, "contraction_triton", module, raising=False)
    call = contraction._on_cuda("contract", lambda *_: "torch")
    assert call(torch.zeros(1, dtype=dtype)) == ("Triton" if by_triton else "torch")
