"""Operators that launch a kernel, counted with or without a GPU.

Without one, the tensors are fake: they have shapes and types, but no numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from labn.model.kernels import compiled_lambda, compiled_norm, dispatch
from labn.model.network import build_model

_WITHOUT_KERNEL = {
    *("_unsafe_view", "_reshape_alias", "alias", "as_strided", "detach", "device", "empty"),
    *("empty_like", "empty_strided", "lift_fresh", "new_empty", "new_empty_strided"),
    *("promote_types", "set_", "split_with_sizes"),
}


class OperatorCounter(TorchDispatchMode):
    """Counts operators that compute; ``operand_types`` are those of the matrix products."""

    PRODUCTS = (
        "mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward", "contract",
        "contract_backward",
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.operand_types: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        is_view = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        if not is_view and name not in _WITHOUT_KERNEL:
            self.counts[name] += 1
        if name in self.PRODUCTS:
            tensors = [one for one in args if isinstance(one, Tensor)]
            self.operand_types.setdefault(name, set()).update(one.dtype for one in tensors)
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        """All operators that launch a kernel."""
        return self.counts.total()


@contextmanager
def as_on_accelerator() -> Iterator[None]:
    """Take the path of an accelerator on the CPU: other kernels, and none of the compiled ones."""
    with (
        patch.object(dispatch, "is_accelerator", lambda x: True),
        patch.object(compiled_norm, "is_available", lambda *_: False),
        patch.object(compiled_lambda, "is_available", lambda *_: False),
    ):
        yield


def count_pass(
    network: nn.Module, images: Tensor, *, precision: str = "float32"
) -> OperatorCounter:
    """Count the operators of one forward and backward pass, on the images' device."""
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    counter = OperatorCounter()
    with counter:
        is_half = precision == "bf16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=is_half):
            output = network(images)
        loss = F.cross_entropy(output.logits, labels) + F.cross_entropy(
            output.branch_logits, labels
        )
        loss.backward()
    return counter


def count_without_gpu(
    backbone: str, *, split: int, image_size: int, batch: int, precision: str = "float32"
) -> OperatorCounter:
    """Count the operators of one pass with fake tensors, as an accelerator would run them."""
    with FakeTensorMode(), as_on_accelerator():
        network = build_model(backbone, split=split).train()
        for parameter in network.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        images = torch.empty(batch, 3, image_size, image_size)
        images = images.contiguous(memory_format=torch.channels_last)
        return count_pass(network, images, precision=precision)


class CompiledNetwork(NamedTuple):
    """What the compiler makes of the network on an accelerator's path.

    ``difference`` is that of the gradients to those of the network itself, relative.
    """

    graphs: int
    graph_breaks: int
    difference: float


def compile_without_gpu(precision: str) -> CompiledNetwork:
    """Compile a small network on the CPU, by an accelerator's path, and compare gradients."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    # A map of 40 x 40 is cut into tiles, those behind it are taken whole.
    network = build_model("lambda_cnn", split=1, theta_alpha=0.0).train()
    images = torch.randn(2, 3, 160, 160)
    parameters = list(network.parameters())

    def gradients(model: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            output = model(images)
        loss = output.logits.sum() + output.branch_logits.sum()
        return torch.cat([one.flatten() for one in torch.autograd.grad(loss, parameters)])

    with as_on_accelerator():
        explained = torch._dynamo.explain(network)(images)
        expected = gradients(network)
        compiled = torch.compile(network, backend="aot_eager", fullgraph=True, dynamic=False)
        difference = (gradients(compiled) - expected).norm() / expected.norm()
    return CompiledNetwork(explained.graph_count, explained.graph_break_count, float(difference))
