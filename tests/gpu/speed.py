"""Images per second of training and evaluation, beside other implementations, and memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from labn.config import TrainConfig
from labn.metrics.faithfulness import patch_insertion_deletion
from labn.training.device import choose_device
from labn.training.evaluate import predictor
from labn.training.precision import autocast
from tests.bench.reference import with_conv3d_layers
from tests.gpu.rows import Row, Rows, median_ms
from tests.gpu.setup import SIDE, make_network, make_subject, random_images

PRECISIONS = ("float32", "tf32", "bf16")


def bf16_rate() -> float:
    """Return the floating-point operations per second of one large bf16 product."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / (median_ms(lambda: a @ b) / 1e3)


def training_rows() -> Rows:
    """Measure training with L_KL, in every precision, and compiled."""
    rate = bf16_rate()
    yield Row(name="bf16 product of 8192", value=rate / 1e12, unit="TFLOP/s")
    for precision in PRECISIONS:
        for batch in (32, 128):
            yield from _training(f"{precision}", batch, TrainConfig(precision=precision), rate)


def compiled_rows() -> Rows:
    """Measure training with the compiled network, whose first step compiles it."""
    settings = TrainConfig(precision="bf16", compile=True)
    yield from _training("bf16 compiled", 32, settings, bf16_rate())


def graph_rows() -> Rows:
    """Measure training with CUDA graphs, which compile for a minute or two first."""
    settings = TrainConfig(precision="bf16", compile=True, cuda_graphs=True)
    yield from _training("bf16 compiled, CUDA graphs", 32, settings, bf16_rate())


def _training(name: str, batch: int, settings: TrainConfig, rate: float) -> Rows:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    subject = make_subject(batch, settings)
    with FlopCounterMode(display=False) as counter:
        subject.train()
    start_s = time.perf_counter()
    if settings.compile:
        mode = "reduce-overhead" if settings.cuda_graphs else None
        subject.network.compile(dynamic=False, mode=mode)
    subject.train()
    torch.cuda.synchronize()
    first_s = time.perf_counter() - start_s
    ms = median_ms(subject.train)
    share = counter.get_total_flops() / (ms / 1e3) / rate
    detail = f"{ms:.1f} ms a step, {100 * share:.0f} % of the bf16 product's rate"
    if settings.compile:
        detail += f"; the first step took {first_s:.0f} s"
    title = f"training, {name}, batch {batch}"
    yield Row(name=title, value=batch / ms * 1e3, unit="images/s", detail=detail)
    peak_gb = torch.cuda.max_memory_allocated() / 1e9
    yield Row(name=f"peak memory, {title}", value=peak_gb, unit="GB")


def other_rows() -> Rows:
    """Measure the same network with Conv3d layers, and timm's nearest, where it is installed."""
    torch.cuda.empty_cache()
    settings = TrainConfig(precision="bf16")
    subject = make_subject(32, settings, network=with_conv3d_layers(make_network()))
    ms = median_ms(subject.train, num_rounds=2, num_warmups=1)
    yield Row(name="training, bf16, batch 32, Conv3d layers", value=32e3 / ms, unit="images/s")
    try:
        import timm
    except ImportError:
        return
    del subject
    torch.cuda.empty_cache()
    network = timm.create_model("lambda_resnet50ts", num_classes=2).cuda().train()
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    images, labels = random_images(32)

    def train() -> None:
        """One pass, without a second one for L_KL and without an attention branch."""
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            loss = nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()

    ms = median_ms(train)
    yield Row(
        name="training, bf16, batch 32, timm lambda_resnet50ts, one pass",
        value=32e3 / ms, unit="images/s",
    )  # fmt: skip


def evaluation_rows() -> Rows:
    """Measure prediction, and PID of one image at m = 16 over every n."""
    predict = predictor(make_network().cuda())
    saliency = torch.rand(1, SIDE, SIDE, device="cuda")
    label = torch.ones(1, dtype=torch.int64, device="cuda")
    for precision in PRECISIONS:
        settings = TrainConfig(precision=precision)
        device = choose_device(settings)
        for batch in (32, 128):
            images, _ = random_images(batch)
            ms = median_ms(_in_evaluation(settings, device, partial(predict, images)))
            yield Row(
                name=f"evaluation, {precision}, batch {batch}",
                value=batch / ms * 1e3, unit="images/s",
            )  # fmt: skip
        score = partial(
            patch_insertion_deletion, predict, random_images(1)[0], saliency, label,
            patch_size=16, baseline=0.0, batch_size=128,
        )  # fmt: skip
        ms = median_ms(_in_evaluation(settings, device, score))
        yield Row(name=f"PID of one image, m = 16, {precision}", value=ms, unit="ms")


def _in_evaluation(
    settings: TrainConfig, device: torch.device, work: Callable[[], object]
) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode(), autocast(settings, device):
            return work()

    return run
