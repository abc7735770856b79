"""Synthetic fundus photographs, with and without lesions.

Lengths are in units of half the image's side; coordinates run from -1 to 1, y downwards. Every
image has structures that resemble lesions: an optic disc as bright as the bright lesions and
vessels as dark as the dark ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from labn.data.readers.fundus_lesions import DISC_COLOUR, Lesions, Spots, draw_plain, draw_varied

Array = NDArray[np.float64]

BLOOD_FILTER = (0.55, 0.28, 0.38)
"""Share of each colour that blood transmits, in a vessel or a haemorrhage."""
VESSEL_STEP = 0.012


@dataclass(frozen=True)
class _Eye:
    """The drawn anatomy: positions of the retina and the optic disc; ``side`` is -1 or 1."""

    centre: Array
    radius: float
    side: float
    disc: Array
    disc_radius: float


def paint_fundus(
    seed: int, index: int, image_size: int, lesions: Lesions | None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return a painted image (height, width, 3) and the mask of its lesions (height, width).

    The same arguments give the same image. The anatomy, the light and the noise do not depend on
    ``lesions`` (None: a healthy eye), so that two images of one index differ only at the lesions.
    """
    children = np.random.SeedSequence([seed, index]).spawn(4)
    eye_rng, tissue_rng, lesion_rng, camera_rng = map(np.random.default_rng, children)
    axis = (np.arange(image_size) + 0.5) * (2 / image_size) - 1
    x, y = np.meshgrid(axis, axis)
    eye = _draw_eye(eye_rng)
    colour = _tissue(tissue_rng, eye, x, y)
    colour *= _filter(_vessels(eye_rng, eye, x, y))
    mask = np.zeros(x.shape, dtype=np.bool_)
    if lesions is not None:
        colour, mask = _add_lesions(lesion_rng, eye, lesions, colour, x, y)
    return _photograph(camera_rng, eye, colour, x, y), mask


def _draw_eye(rng: np.random.Generator) -> _Eye:
    side = rng.choice([-1.0, 1.0])
    centre = rng.uniform(-0.03, 0.03, 2)
    disc = centre + np.array([side * rng.uniform(0.45, 0.62), rng.uniform(-0.12, 0.12)])
    return _Eye(centre, rng.uniform(0.9, 1.0), side, disc, rng.uniform(0.11, 0.21))


def _soft_disc(distance: Array, radius: Array | float, softness: Array | float) -> Array:
    """Return 1 inside a radius and 0 outside, through 0.5 at the radius itself."""
    return 0.5 - 0.5 * np.tanh((distance - radius) / softness)


def _filter(opacity: Array) -> Array:
    """Return the share of each colour that blood transmits, (height, width, 3)."""
    return 1 - opacity[..., None] * (1 - np.asarray(BLOOD_FILTER, dtype=np.float64))


def _blend(colour: Array, other: Array, opacity: Array) -> Array:
    return colour + opacity[..., None] * (other - colour)


def _clouds(rng: np.random.Generator, size: int, num_cells: int) -> Array:
    """Return smooth noise of unit variance at its nodes."""
    nodes = rng.standard_normal((num_cells, num_cells))
    clouds: Array = ndimage.zoom(nodes, size / num_cells, order=3, mode="nearest", grid_mode=True)
    return clouds


def _tissue(rng: np.random.Generator, eye: _Eye, x: Array, y: Array) -> Array:
    """Return the unevenly lit retina with the fovea and the optic disc, (height, width, 3)."""
    base = np.array([0.74, 0.36, 0.14]) + rng.normal(0, [0.06, 0.05, 0.035])
    lamp = eye.centre + rng.normal(0, 0.2, 2)
    fall_off = rng.uniform(0.2, 0.45)
    light = 1 - fall_off * ((x - lamp[0]) ** 2 + (y - lamp[1]) ** 2)
    light += 0.03 * _clouds(rng, len(x), 5) + 0.02 * _clouds(rng, len(x), 14)
    fovea = eye.disc - np.array([eye.side * rng.uniform(0.68, 0.8), rng.uniform(-0.1, 0.02)])
    spot = np.exp(-((x - fovea[0]) ** 2 + (y - fovea[1]) ** 2) / (2 * rng.uniform(0.1, 0.15) ** 2))
    light *= 1 - rng.uniform(0.25, 0.4) * spot
    colour = light[..., None] * base
    aspect = rng.uniform(0.8, 0.95)
    distance = np.hypot((x - eye.disc[0]) / aspect, y - eye.disc[1])
    rim = _soft_disc(distance, eye.disc_radius, 0.025)
    cup = _soft_disc(distance, rng.uniform(0.35, 0.6) * eye.disc_radius, 0.03)
    bright = rng.uniform(0.8, 0.95) * np.array(DISC_COLOUR)
    colour = _blend(colour, bright, 0.85 * rim)
    return _blend(colour, np.array([1.0, 0.95, 0.75]), 0.5 * cup)


def _walk(rng: np.random.Generator, start: Array, heading: Array, bend: Array, steps: int) -> Array:
    """Return smooth curves (curves, steps, 2) from their starts, headings and bends (curves,)."""
    wander = np.cumsum(rng.normal(0, 0.05, (len(start), steps)), axis=1)
    angle = heading[:, None] + bend[:, None] * np.arange(steps) * VESSEL_STEP + wander
    return start[:, None] + VESSEL_STEP * np.cumsum(
        np.stack([np.cos(angle), np.sin(angle)], axis=-1), axis=1
    )


