"""What a precision means on a device, and where it is refused."""

from __future__ import annotations

import pytest
import torch

from labn.config import TrainConfig
from labn.errors import UserError
from labn.training import precision
from labn.training.precision import allow_precision, autocast, resolve_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def restored_flags():
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = cuda.allow_tf32, cudnn.allow_tf32, cuda.allow_bf16_reduced_precision_reduction
    yield
    cuda.allow_tf32, cudnn.allow_tf32, cuda.allow_bf16_reduced_precision_reduction = before


@pytest.mark.parametrize(
    ("device", "has_bf16", "expected"),
    [(CPU, True, "float32"), (CUDA, True, "bf16"), (CUDA, False, "float32")],
)
def test_auto_is_bf16_on_gpus_that_have_it_and_float32_elsewhere(
    monkeypatch, device, has_bf16, expected
):
    monkeypatch.setattr(precision, "_gpu_has_bf16", lambda: has_bf16)
    assert resolve_precision(TrainConfig(), device) == expected


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_bf16_without_instructions_is_refused_unless_forced(monkeypatch, device):
    monkeypatch.setattr(precision, "_gpu_has_bf16", lambda: False)
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: False)
    with pytest.raises(UserError) as error:
        resolve_precision(TrainConfig(precision="bf16"), device)
    assert str(error.value) == (
        f"train.precision = bf16: this {device.type.upper()} has no bf16 instructions, and a step"
        " takes several times as long as in float32; set train.precision=auto, or train with"
        " --force"
    )
    forced = TrainConfig(precision="bf16", force_precision=True)
    assert resolve_precision(forced, device) == "bf16"


def test_bf16_with_instructions_needs_no_force(monkeypatch):
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)
    assert resolve_precision(TrainConfig(precision="bf16"), CPU) == "bf16"


def test_tf32_is_refused_where_there_is_none():
    with pytest.raises(UserError, match=r"train.precision = tf32: only CUDA has it.*cpu"):
        resolve_precision(TrainConfig(precision="tf32"), CPU)
    assert resolve_precision(TrainConfig(precision="tf32"), CUDA) == "tf32"


@pytest.mark.parametrize(("name", "allowed"), [("float32", False), ("tf32", True), ("bf16", False)])
def test_only_tf32_lets_products_round_float32(name, allowed):
    allow_precision(name)
    assert torch.backends.cuda.matmul.allow_tf32 is allowed
    assert torch.backends.cudnn.allow_tf32 is allowed
    assert torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction is False


@pytest.mark.parametrize(("name", "dtype"), [("auto", torch.float32), ("bf16", torch.bfloat16)])
def test_the_network_runs_in_the_precision(name, dtype):
    settings = TrainConfig(precision=name, force_precision=True)
    with autocast(settings, CPU):
        assert torch.nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == dtype
