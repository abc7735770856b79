"""Faithfulness of saliency maps to the network: ID and PID (Iida 2022, 4.3).

Symbols: x an image, b the baseline (the bias image, or zero), m the patch size, n the number of
patches taken so far, i_n and d_n the frames passed to the network, y its probability of the true
class.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int32, Int64
from torch import Tensor
from torch.nn.functional import max_pool2d

from labn.metrics.arguments import (
    Numbers,
    as_images,
    as_labels,
    as_numbers,
    as_tensor,
    check_count,
)
from labn.metrics.calibration import tempered
from labn.metrics.classification import as_probabilities, check_labels

Predict = Callable[[Tensor], Tensor]
"""A function from images (n, channels, height, width) to class probabilities (n, classes)."""

Protocol = Literal["exact", "released"]

_RELEASED_FRAMES = 40


@dataclass(frozen=True)
class PatchInsertionDeletion:
    """Scores and curves of each image; ``fractions`` is the horizontal axis of all curves.

    The curves are probabilities of the true class, the areas lie in [0, 1] and ``pid``, insertion
    minus deletion, in [-1, 1]: higher is better. All are float64 on the CPU. ``matched`` are the
    same for logits divided by a temperature, if one was given.
    """

    pid: Float64[Tensor, " n"]
    insertion_auc: Float64[Tensor, " n"]
    deletion_auc: Float64[Tensor, " n"]
    insertion_curve: Float64[Tensor, "n p"]
    deletion_curve: Float64[Tensor, "n p"]
    fractions: Float64[Tensor, " p"]
    matched: PatchInsertionDeletion | None = None


def patch_insertion_deletion(
    predict: Predict,
    images: Numbers,
    saliency: Numbers,
    labels: Numbers,
    *,
    patch_size: int,
    baseline: Numbers,
    num_points: int | None = None,
    batch_size: int = 64,
    temperature: float | None = None,
    protocol: Protocol = "exact",
) -> PatchInsertionDeletion:
    """Score maps by pasting patches, the most important first (PID; Iida 2022, eq. 14-16).

    A patch is as important as its most important pixel; ties are taken row by row, and patches at
    the right and lower edge may be smaller. The paper's "ascending order" is read as descending:
    its own numbers and RISE take the most important first.

    ``images`` are (n, c, h, w), ``labels`` (n,); ``saliency`` is (n, h, w) or (n, 1, h, w) on any
    scale and in any type of number; ``baseline`` broadcasts to (c, h, w).
    The curves are sampled at ``num_points`` evenly spaced n (fewer where the image has fewer
    patches), or at every n if None; the areas use the true n / N. ``predict`` runs in inference
    mode on ``batch_size`` frames at a time, on the device of ``images``.

    The ``released`` protocol computes the curves as the authors' code does, for comparison with
    published numbers only: at most 40 frames, whatever ``num_points``, each of at least one patch;
    patches that are equally important enter together; frames count as evenly spaced.

    Raises:
        ValueError: an argument, or the output of ``predict``, is invalid.
    """
    if num_points is not None:
        check_count("num_points", num_points, "at least 2, or None for every n", least=2)
    if temperature is not None and not 0 < temperature < math.inf:
        raise ValueError(f"temperature: got {temperature}, must be above 0, or None")
    if protocol not in ("exact", "released"):
        raise ValueError(f"protocol: got {protocol!r}, must be 'exact' or 'released'")
    frames = prepare_frames(
        images, saliency, labels, patch_size=patch_size, baseline=baseline, batch_size=batch_size
    )
    if protocol == "exact":
        counts = _patch_counts(frames.num_patches, num_points)
        fractions = counts.double() / counts[-1]
    else:
        frames = replace(frames, ranks=_tied_ranks(frames, saliency))
        counts = _released_counts(frames.num_patches)
        fractions = torch.linspace(0, 1, len(counts), dtype=torch.float64)
    temperatures = (1.0,) if temperature is None else (1.0, temperature)
    scores = _score_curves(predict, frames, counts, batch_size, temperatures)
    plain, *matched = (_areas(curves, fractions) for curves in scores.unbind(dim=-1))
    return replace(plain, matched=matched[0] if matched else None)


def _areas(
    curves: Float64[Tensor, "n 2 p"], fractions: Float64[Tensor, " p"]
) -> PatchInsertionDeletion:
    areas = torch.trapezoid(curves, fractions)
    return PatchInsertionDeletion(
        pid=areas[:, 0] - areas[:, 1],
        insertion_auc=areas[:, 0],
        deletion_auc=areas[:, 1],
        insertion_curve=curves[:, 0],
        deletion_curve=curves[:, 1],
        fractions=fractions,
    )


@dataclass(frozen=True)
class Frames:
    """The data to paint and score any frame of any image; ``labels`` are on the CPU."""

    images: Float[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    baseline: Float[Tensor, "c h w"]
    ranks: Int32[Tensor, "n i j"]
    patch_size: int

    @property
    def num_patches(self) -> int:
        """Number of patches of an image, N."""
        return self.ranks.shape[1:].numel()

    def paint(self, image_b: Tensor, count_b: Tensor, is_insertion_b: Tensor) -> Tensor:
        """Return the frames i_n where ``is_insertion_b``, else d_n (Iida 2022, eq. 16)."""
        height, width = self.images.shape[2:]
        taken_bij = self.ranks[image_b] < count_b[:, None, None]
        taken_bhj = taken_bij.repeat_interleave(self.patch_size, dim=1)[:, :height]
        taken_bhw = taken_bhj.repeat_interleave(self.patch_size, dim=2)[:, :, :width]
        shows_image_bhw = taken_bhw == is_insertion_b[:, None, None]
        return torch.where(shows_image_bhw[:, None], self.images[image_b], self.baseline)

    def score(
        self,
        predict: Predict,
        image_b: Int64[Tensor, " b"],
        is_insertion_b: Bool[Tensor, " b"],
        count_b: Int64[Tensor, " b"],
        temperatures: tuple[float, ...] = (1.0,),
    ) -> Float64[Tensor, "b t"]:
        """Return y for one batch of frames, at each temperature."""
        device = self.images.device
        with torch.inference_mode():
            batch = self.paint(image_b.to(device), count_b.to(device), is_insertion_b.to(device))
            probabilities = _as_prediction(predict(batch), len(image_b), self.labels)
        every = (probabilities if t == 1 else tempered(probabilities, t) for t in temperatures)
        own = torch.arange(len(image_b)), self.labels[image_b]
        return torch.stack([one[own] for one in every], dim=1)


def prepare_frames(
    images: Numbers,
    saliency: Numbers,
    labels: Numbers,
    *,
    patch_size: int,
    baseline: Numbers,
    batch_size: int,
) -> Frames:
    """Check the arguments of ``patch_insertion_deletion``, and rank the patches of each map.

    Raises:
        ValueError: an argument is invalid.
    """
    images = as_images(images)
    _check_settings(images, patch_size, batch_size)
    return Frames(
        images,
        as_labels(labels, len(images)),
        _as_baseline(baseline, images),
        _patch_ranks(_as_maps(saliency, images), patch_size).to(images.device),
        patch_size,
    )


def _score_curves(
    predict: Predict,
    frames: Frames,
    counts: Int64[Tensor, " p"],
    batch_size: int,
    temperatures: tuple[float, ...],
) -> Float64[Tensor, "n 2 p t"]:
    """Return y along both curves, in full batches across curves and images."""
    shape = (len(frames.labels), 2, len(counts))
    scores = torch.empty((*shape, len(temperatures)), dtype=torch.float64)
    flat_scores = scores.view(-1, len(temperatures))
    for start in range(0, len(flat_scores), batch_size):
        frame = torch.arange(start, min(start + batch_size, len(flat_scores)))
        image, curve, point = torch.unravel_index(frame, shape)
        flat_scores[frame] = frames.score(predict, image, curve == 0, counts[point], temperatures)
    return scores


def _patch_ranks(saliency: Float[Tensor, "n 1 h w"], patch_size: int) -> Int32[Tensor, "n i j"]:
    """Return the rank of each patch in its map, 0 for the most important."""
    importance = max_pool2d(saliency, patch_size, ceil_mode=True)[:, 0]
    ranks = torch.empty_like(importance, dtype=torch.int32)
    for importance_ij, ranks_ij in zip(importance, ranks, strict=True):
        order = importance_ij.flatten().argsort(descending=True, stable=True)
        ranks_ij.view(-1)[order] = torch.arange(len(order), dtype=torch.int32, device=order.device)
    return ranks


def _tied_ranks(frames: Frames, saliency: Numbers) -> Int32[Tensor, "n i j"]:
    """Return how many patches of its map are more important than each patch."""
    maps = _as_maps(saliency, frames.images)
    importance_nk = max_pool2d(maps, frames.patch_size, ceil_mode=True).flatten(1)
    ascending_nk = importance_nk.sort(dim=1).values
    num_others_nk = torch.searchsorted(ascending_nk, importance_nk, right=True)
    ranks = (importance_nk.shape[1] - num_others_nk).int()
    return ranks.view_as(frames.ranks).to(frames.ranks.device)


def _released_counts(num_patches: int) -> Int64[Tensor, " p"]:
    """Return the n of each frame of the authors' code, which steps by 5 of 196 patches."""
    step = math.ceil(num_patches / _RELEASED_FRAMES)
    ends = torch.arange(1, math.ceil(num_patches / step) + 1) * step
    return ends.clamp(max=num_patches - 1) + 1


