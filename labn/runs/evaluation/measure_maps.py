"""The metrics of one image's maps beside PID, and the cost of the maps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from labn.data.readers.magnetograms import field_strength
from labn.explain.method import Method
from labn.metrics.explained import Explained
from labn.metrics.faithfulness import Predict
from labn.metrics.map_metrics import find_metric
from labn.model.network import LABN
from labn.runs.evaluation.options import EvaluationOptions
from labn.runs.evaluation.score_image import Sample, baseline_image, explain
from labn.runs.trained import TrainedRun

COSTS = ("forward passes", "seconds")
"""What a map costs, as metrics of which less is better."""


@dataclass
class PassCounter:
    """The number of images that networks were given."""

    num_images: int = 0

    def counting(self, predict: Predict) -> Predict:
        """Return a function that counts its images."""

        def counted(images: Tensor) -> Tensor:
            self.num_images += len(images)
            return predict(images)

        return counted

    def count(self, module: object, arguments: tuple[Tensor, ...]) -> None:
        """Count a module's images, as a hook before its forward pass."""
        self.num_images += len(arguments[0])


def explain_counted(
    sample: Sample, methods: Sequence[Method], model: LABN, counter: PassCounter
) -> tuple[Float[Tensor, "k h w"], list[dict[str, Any]]]:
    """Return each method's map of an image, and rows of what it cost.

    ``counter`` also counts what the methods' ``predict`` is given.
    """
    maps, rows = [], []
    with model.register_forward_pre_hook(counter.count):
        for method in methods:
            start, before = time.perf_counter(), counter.num_images
            maps.append(explain(sample, [method]))  # which waits for the device
            costs = counter.num_images - before, time.perf_counter() - start
            rows += [
                {"name": sample.name, "method": method.name, "score": kind, "value": float(cost)}
                for kind, cost in zip(COSTS, costs, strict=True)
            ]
    return torch.cat(maps), rows


def measure_maps(
    sample: Sample,
    maps: Float[Tensor, "k h w"],
    methods: Sequence[Method],
    predict: Predict,
    trained: TrainedRun,
    options: EvaluationOptions,
) -> list[dict[str, Any]]:
    """Return one row per metric of ``options`` and method."""
    one = Explained(
        predict=predict,
        image=sample.image,
        label=sample.label,
        name=sample.name,
        maps=maps.double().cpu().numpy(),
        explain=[partial(_explain, sample, method) for method in methods],
        baseline=baseline_image("bias", sample.image, trained.statistics),
        patch_size=options.headline_patch_size,
        mask=sample.mask,
        field=_field(sample, trained),
        seed=options.seed,
        batch_size=trained.config.validation.batch_size,
    )
    return [
        {"name": sample.name, "method": method.name, "score": name, "value": float(value)}
        for name in options.metrics
        for method, value in zip(methods, find_metric(name).compute(one), strict=True)
    ]


def _field(sample: Sample, trained: TrainedRun) -> Float64[np.ndarray, "h w"] | None:
    """Return |B| in gauss of a magnetogram, None of other images."""
    if trained.config.data.name != "magnetograms":
        return None
    statistics = trained.statistics
    shares = sample.image[0].cpu().double() * statistics.std + statistics.mean
    return field_strength((shares * 255).round().clip(0, 255).to(torch.uint8).numpy())


def _explain(sample: Sample, method: Method, image: Tensor) -> Tensor:
    labels = torch.tensor([sample.label], device=image.device)
    return method.explain(image[None], labels, (sample.name,))[0]
