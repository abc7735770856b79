"""How well a saliency map finds the regions that experts marked.

Every score stands beside what a map that knows nothing would get, for a large region is easily hit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from scipy.ndimage import distance_transform_edt
from scipy.stats import rankdata
from torch import Tensor

from labn.metrics.faithfulness import check_finite


@dataclass(frozen=True)
class Localisation:
    """Scores of each image in [0, 1], more is better; one that is undefined is NaN.

    ``pointing_hit`` is the share of the map's highest pixels that lie in the mask, after it has
    grown by the tolerance (1 or 0 where one pixel is highest); by chance it would be
    ``pointing_chance``, the area share of that grown mask. ``energy_inside`` is the share of the
    map's sum that lies in the mask; by chance ``area_share``, the mask's own. ``auroc`` is the
    chance that a pixel inside is higher than one outside, equals counting half; by chance 0.5.

    Only ``area_share`` is defined where the mask is empty or full; ``energy_inside`` is not where
    the map is zero.
    """

    pointing_hit: Float64[Tensor, " n"]
    pointing_chance: Float64[Tensor, " n"]
    energy_inside: Float64[Tensor, " n"]
    area_share: Float64[Tensor, " n"]
    auroc: Float64[Tensor, " n"]

    def num_defined(self) -> dict[str, int]:
        """Count the images that have each score."""
        return {name: int((~scores.isnan()).sum()) for name, scores in vars(self).items()}

    def as_metrics(self, prefix: str) -> dict[str, float]:
        """Name each mean ``<prefix>_<score>`` and its images ``<prefix>_<score>_images``.

        The mean of a score that no image has is left out.
        """
        counts = self.num_defined()
        means = {
            f"{prefix}_{name}": scores.nanmean().item()
            for name, scores in vars(self).items()
            if counts[name]
        }
        return means | {f"{prefix}_{name}_images": float(n) for name, n in counts.items()}


def localisation(
    saliency: Float[Tensor, "*maps"], masks: Bool[Tensor, "*masks"], *, tolerance_px: float = 0.0
) -> Localisation:
    """Score maps (n, h, w) against masks of the same shape.

    Maps must not be below zero: they are taken as they are, for what is added to a map dilutes its
    energy. ``tolerance_px`` is the distance from the mask, in pixels between centres, at which
    pointing still hits (Zhang 2018 take 15).

    Raises:
        ValueError: the shapes differ, or a map or the tolerance is out of range.
    """
    _check(saliency, masks, tolerance_px)
    pairs = zip(
        saliency.detach().to("cpu", torch.float64).numpy(), masks.cpu().numpy(), strict=True
    )
    rows = [_score(saliency_hw, mask_hw, tolerance_px) for saliency_hw, mask_hw in pairs]
    return Localisation(*torch.tensor(rows, dtype=torch.float64).reshape(-1, 5).unbind(dim=1))


def _score(
    saliency_hw: Float64[np.ndarray, "h w"], mask_hw: Bool[np.ndarray, "h w"], tolerance_px: float
) -> tuple[float, float, float, float, float]:
    """Return one image's scores in the order of ``Localisation``."""
    area_share = float(mask_hw.mean())
    if not 0 < area_share < 1:
        return np.nan, np.nan, np.nan, area_share, np.nan
    hit_region_hw = distance_transform_edt(~mask_hw) <= tolerance_px
    total = saliency_hw.sum()
    return (
        float(hit_region_hw[saliency_hw == saliency_hw.max()].mean()),
        float(hit_region_hw.mean()),
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


def _check(saliency: Tensor, masks: Tensor, tolerance_px: float) -> None:
    if saliency.ndim != 3 or masks.shape != saliency.shape:
        raise ValueError(
            f"saliency and masks: got shapes {tuple(saliency.shape)} and {tuple(masks.shape)},"
            " must both be (images, height, width)"
        )
    check_finite(saliency)
    if (saliency < 0).any():
        image = int((saliency < 0).nonzero()[0, 0])
        raise ValueError(
            f"saliency: got {saliency[image].min().item():.4g} in the map of image {image}, must"
            " not be below 0; rescale the map"
        )
    if not tolerance_px >= 0:
        raise ValueError(f"tolerance_px: got {tolerance_px}, must be 0 or more")
