"""The whole network, 22 million parameters at 224: time, memory and efficiency of a step."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from labn import build_model
from labn.model.backbone import Bottleneck
from labn.model.fusion import folded
from labn.model.network import LABN
from labn.training.losses import Objective
from labn.training.precision import cpu_has_bf16
from tests.bench.reference import with_conv3d_layers
from tests.bench.timing import Row, compare, compare_rates, interleave, peak_memory_mb, row_of

SIZE = 224
BATCH = 8
_GEMM_SIDE = 2048
_PRECISIONS = {"float32": None, "bf16": torch.bfloat16}
_ROOFLINE: dict[str, Callable[[], LABN]] = {
    "lambda_resnet50 at 224": build_model,
    "lambda_resnet26 at 112": lambda: build_model("lambda_resnet26", split=2, branch_width=64),
    "lambda_cnn at 112": lambda: build_model("lambda_cnn", split=0),
}
"""Networks, by names that end in the side of their images."""
_LEAST_STEP = {"float32": 2.3, "bf16": 4.7}


def network() -> LABN:
    """Return the paper's network, B = 7, always the same."""
    torch.manual_seed(0)
    return build_model()


def settled(model: LABN) -> LABN:
    """Make an untrained network distinguish images: no bottleneck stays the identity.

    Batch norms compute their statistics from noise.
    """
    for module in model.modules():
        if isinstance(module, Bottleneck):
            nn.init.constant_(module.bn3.weight, 0.1)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(_batch()[0])
    return model.eval()


def channels_last(model: LABN) -> LABN:
    """Store the weights of 2-d convolutions channels last, as `labn.runs` does."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def training_step_rows(num_rounds: int) -> list[Row]:
    """Time a training step of the whole network, in float32 and with bf16 convolutions."""
    images, labels = _batch()
    last = images.contiguous(memory_format=torch.channels_last)
    ours, other = channels_last(network().train()), with_conv3d_layers(network()).train()
    works = {name: training_step(ours, last, labels, kind) for name, kind in _PRECISIONS.items()}
    works["Conv3d"] = training_step(other, images, labels, None)
    times = interleave(works, num_rounds)
    label = f"training step with L_KL, batch {BATCH} at {SIZE}, B = 7, against Conv3d contiguous, "
    rows = [
        compare(label + name, times[name], times["Conv3d"], at_least=_LEAST_STEP[name])
        for name in _PRECISIONS
    ]
    label = f"training at {SIZE}, batch {BATCH}, against Conv3d contiguous, "
    rows += [
        compare_rates(label + name, BATCH, times[name], times["Conv3d"]) for name in _PRECISIONS
    ]
    return rows


def evaluation_rows(num_rounds: int) -> list[Row]:
    """Time the forward pass that scores images, batch norm folded."""
    images, _ = _batch()
    last = images.contiguous(memory_format=torch.channels_last)
    ours, other = channels_last(folded(network())), with_conv3d_layers(network()).eval()
    works = {name: _forward(ours, last, kind) for name, kind in _PRECISIONS.items()}
    works["Conv3d"] = _forward(other, images, None)
    times = interleave(works, num_rounds)
    label = f"evaluation at {SIZE}, batch {BATCH}, against Conv3d contiguous, "
    return [
        compare_rates(label + name, BATCH, times[name], times["Conv3d"]) for name in _PRECISIONS
    ]


def roofline_rows(num_rounds: int) -> list[Row]:
    """Compare the arithmetic rate of a step with that of a matrix product on this machine.

    The product is the faster of two: torch's product, and a 1x1 convolution. Convolutions and
    matrix products are counted. The compiled lambda layers are not, although their time is, so
    these rows are lower bounds.
    """
    precisions = {name: one for name, one in _PRECISIONS.items() if one is None or cpu_has_bf16()}
    works = _passes(precisions)
    flops = {name: _count_flops(work) for name, work in works.items()}
    for name, kind in precisions.items():
        for maker in (_product, _convolution):
            works[f"{maker.__name__}, {name}"] = maker(kind or torch.float32)
    times = interleave(works, num_rounds)
    best_s = {
        name: min(
            (times[f"{maker.__name__}, {name}"] for maker in (_product, _convolution)),
            key=statistics.median,
        )
        for name in precisions
    }
    rows = []
    for name, count in flops.items():
        speeds = [count / 1e9 / t for t in times[name]]
        best = [2 * _GEMM_SIDE**3 / 1e9 / t for t in best_s[name.rsplit(", ", maxsplit=1)[1]]]
        label = f"{name}: arithmetic but for the lambda layers, against a {_GEMM_SIDE}^3 product"
        rows.append(row_of(label, speeds, best, "GFLOP/s", is_rate=True))
    return rows


def _passes(precisions: Mapping[str, torch.dtype | None]) -> dict[str, Callable[[], object]]:
    """Return a training step and a pass of evaluation of each network, in each precision."""
    works: dict[str, Callable[[], object]] = {}
    for label, build in _ROOFLINE.items():
        torch.manual_seed(0)
        model = build()
        images, labels = _batch(int(label.split()[-1]))
        last = images.contiguous(memory_format=torch.channels_last)
        evaluated, trained = channels_last(folded(model)), channels_last(model.train())
        for name, kind in precisions.items():
            works[f"{label}, training step, {name}"] = training_step(trained, last, labels, kind)
            works[f"{label}, evaluation, {name}"] = _forward(evaluated, last, kind)
    return works


def training_memory_rows() -> list[Row]:
    """Compare the peak memory of a float32 training step: beyond the network's, and in total.

    The total includes Python, torch's libraries and the network, which are the same for both.
    """
    code = """
