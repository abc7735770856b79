"""Lesions of the synthetic fundus photographs.

Lengths are in units of half the image's side, as in ``fundus``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

Lesions = Literal["plain", "varied"]
"""Large spots of two kinds; or the four kinds of diabetic retinopathy, from tiny to large."""

DISC_COLOUR = (1.0, 0.86, 0.52)
_MOST_GROUPS = 12


@dataclass(frozen=True)
class Spots:
    """Soft ellipses of one colour: arrays (n,) of radii and aspects, and centres (n, 2).

    ``colour`` None filters the light as blood does; ``softness`` is the width of the edge relative
    to the radius.
    """

    centres: Array
    radii: Array
    aspects: Array
    angles: Array
    softness: float
    opacity: float
    colour: Array | None


def draw_plain(rng: np.random.Generator, centres: Array, smallest_radius: float) -> list[Spots]:
    """Return one soft ellipse at each centre (n, 2), bright (an exudate) or dark (a haemorrhage).

    Its long radius is 2 to 5 % of the image, but at least ``smallest_radius``.
    """
    spots = []
    for centre in centres:
        radius = max(0.04 + 0.05 * rng.random() ** 2, smallest_radius)
        angle, aspect = rng.uniform(0, np.pi), rng.uniform(0.75, 1)
        is_bright = rng.random() < 0.5
        colour = rng.uniform(0.8, 0.95) * np.array(DISC_COLOUR) if is_bright else None
        opacity = 0.9 if is_bright else 1.0
        shape = np.array([radius]), np.array([aspect]), np.array([angle])
        spots.append(Spots(centre[None], *shape, 0.2, opacity, colour))
    return spots


def draw_varied(
    rng: np.random.Generator, draw_centre: Callable[[], Array], smallest_radius: float
) -> list[Spots]:
    """Return one to twelve groups of lesions, few more often than many.

    A group is a microaneurysm, a haemorrhage of several merged spots, a cluster of hard exudates,
    or a soft exudate. ``draw_centre`` draws the place of a group. No spot is smaller than
    ``smallest_radius``, so that it does not fall between pixels.
    """
    num_groups = int(np.exp(rng.uniform(0, np.log(_MOST_GROUPS + 1))))
    # Most eyes have mainly one kind of lesions.
    shares = rng.dirichlet([0.7] * len(_KINDS))
    kinds = rng.choice(len(_KINDS), size=num_groups, p=shares)
    return [_KINDS[kind](rng, draw_centre(), smallest_radius) for kind in kinds]


def _microaneurysm(rng: np.random.Generator, centre: Array, smallest: float) -> Spots:
    radius = max(rng.uniform(0.008, 0.018), smallest)
    return _spots(rng, centre[None], np.array([radius]), 0.3, rng.uniform(0.6, 1.0), None)


def _haemorrhage(rng: np.random.Generator, centre: Array, smallest: float) -> Spots:
    num_spots = int(rng.integers(1, 6))
    radius = max(0.02 + 0.06 * rng.random() ** 2, smallest)
    centres = centre + rng.normal(0, 0.7 * radius, (num_spots, 2))
    radii = np.maximum(radius * rng.uniform(0.5, 1.0, num_spots), smallest)
    return _spots(rng, centres, radii, rng.uniform(0.2, 0.6), rng.uniform(0.5, 0.9), None)


def _hard_exudates(rng: np.random.Generator, centre: Array, smallest: float) -> Spots:
    num_spots = int(np.exp(rng.uniform(np.log(2), np.log(60))))
    spread = rng.uniform(0.02, 0.14)
    centres = centre + rng.normal(0, spread, (num_spots, 2)) * rng.uniform(0.5, 1.0, 2)
    radii = np.maximum(0.008 + 0.022 * rng.random(num_spots) ** 2, smallest)
    colour = np.array([0.98, 0.82, 0.35]) * rng.uniform(0.75, 1.0) + rng.normal(0, 0.03, 3)
    return _spots(rng, centres, radii, 0.25, rng.uniform(0.5, 0.95), colour)


def _soft_exudate(rng: np.random.Generator, centre: Array, smallest: float) -> Spots:
    num_spots = int(rng.integers(1, 4))
    radius = max(rng.uniform(0.03, 0.08), smallest)
    centres = centre + rng.normal(0, 0.6 * radius, (num_spots, 2))
    colour = np.array([0.95, 0.82, 0.6]) * rng.uniform(0.7, 1.0)
    radii = radius * rng.uniform(0.6, 1.0, num_spots)
    return _spots(rng, centres, radii, 0.6, rng.uniform(0.3, 0.7), colour)


_KINDS = (_microaneurysm, _haemorrhage, _hard_exudates, _soft_exudate)


def _spots(
    rng: np.random.Generator,
    centres: Array,
    radii: Array,
    softness: float,
    opacity: float,
    colour: Array | None,
) -> Spots:
    num_spots = len(radii)
    aspects, angles = rng.uniform(0.6, 1.0, num_spots), rng.uniform(0, np.pi, num_spots)
    return Spots(centres, radii, aspects, angles, softness, opacity, colour)