def _patch_counts(num_patches: int, num_points: int | None) -> Int64[Tensor, " p"]:
    """Return the n at which the curves are sampled, from 0 to all patches."""
    num_points = num_patches + 1 if num_points is None else num_points
    counts = np.linspace(0, num_patches, num_points).round().astype(np.int64)
    return torch.from_numpy(np.unique(counts))


def _as_baseline(baseline: Numbers, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "c h w"]:
    tensor = as_numbers("baseline", baseline).to(images)
    try:
        return tensor.broadcast_to(images.shape[1:])
    except RuntimeError:
        raise ValueError(
            f"baseline: got shape {tuple(tensor.shape)}, must broadcast to one image,"
            f" {tuple(images.shape[1:])}"
        ) from None


def _check_settings(images: Float[Tensor, "n c h w"], patch_size: int, batch_size: int) -> None:
    largest = min(images.shape[2:])
    rule = f"1 to {largest}, the image's shorter side"
    check_count("patch_size", patch_size, rule, most=largest)
    check_count("batch_size", batch_size, "at least 1")


def _as_maps(saliency: Numbers, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 h w"]:
    num_images, _, height, width = images.shape
    allowed = (num_images, height, width), (num_images, 1, height, width)
    given = as_tensor("saliency", saliency)
    if given.shape not in allowed:
        raise ValueError(
            f"saliency: got {given.dtype} of shape {tuple(given.shape)}, must be"
            f" {allowed[0]} or {allowed[1]}, one map for each image at its size"
        )
    maps = as_numbers("saliency", given)
    check_finite(maps)
    return maps.reshape(num_images, 1, height, width)


def check_finite(saliency: Float[Tensor, "n ..."]) -> None:
    """Check that no map has a NaN or an infinity.

    Raises:
        ValueError: a map has one; the message has the image.
    """
    finite = saliency.isfinite().flatten(start_dim=1).all(dim=1)
    if not finite.all():
        image = int((~finite).nonzero()[0])
        raise ValueError(
            f"saliency: got NaN or infinity in the map of image {image}, must be finite"
        )


def _as_prediction(
    given: Numbers, num_frames: int, labels: Int64[Tensor, " n"]
) -> Float64[Tensor, "b c"]:
    probabilities = as_probabilities("predict", given)
    if len(probabilities) != num_frames:
        raise ValueError(
            f"predict: got {len(probabilities)} rows for {num_frames} images, must return one each"
        )
    check_labels(labels, probabilities.shape[1])
    return probabilities
