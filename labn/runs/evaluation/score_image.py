"""Faithfulness of explanations: every method's map of one image, by ID and by PID at several m.

Images are scored one by one, so that scores depend neither on other images nor on the distribution
of the work; the frames of all maps of an image share the network's batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.ndimage import gaussian_filter
from torch import Tensor

from labn.data.dataset import ChannelStatistics
from labn.errors import UserError
from labn.explain.method import Method
from labn.metrics.adaptive import AdaptiveInsertionDeletion, adaptive_insertion_deletion
from labn.metrics.faithfulness import (
    PatchInsertionDeletion,
    Predict,
    Protocol,
    patch_insertion_deletion,
)
from labn.metrics.localisation import localisation

Baseline = Literal["bias", "zero", "black", "blur"]
"""What replaces removed patches; the paper's PID uses the bias image."""
ID = "ID"
MATCHED = " matched"
"""The end of the name of a PID at matched confidence."""
_BLUR_SIGMA_SHARE = 5 / 224


@dataclass(frozen=True)
class Measure:
    """One score: its name in tables, the patch size m in pixels, and the baseline.

    A matched one is for logits divided by the network's temperature.
    """

    name: str
    patch_size: int
    baseline: Baseline
    is_matched: bool = False


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One standardised image, the class to explain, and the lesion mask."""

    name: str
    label: int
    image: Float[Tensor, "c h w"]
    mask: Bool[np.ndarray, "h w"] | None = None


@dataclass(frozen=True)
class ImageScores:
    """The scores of one image as plain rows, ready for JSON.

    A row of ``scores`` is for one method and measure: its value (insertion minus deletion), both
    areas, and both curves over ``fractions``. Of adaptive curves only the areas are kept, and
    ``num_points`` is the number of forward passes of both. A row of ``localisation`` is for one
    method; there are none if the lesions are unknown. A row of ``metrics`` is for one method and
    metric of the registry.
    """

    scores: list[dict[str, Any]]
    localisation: list[dict[str, Any]]
    metrics: list[dict[str, Any]] = field(default_factory=list)


def pid_name(patch_size: int) -> str:
    """Return the name of the PID at one patch size."""
    return f"PID m={patch_size}"


def measures(
    patch_sizes: Sequence[int], baseline: Baseline, *, has_matched: bool = False
) -> tuple[Measure, ...]:
    """Return ID, of pixels against zero, and the PID of each patch size (Iida 2022, 4.3).

    If asked for, the PIDs at matched confidence follow.
    """
    pids = [Measure(pid_name(size), size, baseline) for size in patch_sizes]
    matched = [Measure(f"{m.name}{MATCHED}", m.patch_size, baseline, is_matched=True) for m in pids]
    return (Measure(ID, 1, "zero"), *pids, *(matched if has_matched else ()))


def score_image(
    predict: Predict,
    sample: Sample,
    methods: Sequence[Method],
    measures: Sequence[Measure],
    statistics: ChannelStatistics,
    *,
    num_points: int | None,
    tolerance: float | None = None,
    batch_size: int = 64,
    temperature: float | None = None,
    protocol: Protocol = "exact",
    maps: Float[Tensor, "k h w"] | None = None,
) -> ImageScores:
    """Score each method's map of an image by every measure; ``maps`` are computed if not passed.

    ``num_points``, ``batch_size``, ``temperature`` and ``protocol`` (of PID) are as in
    ``patch_insertion_deletion``; with a ``tolerance``, ``adaptive_insertion_deletion`` is used
    instead, which has no matched scores. ``statistics`` are those that the image was
    standardised with.

    Raises:
        UserError: a method's map is invalid.
        ValueError: an argument is invalid.
    """
    maps = explain(sample, methods) if maps is None else maps
    rows: list[dict[str, Any]] = []
    found: dict[int, PatchInsertionDeletion | None] = {}
    for measure in measures:
        if measure.is_matched:
            matched = found[measure.patch_size]
            assert matched is not None, "a matched score needs a temperature"
            rows += [_score_row(sample, m, measure, matched, i) for i, m in enumerate(methods)]
            continue
        images = sample.image.expand(len(methods), -1, -1, -1)
        labels = torch.full((len(methods),), sample.label)
        settings: dict[str, Any] = {
            "patch_size": measure.patch_size,
            "baseline": baseline_image(measure.baseline, sample.image, statistics),
            "batch_size": batch_size,
        }
        scores: PatchInsertionDeletion | AdaptiveInsertionDeletion
        if tolerance is None:
            scores = patch_insertion_deletion(
                predict,
                images,
                maps,
                labels,
                num_points=num_points,
                temperature=temperature,
                protocol="exact" if measure.name == ID else protocol,
                **settings,
            )
            if measure.name != ID:
                found[measure.patch_size] = scores.matched
        else:
            scores = adaptive_insertion_deletion(
                predict, images, maps, labels, tolerance=tolerance, **settings
            )
        rows += [
            _score_row(sample, method, measure, scores, place)
            for place, method in enumerate(methods)
        ]
    return ImageScores(rows, _localise(sample, methods, maps))


def explain(sample: Sample, methods: Sequence[Method]) -> Float[Tensor, "k h w"]:
    """Return each method's map of an image.

    Raises:
        UserError: a map has not the size of the image, is not finite, or is below 0.
    """
    return torch.cat([_explain(sample, method) for method in methods])


def _explain(sample: Sample, method: Method) -> Float[Tensor, "1 h w"]:
    images = sample.image[None]
    labels = torch.tensor([sample.label], device=images.device)
    maps = method.explain(images, labels, (sample.name,)).detach().float()
    shape = (1, *images.shape[2:])
    if maps.shape != shape or not maps.isfinite().all() or maps.min() < 0:
        values = f" with values from {maps.min():.4g} to {maps.max():.4g}" if maps.numel() else ""
        raise UserError(
            f"--methods {method.name}: got maps of shape {tuple(maps.shape)}{values} for"
            f" {sample.name}, must be of shape {shape}, finite and not below 0"
        )
    return maps


def baseline_image(
    baseline: Baseline, image: Float[Tensor, "c h w"], statistics: ChannelStatistics
) -> Float[Tensor, "c h w"]:
    """Return the image that replaces removed patches.

    ``bias`` is the mean training image, ``zero`` the mean training colour, ``black`` a pixel value
    of 0, and ``blur`` the image itself under a Gaussian of sigma 5 pixels at 224 (Petsiuk 2018).
    """
    if baseline == "bias":
        return statistics.bias_image.to(image)
    if baseline == "zero":
        return torch.zeros_like(image)
    if baseline == "black":
        # Black has no local contrast, which is 1/2.
        black = 0 if statistics.contrast_window is None else 0.5
        colour = ((black - statistics.mean) / statistics.std).to(image)
        return colour[:, None, None].expand_as(image)
    sigma = _BLUR_SIGMA_SHARE * min(image.shape[1:])
    blurred = gaussian_filter(
        image.cpu().numpy(), (0, sigma, sigma), mode="mirror", radius=math.ceil(3 * sigma)
    )
    return torch.from_numpy(blurred).to(image)


def _score_row(
    sample: Sample,
    method: Method,
    measure: Measure,
    scores: PatchInsertionDeletion | AdaptiveInsertionDeletion,
    place: int,
) -> dict[str, Any]:
    curves: dict[str, Any]
    if isinstance(scores, AdaptiveInsertionDeletion):
        curves = {"num_points": int(scores.num_forwards[place]), "fractions": []}
        curves |= {"insertion_curve": [], "deletion_curve": []}
    else:
        curves = {
            "num_points": len(scores.fractions),
            "fractions": scores.fractions.tolist(),
            "insertion_curve": scores.insertion_curve[place].tolist(),
            "deletion_curve": scores.deletion_curve[place].tolist(),
        }
    return {
        "name": sample.name,
        "label": sample.label,
        "method": method.name,
        "score": measure.name,
        "patch_size": measure.patch_size,
        "baseline": measure.baseline,
        "value": scores.pid[place].item(),
        "insertion_auc": scores.insertion_auc[place].item(),
        "deletion_auc": scores.deletion_auc[place].item(),
        **curves,
    }


def _localise(
    sample: Sample, methods: Sequence[Method], maps: Float[Tensor, "k h w"]
) -> list[dict[str, Any]]:
    if sample.mask is None:
        return []
    masks = torch.from_numpy(np.array(sample.mask)).expand(len(methods), -1, -1)
    columns = {name: values.tolist() for name, values in vars(localisation(maps, masks)).items()}
    return [
        {"name": sample.name, "method": method.name}
        | {name: values[place] for name, values in columns.items()}
        for place, method in enumerate(methods)
    ]
