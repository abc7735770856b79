"""Agreement of saliency maps with regions marked by experts.

Every score has its chance level beside it, since a large region is easily hit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from scipy.ndimage import distance_transform_edt
from scipy.stats import rankdata
from torch import Tensor

from labn.metrics.arguments import Numbers, as_mask, as_numbers, as_tensor
from labn.metrics.faithfulness import check_finite

STRONG_FIELD = 150.0
"""In gauss."""


@dataclass(frozen=True)
class Localisation:
    """Scores of each image in [0, 1], higher is better; an undefined score is NaN.

    ``pointing_hit`` is the share of the map's highest pixels that lie in the mask (1 or 0 where one
    pixel is highest); by chance ``pointing_chance``, the mask's area share. ``energy_inside`` is
    the share of the map's sum that lies in the mask; by chance ``area_share``, the same. ``auroc``
    is the probability that a pixel inside is higher than one outside, ties counting half; by
    chance 0.5.

    Only ``area_share`` is defined where the mask is empty or full; ``energy_inside`` is not where
    the map is zero.
    """

    pointing_hit: Float64[Tensor, " n"]
    pointing_chance: Float64[Tensor, " n"]
    energy_inside: Float64[Tensor, " n"]
    area_share: Float64[Tensor, " n"]
    auroc: Float64[Tensor, " n"]


def localisation(saliency: Numbers, masks: Numbers) -> Localisation:
    """Score maps (n, h, w), in any type of number, against masks of the same shape.

    Maps must not be below zero and are not rescaled, since an added constant changes the energy.
    Masks are boolean, or 0 outside and one other number inside, such as 1 or 255.

    Raises:
        ValueError: the shapes differ, a map is out of range, or a mask is none.
    """
    maps, inside = _check(saliency, masks)
    pairs = zip(maps.to("cpu", torch.float64).numpy(), inside.cpu().numpy(), strict=True)
    rows = [_score(saliency_hw, mask_hw) for saliency_hw, mask_hw in pairs]
    return Localisation(*torch.tensor(rows, dtype=torch.float64).reshape(-1, 5).unbind(dim=1))


def field_distance(
    maps: Float64[np.ndarray, "k h w"], strength: Float64[np.ndarray, "h w"]
) -> Float64[np.ndarray, " k"]:
    """Return how far maps lie from strong magnetic field, against an even map.

    The mean distance, weighted by the map, to the nearest pixel of at least 150 gauss, the strong
    field of active regions in Schrijver 2007; divided by that of an even map of the whole image.
    0 is a map on strong field alone, 1 chance; lower is better. ``strength`` is the field in gauss,
    without its sign, NaN where it is unknown, as off the disk, which counts as weak. NaN where a
    map is zero, or no pixel or every one is strong.
    """
    is_strong = strength >= STRONG_FIELD
    totals = maps.sum(axis=(1, 2))
    if not 0 < is_strong.mean() < 1:
        return np.full(len(maps), np.nan)
    distances = distance_transform_edt(~is_strong)
    sums = (maps * distances).sum(axis=(1, 2))
    means = np.divide(sums, totals, out=np.full(len(maps), np.nan), where=totals > 0)
    found: Float64[np.ndarray, " k"] = means / distances.mean()
    return found


def _score(
    saliency_hw: Float64[np.ndarray, "h w"], mask_hw: Bool[np.ndarray, "h w"]
) -> tuple[float, float, float, float, float]:
    """Return one image's scores in the order of ``Localisation``."""
    area_share = float(mask_hw.mean())
    if not 0 < area_share < 1:
        return np.nan, np.nan, np.nan, area_share, np.nan
    total = saliency_hw.sum()
    return (
        float(mask_hw[saliency_hw == saliency_hw.max()].mean()),
        area_share,
        float(saliency_hw[mask_hw].sum() / total) if total > 0 else np.nan,
        area_share,
        _auroc(saliency_hw, mask_hw),
    )


def _auroc(saliency_hw: Float64[np.ndarray, "h w"], mask_hw: Bool[np.ndarray, "h w"]) -> float:
    """Return Mann and Whitney's U over the pairs of a pixel inside and one outside."""
    ranks_hw = rankdata(saliency_hw).reshape(saliency_hw.shape)
    num_inside = int(mask_hw.sum())
    num_pairs = num_inside * (mask_hw.size - num_inside)
    num_won = ranks_hw[mask_hw].sum() - num_inside * (num_inside + 1) / 2
    return float(num_won / num_pairs)


def _check(
    saliency: Numbers, masks: Numbers
) -> tuple[Float[Tensor, "n h w"], Bool[Tensor, "n h w"]]:
    given, marked = as_tensor("saliency", saliency), as_tensor("masks", masks)
    if given.ndim != 3 or marked.shape != given.shape or 0 in given.shape[1:]:
        raise ValueError(
            f"saliency and masks: got shapes {tuple(given.shape)} and {tuple(marked.shape)},"
            f" must both be (images, height, width); types {given.dtype} and {marked.dtype}"
        )
    maps = as_numbers("saliency", given)
    check_finite(maps)
    if (maps < 0).any():
        image = int((maps < 0).nonzero()[0, 0])
        raise ValueError(
            f"saliency: got {maps[image].min().item():.4g} in the map of image {image}, must"
            " not be below 0; rescale the map"
        )
    return maps, as_mask("masks", marked)