import torch
from tests.bench.network import channels_last, network, training_step, BATCH, SIZE
from tests.bench.reference import with_conv3d_layers
net = {make}.train()
images = torch.randn(BATCH, 3, SIZE, SIZE){layout}
step = training_step(net, images, torch.arange(BATCH) % 2, None)
mark()
step()
step()
"""
    last = "memory_format=torch.channels_last"
    ours = peak_memory_mb(
        code.format(make="channels_last(network())", layout=f".contiguous({last})")
    )
    other = peak_memory_mb(code.format(make="with_conv3d_layers(network())", layout=""))
    label = f"peak memory of a float32 training step, batch {BATCH}, against Conv3d, "
    own, theirs = ([peak - at_mark] for at_mark, peak in (ours, other))
    return [
        row_of(f"{label}beyond libraries and network", own, theirs, "MB", at_least=1 / 0.75),
        row_of(f"{label}of the whole process", [ours[1]], [other[1]], "MB"),
    ]


def training_step(
    model: nn.Module, images: Tensor, labels: Tensor, precision: torch.dtype | None
) -> Callable[[], None]:
    """Return a function that takes one training step, with L_KL."""
    objective = Objective(
        bias_image=torch.zeros_like(images[0]),
        theta_b=0.2,
        mask_rule="share",
        lambda_lab=1.0,
        lambda_kl=1.0,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    num_images = torch.tensor(float(len(images)))

    def work() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", precision, enabled=precision is not None):
            _, sums = objective.sums(model, images, labels)
        loss = objective.combine(sums, num_images, num_images).total
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return work


def _batch(size: int = SIZE) -> tuple[Tensor, Tensor]:
    images = torch.randn(BATCH, 3, size, size, generator=torch.Generator().manual_seed(0))
    return images, torch.arange(BATCH) % 2


def _forward(model: nn.Module, images: Tensor, precision: torch.dtype | None) -> Callable[[], None]:
    def work() -> None:
        with (
            torch.inference_mode(),
            torch.autocast("cpu", precision, enabled=precision is not None),
        ):
            model(images)

    return work


def _product(dtype: torch.dtype) -> Callable[[], object]:
    a, b = (torch.randn(_GEMM_SIDE, _GEMM_SIDE).to(dtype) for _ in range(2))
    return lambda: a @ b


def _convolution(dtype: torch.dtype) -> Callable[[], object]:
    """Multiply the same matrices as a 1x1 convolution, which another library computes."""
    x = torch.randn(1, _GEMM_SIDE, 32, _GEMM_SIDE // 32).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(_GEMM_SIDE, _GEMM_SIDE, 1, 1).to(dtype)
    return lambda: F.conv2d(x, weight)


def _count_flops(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())
