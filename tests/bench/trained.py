"""bf16 on trained networks: the difference of PID's curves from float32, and the time saved."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from labn import patch_insertion_deletion
from labn.data.batches import standardise
from labn.metrics.faithfulness import PatchInsertionDeletion
from labn.model.fusion import folded
from labn.model.network import upsample_attention
from labn.runs.build import require_subset
from labn.runs.reporter import Reporter
from labn.runs.trained import TrainedRun
from tests.bench.timing import Row, compare, interleave

_NUM_IMAGES = 8
_PATCH_SIZES = {"synthetic": 8}


def trained_rows(num_rounds: int, runs: list[Path], out: Path) -> list[Row]:
    """Compare on the runs; without any, train the demonstration first and use it."""
    if not runs:
        runs = [out / "trained"]
        command = ("train", "configs/demo.yaml", f"output_dir={runs[0]}", "tracking.uri=none")
        subprocess.run([sys.executable, "-m", "labn", *command], check=True, capture_output=True)
    return [_row(num_rounds, TrainedRun.open(run, ("train.device=cpu",))) for run in runs]


def _row(num_rounds: int, run: TrainedRun) -> Row:
    config, model = run.config, folded(run.model)
    dataset = run.load_dataset(Reporter())
    part = require_subset(dataset, "validation")
    positives = part.select((part.labels > 0).nonzero()[0][:_NUM_IMAGES])
    images = standardise(
        positives.pixels(np.arange(len(positives))), dataset.statistics, run.device
    )
    labels = torch.as_tensor(positives.labels)
    with torch.inference_mode():
        size = (config.data.image_size, config.data.image_size)
        saliency = upsample_attention(model(images).attention, size)
    results: dict[str, PatchInsertionDeletion] = {}

    def predict(x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        probabilities: Tensor = model(x).logits.float().softmax(-1)
        return probabilities

    def score(name: str, precision: torch.dtype | None) -> None:
        with torch.autocast("cpu", precision, enabled=precision is not None):
            results[name] = patch_insertion_deletion(
                predict, images, saliency, labels,
                patch_size=_PATCH_SIZES.get(config.data.name, 16),
                baseline=dataset.statistics.bias_image, num_points=33, batch_size=16,
            )  # fmt: skip

    works = {
        "bf16": lambda: score("bf16", torch.bfloat16),
        "float32": lambda: score("float32", None),
    }
    times = interleave(works, num_rounds)
    exact, half = results["float32"], results["bf16"]
    error = max(
        (half.insertion_curve - exact.insertion_curve).abs().max().item(),
        (half.deletion_curve - exact.deletion_curve).abs().max().item(),
    )
    num_parameters = sum(p.numel() for p in model.parameters())
    return compare(
        f"PID in bf16 against float32, {config.model.backbone} of {num_parameters:,} parameters"
        f" trained on {config.data.name}, {len(positives)} images of {config.data.image_size}",
        times["bf16"],
        times["float32"],
        error,
        "largest difference of a curve",
    )
