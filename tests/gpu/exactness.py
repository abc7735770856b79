"""The GPU's results against float64 on the CPU, and what a step launches and waits for."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from labn.config import TrainConfig
from labn.data.augment import Augmentation
from labn.data.batches import TrainingBatches
from labn.data.dataset import measure_statistics
from labn.model.lambda_layer import LambdaLayer
from labn.runs.build import place_network
from labn.training.precision import allow_precision
from tests.gpu.contraction_errors import largest_errors
from tests.gpu.counting import count_pass, count_without_gpu
from tests.gpu.rows import Row, Rows, relative_error
from tests.gpu.setup import make_network, make_subject, random_images
from tests.small_run import make_subset

FORWARD = {"float32": 1e-5, "tf32": 2e-3, "bf16": 2e-2}
NETWORK = {"float32": 1e-4, "tf32": 1e-2, "bf16": 1e-1}
GRADIENT = {"float32": 1e-4, "tf32": 5e-3, "bf16": 4e-2}
LAYERS = ((64, 56), (128, 28), (512, 7))
"""Channels, and rows of a square map: cut into tiles, whole, and smaller than the kernel."""


def triton_rows() -> Rows:
    """Compare Triton's kernels with torch."""
    for name, error in largest_errors("cuda").items():
        limit = 1e-5 if "float32" in name else 1e-2
        yield Row(name=f"Triton kernels, {name}", value=error, unit="relative", at_most=limit)


def layer_rows() -> Rows:
    """Compare lambda layers, forward and backward, in every precision."""
    for channels, side in LAYERS:
        torch.manual_seed(0)
        layer = LambdaLayer(channels).double()
        x = torch.randn(4, channels, side, side, dtype=torch.float64, requires_grad=True)
        expected = layer(x)
        gradient = torch.randn_like(expected)
        expected_gradients = torch.autograd.grad(expected, [x, *layer.parameters()], gradient)
        for precision in ("float32", "tf32", "bf16"):
            allow_precision(precision)
            on_gpu = copy.deepcopy(layer).float().cuda()
            x_gpu = x.detach().float().cuda().contiguous(memory_format=torch.channels_last)
            x_gpu.requires_grad_()
            with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
                found = on_gpu(x_gpu)
            inputs = [x_gpu, *on_gpu.parameters()]
            gradients = torch.autograd.grad(found, inputs, gradient.to("cuda", found.dtype))
            name = f"lambda layer {channels} x {side} x {side}, {precision}"
            yield Row(
                name=f"{name}, forward",
                value=relative_error(found, expected),
                unit="relative",
                at_most=FORWARD[precision],
            )
            errors = map(relative_error, gradients, expected_gradients)
            yield Row(
                name=f"{name}, gradients",
                value=max(errors),
                unit="relative",
                at_most=GRADIENT[precision],
            )


def network_rows() -> Rows:
    """Compare the paper's network, in evaluation mode, in every precision."""
    allow_precision("float32")
    network = place_network(make_network(), torch.device("cuda"), channels_last=True)
    network.theta_alpha = 0.0  # an untrained map lies about 0.5: nothing would pass the default
    images, _ = random_images(8)
    _settle(network, images)
    with torch.inference_mode():
        expected = copy.deepcopy(network).cpu().double()(images[:4].cpu().double())
        for precision in ("float32", "tf32", "bf16"):
            allow_precision(precision)
            with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
                found = network(images[:4])
            for output in ("logits", "attention"):
                yield Row(
                    name=f"lambda_resnet50, {precision}, {output}",
                    value=relative_error(getattr(found, output), getattr(expected, output)),
                    unit="relative",
                    at_most=NETWORK[precision],
                )


def _settle(network: nn.Module, images: torch.Tensor) -> None:
    """Give every block a part in the result, and batch norm the statistics of these images.

    As built, the last batch norm of a block has weight zero, which would hide errors, and without
    statistics an untrained network's activations overflow.
    """
    for name, parameter in network.named_parameters():
        if name.endswith("bn3.weight"):
            nn.init.constant_(parameter, 0.2)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of all passes
    with torch.no_grad():
        network.train()(images)
    network.eval()


def launch_rows() -> Rows:
    """Count what one pass launches, and compare it with the count without a GPU."""
    for precision in ("float32", "bf16"):
        allow_precision(precision)
        for batch in (32, 128):
            torch.cuda.empty_cache()
            network = place_network(
                make_network().train(), torch.device("cuda"), channels_last=True
            )
            images, _ = random_images(batch)
            counted = count_pass(network, images, precision=precision)
            without = count_without_gpu(
                "lambda_resnet50", split=7, image_size=224, batch=batch, precision=precision
            )
            with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
                count_pass(network, images, precision=precision)
                torch.cuda.synchronize()
            kernels = sum(
                event.device_type == torch.autograd.DeviceType.CUDA for event in found.events()
            )
            differing = (counted.counts - without.counts) + (without.counts - counted.counts)
            yield Row(
                name=f"operators of a pass, batch {batch}, {precision}",
                value=counted.total,
                unit="",
                at_most=1500,
                detail=f"{without.total} without a GPU, {kernels} kernels by the profiler;"
                f" differing: {dict(differing)}",
            )


def waiting_rows() -> Rows:
    """Take steps, batches included, in a mode in which waiting for the GPU is an error."""
    split = make_subset(64, size=64)
    for on_device in ("always", "never"):
        settings = TrainConfig(batch_size=16, ema_decay=0.9, gradient_clip=1.0)
        subject = make_subject(16, settings, side=64)
        batches = TrainingBatches(
            split, measure_statistics(split), batch_size=16, seed=0, bias_copies=2,
            balanced=False, augment=Augmentation(horizontal_flip=True, rotation_deg=5),
            device=torch.device("cuda"), on_device=on_device,
        )  # fmt: skip
        subject.train()  # allocates the optimizer's state
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            for batch in batches.epoch(0):
                subject.images, subject.labels = batch.images, batch.labels
                subject.train()
            torch.cuda.set_sync_debug_mode("default")
        places = {
            f"{Path(one.filename).name}:{one.lineno}"
            for one in found
            if str(one.message).startswith("called a synchronizing")
        }
        detail = f"{batches.steps_per_epoch} steps {' '.join(sorted(places))}"
        num_waits = len(places)
        yield Row(
            name=f"waits of a step, images on the device {on_device}",
            value=num_waits, unit="", at_most=0, detail=detail,
        )  # fmt: skip
