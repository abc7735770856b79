"""Growth of cost with the map's size, the batch, the points of a curve, the masks of RISE."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from labn import LambdaLayer, patch_insertion_deletion, rise
from labn.explain.rise import draw_masks
from tests.bench.network import SIZE, channels_last, network, training_step
from tests.bench.reference import rise_at_once, with_conv3d_layers
from tests.bench.scores import idle
from tests.bench.timing import interleave, peak_memory_mb

_SIDES = (7, 14, 28, 56)
_BATCHES = (1, 2, 4, 8)
_POINTS = (9, 25, 50, 99, 197)
_MASKS = (250, 500, 1000, 2000)
_MOST_ROUNDS = 3

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Growth:
    """One panel: a cost over a size, one line per alternative. Times are medians."""

    name: str
    size: str
    sizes: tuple[int, ...]
    unit: str
    lines: dict[str, list[float]]


def measure_growth(num_rounds: int) -> list[Growth]:
    """Measure all panels, with at most three rounds."""
    rounds = min(num_rounds, _MOST_ROUNDS)
    return [_of_map(rounds), _of_batch(rounds), _of_points(rounds), _of_masks(rounds), _memory()]


def _of_map(num_rounds: int) -> Growth:
    """Measure forward and backward of one lambda layer, 64 channels, batch 2."""
    torch.manual_seed(0)
    layers = {"labn": LambdaLayer(64), "Conv3d": with_conv3d_layers(LambdaLayer(64))}

    def work(layer: nn.Module, side: int) -> Callable[[], None]:
        x = torch.randn(2, 64, side, side).requires_grad_()
        return lambda: layer(x).square().mean().backward()

    lines = _lines(layers, _SIDES, work, num_rounds)
    return Growth(
        name="a lambda layer, forward + backward",
        size="side of the map",
        sizes=_SIDES,
        unit="s",
        lines=lines,
    )


def _of_batch(num_rounds: int) -> Growth:
    """Measure a training step of 22 million parameters at 224."""
    models = {
        "labn": channels_last(network().train()),
        "Conv3d": with_conv3d_layers(network()).train(),
    }
    images = torch.randn(max(_BATCHES), 3, SIZE, SIZE)

    def work(model: nn.Module, batch: int) -> Callable[[], None]:
        kind = torch.channels_last if model is models["labn"] else torch.contiguous_format
        part = images[:batch].contiguous(memory_format=kind)
        return training_step(model, part, torch.arange(batch) % 2, None)

    lines = _lines(models, _BATCHES, work, num_rounds)
    return Growth(
        name="a training step at 224", size="batch", sizes=_BATCHES, unit="s", lines=lines
    )


def _of_points(num_rounds: int) -> Growth:
    """Measure the PID of one image beyond the network's own time."""
    image = torch.randn(1, 3, SIZE, SIZE)
    saliency = torch.rand(1, SIZE, SIZE)

    def work(_: None, points: int) -> Callable[[], object]:
        return lambda: patch_insertion_deletion(
            idle, image, saliency, torch.tensor([1]),
            patch_size=16, baseline=0.0, num_points=points,
        )  # fmt: skip

    lines = _lines({"labn": None}, _POINTS, work, num_rounds)
    return Growth(
        name="PID beyond the network's time, m = 16",
        size="points of a curve",
        sizes=_POINTS,
        unit="s",
        lines=lines,
    )


def _of_masks(num_rounds: int) -> Growth:
    """Measure RISE beyond the network's own time."""
    image = torch.randn(3, SIZE, SIZE)
    makers: dict[str, Callable[[int], Tensor]] = {
        "labn": lambda num: rise(idle, image[None], num_masks=num, batch_size=64),
        "all in memory": lambda num: rise_at_once(
            idle, image, draw_masks(num, (SIZE, SIZE), 7, 0.5, 0), 64
        ),
    }
    lines = _lines(makers, _MASKS, lambda make, num: lambda: make(num), num_rounds)
    return Growth(
        name="RISE beyond the network's time", size="masks", sizes=_MASKS, unit="s", lines=lines
    )


def _memory() -> Growth:
    """Measure the memory of RISE and a PID curve beyond image and result, by masks and points."""
    head = f"""
import torch
from labn import patch_insertion_deletion, rise
patch_insertion_deletion, rise  # loaded now, being lazy
from labn.explain.rise import draw_masks
from tests.bench.reference import rise_at_once
from tests.bench.scores import idle
image = torch.randn(3, {SIZE}, {SIZE})
saliency = torch.rand(1, {SIZE}, {SIZE})
mark()
with torch.inference_mode():
"""
    calls = {
        "RISE": "rise(idle, image[None], num_masks={num})",
        "RISE, all in memory": f"rise_at_once(idle, image, draw_masks({{num}}, ({SIZE}, {SIZE}), 7,"
        " 0.5, 0), 64)",
        # Half the frames of 2 curves: as many images as RISE's masks.
        "PID": "patch_insertion_deletion(idle, image[None], saliency, torch.tensor([1]),"
        " patch_size=4, baseline=0.0, num_points={num} // 2)",
    }
    lines: dict[str, list[float]] = {name: [] for name in calls}
    for num in _MASKS:
        for name, call in calls.items():
            at_mark, peak = peak_memory_mb(head + "    " + call.format(num=num))
            lines[name].append(peak - at_mark)
    return Growth(
        name="memory beyond image and network", size="masked images", sizes=_MASKS, unit="MB",
        lines=lines,
    )  # fmt: skip


def _lines(
    alternatives: Mapping[str, T],
    sizes: tuple[int, ...],
    make: Callable[[T, int], Callable[[], object]],
    num_rounds: int,
) -> dict[str, list[float]]:
    works = {
        f"{name}/{size}": make(alternative, size)
        for size in sizes
        for name, alternative in alternatives.items()
    }
    times = interleave(works, num_rounds)
    return {
        name: [statistics.median(times[f"{name}/{size}"]) for size in sizes]
        for name in alternatives
    }
