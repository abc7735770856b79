"""Noisy linear imputation of removed pixels, for ROAD (Rong et al. 2022)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.ndimage import distance_transform_edt
from scipy.sparse import coo_array
from scipy.sparse.linalg import cg
from torch import Tensor

_NOISE, _ACCURACY = 0.01, 1e-5


def impute(
    image: Float[Tensor, "c h w"], removed: Int[np.ndarray, " n"], rng: np.random.Generator
) -> Float[Tensor, "c h w"]:
    """Return an image with noisy linear imputation of pixels, numbered row by row (Rong 2022).

    Each becomes the mean of its neighbours, those at its corners with half of the weight, plus
    normal noise; weights beyond the border are left out.
    """
    height, width = image.shape[1:]
    values = image.double().cpu().numpy().reshape(len(image), -1)
    place = np.full(height * width, -1)
    place[removed] = np.arange(len(removed))
    rows, columns = np.divmod(removed, width)
    total, known = np.zeros(len(removed)), np.zeros((len(removed), len(image)))
    entries = []
    for dy, dx in [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]:
        y, x, weight = rows + dy, columns + dx, 1 / 6 if dy * dx == 0 else 1 / 12
        (inside,) = np.nonzero((y >= 0) & (y < height) & (x >= 0) & (x < width))
        neighbour = y[inside] * width + x[inside]
        total[inside] += weight
        is_known = place[neighbour] < 0
        known[inside[is_known]] += weight * values[:, neighbour[is_known]].T
        entries.append((inside[~is_known], place[neighbour[~is_known]], weight))
    i = np.concatenate([np.arange(len(removed)), *(one[0] for one in entries)])
    j = np.concatenate([np.arange(len(removed)), *(one[1] for one in entries)])
    a = np.concatenate([total, *(np.full(len(one[0]), -one[2]) for one in entries)])
    matrix = coo_array((a, (i, j)), shape=(len(removed), len(removed))).tocsr()
    # Symmetric and positive, so that conjugate gradients solve it faster than a factorisation.
    # They start from the nearest pixels that are left.
    nearest = distance_transform_edt(
        place.reshape(height, width) >= 0, return_distances=False, return_indices=True
    ).reshape(2, -1)[:, removed]
    starts = values[:, nearest[0] * width + nearest[1]]
    filled = np.stack(
        [
            cg(matrix, column, x0=start, rtol=0, atol=_ACCURACY * len(removed) ** 0.5)[0]
            for column, start in zip(known.T, starts, strict=True)
        ]
    )
    result = values.copy()
    result[:, removed] = filled + _NOISE * rng.standard_normal(filled.shape)
    return torch.from_numpy(result.reshape(image.shape)).to(image)
