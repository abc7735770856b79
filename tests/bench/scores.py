"""PID, RISE and the reading of images, compared with one by one or all at once."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from labn import patch_insertion_deletion, rise
from labn.data.batches import standardise
from labn.data.dataset import ChannelStatistics
from labn.data.decode import resize
from labn.explain.rise import draw_masks
from labn.model.fusion import folded
from tests.bench.network import SIZE, channels_last, network, settled
from tests.bench.reference import pid_one_by_one, rise_at_once, with_conv3d_layers
from tests.bench.timing import Row, compare, interleave, peak_memory_mb, row_of

_SIDE = 16
_NUM_MASKS = 1000
_LEAST_PID = {"float32": 1.6, "bf16": 3.3}


def pid_rows(num_rounds: int) -> list[Row]:
    """Time PID of one image over all 197 points, float32 and bf16, against batch 1 by Conv3d."""
    model = settled(network())
    ours, other = channels_last(folded(model)), with_conv3d_layers(model)
    generator = torch.Generator().manual_seed(0)
    image, saliency = (
        torch.randn(3, SIZE, SIZE, generator=generator),
        torch.rand(SIZE, SIZE, generator=generator),
    )
    baseline = torch.zeros_like(image)
    results: dict[str, float] = {}

    def predict_ours(x: Tensor) -> Tensor:
        output = ours(x.contiguous(memory_format=torch.channels_last))
        probabilities: Tensor = output.logits.float().softmax(-1)
        return probabilities

    def batched(name: str, precision: torch.dtype | None) -> None:
        with torch.autocast("cpu", precision, enabled=precision is not None):
            scores = patch_insertion_deletion(
                predict_ours, image[None], saliency[None], torch.tensor([1]),
                patch_size=_SIDE, baseline=baseline, batch_size=16,
            )  # fmt: skip
        results[name] = scores.pid.item()

    def one_by_one() -> None:
        with torch.inference_mode():
            results["Conv3d"] = pid_one_by_one(
                lambda x: other(x).logits.softmax(-1), image, saliency, 1, _SIDE, baseline
            )

    times = interleave(
        {
            "float32": lambda: batched("float32", None),
            "bf16": lambda: batched("bf16", torch.bfloat16),
            "Conv3d": one_by_one,
        },
        num_rounds,
    )
    label = "PID of one image, m = 16, 197 points, against batch 1 by Conv3d, "
    return [
        compare(
            label + key,
            times[key],
            times["Conv3d"],
            abs(results[key] - results["Conv3d"]),
            "difference of PID, untrained network",
            at_least=_LEAST_PID[key],
        )
        for key in ("float32", "bf16")
    ]


def rise_rows(num_rounds: int) -> list[Row]:
    """Time RISE beyond the network's own time, with a classifier that does almost nothing."""
    image = torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    masks = draw_masks(_NUM_MASKS, (SIZE, SIZE), 7, 0.5, 0)
    works = {
        "ours": lambda: rise(idle, image[None], num_masks=_NUM_MASKS, seed=0, batch_size=64),
        "other": lambda: rise_at_once(idle, image, masks, 64),
    }
    times = interleave(works, num_rounds)
    ours = rise(idle, image[None], num_masks=_NUM_MASKS, keep_probability=0.5, seed=0)[0] * 0.5
    error = (ours - rise_at_once(idle, image, masks, 64)).abs().max().item()
    row = compare(
        f"RISE, {_NUM_MASKS} masks at {SIZE}, beyond the network's time, against all in memory",
        times["ours"],
        times["other"],
        error,
        "largest difference of the map",
        at_least=6.0,
    )
    return [row, _rise_memory_row()]


def reading_row(num_rounds: int) -> Row:
    """Time reading cached images against decoding JPEGs of a fundus camera's size."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        coarse = rng.integers(0, 255, (72, 108, 3), dtype=np.uint8)
        large = Image.fromarray(coarse).resize((4288, 2848), Image.Resampling.BICUBIC)
        path = Path(folder) / "image.jpg"
        large.save(path, quality=92)
        cached = np.lib.format.open_memmap(
            Path(folder) / "images.npy", "w+", np.uint8, (64, SIZE, SIZE, 3)
        )

        statistics = ChannelStatistics(
            mean=torch.full((3,), 0.5),
            std=torch.full((3,), 0.2),
            bias_image=torch.zeros(3, SIZE, SIZE),
        )

        def read() -> None:
            standardise(cached[order], statistics, torch.device("cpu"))

        order = rng.permutation(64)

        def decode() -> None:
            with Image.open(path) as image:
                resize(np.asarray(image.convert("RGB")), SIZE)

        times = interleave({"cache": read, "decode": decode}, num_rounds)
    return compare(
        f"an image from the cache in a batch, against decoding 4288x2848 JPEG to {SIZE}",
        [t / 64 for t in times["cache"]],
        times["decode"],
        at_least=150.0,
    )


def idle(images: Tensor) -> Tensor:
    """Classify by mean colour, which is almost no work."""
    red = images[:, 0, ::16, ::16].mean(dim=(1, 2))
    return torch.stack([red, -red], dim=1).softmax(dim=1)


def _rise_memory_row() -> Row:
    head = f"""
import torch
from labn import rise
rise  # loaded now, being lazy
from labn.explain.rise import draw_masks
from tests.bench.reference import rise_at_once
from tests.bench.scores import idle
image = torch.randn(3, {SIZE}, {SIZE})
mark()
with torch.inference_mode():
"""
    drawn = f"draw_masks({_NUM_MASKS}, ({SIZE}, {SIZE}), 7, 0.5, 0)"
    ours = peak_memory_mb(f"{head}    rise(idle, image[None], num_masks={_NUM_MASKS})")
    other = peak_memory_mb(f"{head}    rise_at_once(idle, image, {drawn}, 64)")
    own, theirs = ([peak - at_mark] for at_mark, peak in (ours, other))
    label = f"RISE's extra memory, {_NUM_MASKS} masks at {SIZE}, batches of 64"
    return row_of(label, own, theirs, "MB", at_least=15.0)
