"""Exact and near duplicates among images, found from a small fingerprint of each.

Legend: n images; p the pixels of a thumbnail; i, j two of the images; k = 1 / (n - 2).
"""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

NEAR_DUPLICATE_THRESHOLD = 0.02
"""Largest distance of two thumbnails that count as near duplicates.

On the 413 IDRiD training images, copies saved again (JPEG quality 40 to 90, half to double the
size, 20 % darker to 10 % brighter) lie within 0.0095 of their originals, and the nearest two
different photographs 0.060 apart.
"""

THUMBNAIL_SIZE = 32
BLANK_SPREAD = 3
"""Largest range of grey levels, of 255, in an image that counts as blank: codec noise."""

_BLOCK = 1024


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """The data kept of an image after decoding.

    ``digest`` is the SHA-256 of the pixels and their shape, so that equal images stored in two
    formats have equal digests. ``size`` is (height, width).
    ``thumbnail`` is grey, 32 x 32, in 0-255.
    """

    digest: str
    size: tuple[int, int]
    is_blank: bool
    thumbnail: NDArray[np.float32]


def fingerprint(image: UInt8[np.ndarray, "h w c"]) -> Fingerprint:
    """Return the fingerprint of a decoded image of 1 or 3 channels."""
    height, width, num_channels = image.shape
    digest = hashlib.sha256(f"{image.shape}".encode())
    digest.update(np.ascontiguousarray(image).data)
    picture = Image.fromarray(image[:, :, 0] if num_channels == 1 else image)
    darkest_brightest = np.reshape(picture.getextrema(), (num_channels, 2))
    # Float, since rounding to whole grey levels would hide the features of a quiet magnetogram.
    small = picture.convert("L").convert("F")
    small = small.resize((THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.BOX)
    return Fingerprint(
        digest=digest.hexdigest(),
        size=(height, width),
        is_blank=bool(np.ptp(darkest_brightest, axis=1).max() <= BLANK_SPREAD),
        thumbnail=np.asarray(small, dtype=np.float32),
    )


def near_groups(
    thumbnails: Float[np.ndarray, "n h w"],
    subsets: Int[np.ndarray, " n"],
    threshold: float = NEAR_DUPLICATE_THRESHOLD,
) -> list[list[int]]:
    """Return groups of two or more images linked by pairs nearer than ``threshold``, in order.

    The distance of i and j is 1 - cos(r_i, r_j), in [0, 2], where r is a thumbnail scaled to mean
    0 and length 1, minus the mean of the n - 2 other images: features common to the whole set (the
    dark rim of a fundus, the edge of the solar disc) do not make a pair similar. With two images
    nothing is subtracted. Pass each image once: copies would be part of the mean that is
    subtracted from their pair. Pairs within one subset and pairs across two form separate groups,
    so that a series of frames cut in two yields a group at the cut, not one group of all frames.
    Memory grows with n, time with n^2: about a minute for 60,000 images on one core.
    """
    num_images, height, width = thumbnails.shape
    units_np = _to_unit_length(thumbnails.reshape(num_images, height * width))
    k = 0.0
    if num_images > 2:
        units_np -= units_np.mean(axis=0)
        k = 1.0 / (num_images - 2)
    within = across = np.arange(num_images)
    for top, left in itertools.combinations_with_replacement(range(0, num_images, _BLOCK), 2):
        rows, columns = slice(top, top + _BLOCK), slice(left, left + _BLOCK)
        near_ij = _are_near(units_np[rows], units_np[columns], k, threshold)
        if near_ij.any():
            same_ij = subsets[rows, None] == subsets[None, columns]
            within = _link(within, near_ij & same_ij, top, left)
            across = _link(across, near_ij & ~same_ij, top, left)
    groups = [*_members(within), *_members(across)]
    return [group for group in groups if len(group) > 1]


def _to_unit_length(pixels_np: NDArray[np.float32]) -> NDArray[np.float32]:
    unit_np: NDArray[np.float32] = pixels_np - pixels_np.mean(axis=1, keepdims=True)
    lengths_n1 = np.linalg.norm(unit_np, axis=1, keepdims=True)
    unit_np /= np.maximum(lengths_n1, np.finfo(np.float32).tiny)
    return unit_np


def _are_near(
    rows_ip: NDArray[np.float32], columns_jp: NDArray[np.float32], k: float, threshold: float
) -> NDArray[np.bool_]:
    """Return which pairs of two blocks are nearer than ``threshold``; the whole set has mean 0.

    The mean of the others is then -k (c_i + c_j), so r_i = (1 + k) c_i + k c_j, and all three
    products follow from those of c.
    """
    own, cross = (1 + k) ** 2 + k**2, (1 + k) * k
    gram_ij = rows_ip @ columns_jp.T
    squares_i1 = np.square(rows_ip).sum(axis=1)[:, None]
    squares_1j = np.square(columns_jp).sum(axis=1)[None, :]
    product_ij = own * gram_ij + cross * (squares_i1 + squares_1j)
    length_ij = (1 + k) ** 2 * squares_i1 + k**2 * squares_1j + 2 * cross * gram_ij
    other_ij = (1 + k) ** 2 * squares_1j + k**2 * squares_i1 + 2 * cross * gram_ij
    lengths_ij = np.sqrt(np.maximum(length_ij * other_ij, 0))
    near_ij: NDArray[np.bool_] = product_ij > (1 - threshold) * lengths_ij
    return near_ij


def _link(
    linked: NDArray[np.int_], near_ij: NDArray[np.bool_], top: int, left: int
) -> NDArray[np.int_]:
    """Join the groups linked by a block's pairs; each image refers to one member of its group."""
    num_images = len(linked)
    rows, columns = np.nonzero(near_ij)
    starts = np.concatenate([rows + top, np.arange(num_images)])
    ends = np.concatenate([columns + left, linked])
    pairs = coo_array((np.ones(len(starts), np.bool_), (starts, ends)), (num_images, num_images))
    _, labels = connected_components(pairs, directed=False)
    _, first = np.unique(labels, return_index=True)
    joined: NDArray[np.int_] = first[labels]
    return joined


def _members(linked: NDArray[np.int_]) -> list[list[int]]:
    members = defaultdict(list)
    for position, group in enumerate(linked.tolist()):
        members[group].append(position)
    return list(members.values())
