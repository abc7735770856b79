"""What a map can reach: the order of patches by a greedy search for the best PID.

Symbols as in ``labn.metrics.faithfulness``: x an image, b the bias image, y the probability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labn.metrics.faithfulness import Predict

_NUM_ROUNDS = 8
_BATCH_SIZE = 64


@dataclass(frozen=True)
class Greedy:
    """The patches in an order in which each raises the insertion curve and lowers the deletion's.

    In each of eight rounds an eighth of the patches is chosen: those whose addition to the patches
    so far raises y most, plus those whose removal with them lowers y most. It knows the score that
    it is judged by, so that its PID is what a map can reach, and a share of it how far another is.
    """

    predict: Predict
    baseline: Tensor
    patch_size: int
    name: str = "greedy"

    def explain(
        self, images: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"], names: Sequence[str]
    ) -> Float[Tensor, "b h w"]:
        """Return the number of patches that come after each pixel's patch."""
        pairs = zip(images, labels.tolist(), strict=True)
        return torch.stack([self._explain(image, label) for image, label in pairs])

    def _explain(self, x: Float[Tensor, "c h w"], label: int) -> Float[Tensor, "h w"]:
        rows, columns = (
            torch.arange(length, device=x.device) // self.patch_size for length in x.shape[1:]
        )
        patches = rows[:, None] * (int(columns[-1]) + 1) + columns
        order, remaining = list[int](), list(range(int(patches.max()) + 1))
        size = math.ceil(len(remaining) / _NUM_ROUNDS)
        b = self.baseline.to(x).expand_as(x)
        while remaining:
            taken = torch.isin(patches, torch.tensor(order, dtype=torch.long, device=x.device))
            gains = list[Tensor]()
            for start in range(0, len(remaining), _BATCH_SIZE // 2):
                tried = torch.tensor(remaining[start : start + _BATCH_SIZE // 2], device=x.device)
                shown = (taken | (patches == tried[:, None, None]))[:, None]
                frames = torch.cat([torch.where(shown, x, b), torch.where(shown, b, x)])
                with torch.no_grad():
                    inserted, deleted = self.predict(frames)[:, label].chunk(2)
                gains.append(inserted - deleted)
            best = torch.cat(gains).argsort(descending=True, stable=True)[:size].tolist()
            order += [remaining[place] for place in best]
            remaining = [patch for patch in remaining if patch not in order]
        importance = x.new_empty(len(order))
        importance[order] = torch.arange(len(order), device=x.device).flip(0).to(x)
        return importance[patches]