def _vessels(rng: np.random.Generator, eye: _Eye, x: Array, y: Array) -> Array:
    """Return the opacity of the branching vessels that leave the optic disc."""
    width = rng.uniform(0.014, 0.027)
    # Four arcades: two that bend around the fovea, two that run to the near edge.
    heading = np.array([-1.35, 1.35, -2.3, 2.3]) + rng.normal(0, 0.15, 4)
    bend = np.array([1.15, -1.15, -0.3, 0.3]) + rng.normal(0, 0.2, 4)
    mirror = np.array([-eye.side, 1.0])
    starts = eye.disc + rng.normal(0, 0.02, (4, 2))
    arcades = _walk(rng, starts * mirror, heading, bend, 115) * mirror
    arcade_widths = np.broadcast_to(width * np.linspace(1, 0.45, 115), (4, 115))

    num_branches = rng.integers(8, 30)
    joints = rng.integers(0, 4, num_branches), rng.integers(8, 95, num_branches)
    along = arcades[joints[0], joints[1] + 1] - arcades[joints]
    turn = rng.choice([-1.0, 1.0], num_branches) * rng.uniform(0.5, 1.0, num_branches)
    heading = np.arctan2(along[:, 1], along[:, 0]) + turn
    branches = _walk(rng, arcades[joints], heading, -0.6 * turn, 60)
    branch_widths = 0.65 * arcade_widths[joints][:, None] * np.linspace(1, 0.4, 60)

    points = np.concatenate([arcades.reshape(-1, 2), branches.reshape(-1, 2)])
    widths = np.concatenate([arcade_widths.ravel(), branch_widths.ravel()])
    reach = 2 * width
    pixels = np.stack([x.ravel(), y.ravel()], axis=-1)
    distance, nearest = KDTree(points).query(pixels, distance_upper_bound=reach)
    # A pixel beyond reach has an infinite distance and the index past the last point.
    opacity = _soft_disc(distance, np.append(widths, 0.0)[nearest], 0.008)
    return opacity.reshape(x.shape)


def _add_lesions(
    rng: np.random.Generator, eye: _Eye, lesions: Lesions, colour: Array, x: Array, y: Array
) -> tuple[Array, NDArray[np.bool_]]:
    """Return the colours with lesions on the retina, away from the disc, and their mask.

    The mask is true where a lesion is more than half as opaque as in its middle.
    """
    mask = np.zeros(x.shape, dtype=np.bool_)
    for group in _draw_lesions(rng, eye, lesions, len(x)):
        opacity = np.zeros(x.shape)
        for centre, radius, aspect, angle in zip(
            group.centres, group.radii, group.aspects, group.angles, strict=True
        ):
            along = np.cos(angle) * (x - centre[0]) + np.sin(angle) * (y - centre[1])
            across = np.cos(angle) * (y - centre[1]) - np.sin(angle) * (x - centre[0])
            distance = np.hypot(along, across / aspect)
            opacity = np.maximum(opacity, _soft_disc(distance, radius, group.softness * radius))
        mask |= opacity > 0.5
        opacity *= group.opacity
        if group.colour is None:
            colour = colour * _filter(opacity)
        else:
            colour = _blend(colour, group.colour, opacity)
    return colour, mask


def _draw_lesions(
    rng: np.random.Generator, eye: _Eye, lesions: Lesions, image_size: int
) -> list[Spots]:
    """Return the lesions: ``plain`` ones are one to six large spots; see ``draw_varied``."""

    def draw_places(most: int) -> Array:
        candidates = eye.centre + eye.radius * rng.uniform(-1, 1, (400, 2))
        is_inside = np.hypot(*(candidates - eye.centre).T) < 0.83 * eye.radius
        is_clear = np.hypot(*(candidates - eye.disc).T) > eye.disc_radius + 0.2
        places: Array = candidates[is_inside & is_clear][: rng.integers(1, most + 1)]
        return places

    if lesions == "varied":
        # The smallest discs that cannot fall between pixels: in a photograph microaneurysms are
        # as small.
        return draw_varied(rng, lambda: draw_places(1)[0], math.sqrt(2) / image_size)
    # At least two pixels across, so that no lesion falls between pixels.
    return draw_plain(rng, draw_places(6), 2 / image_size)


def _photograph(
    rng: np.random.Generator, eye: _Eye, colour: Array, x: Array, y: Array
) -> NDArray[np.uint8]:
    """Return the 8-bit photograph, with dark surround, blur, exposure and noise."""
    inside = _soft_disc(np.hypot(x - eye.centre[0], y - eye.centre[1]), eye.radius, 0.015)
    colour = colour * rng.uniform(0.75, 1.15) * inside[..., None] + 0.015
    blur = len(x) / 128 * rng.uniform(0.3, 0.7)
    colour = ndimage.gaussian_filter(colour, (blur, blur, 0))
    colour += rng.normal(0, rng.uniform(0.005, 0.02), colour.shape)
    return np.rint(255 * np.clip(colour, 0, 1)).astype(np.uint8)
