"""PID's areas from as few frames as they need (Iida 2022, 4.3).

A curve is sampled coarsely, then where it bends. Symbols as in ``faithfulness``; a panel is a
stretch of the curve from l over its midpoint c to r, where y is known at the three.

A panel's error is estimated as the change that c makes to its area, or as an eighth of the change
seen in the panel that it is a half of, if that is more (about what halving leaves where y is
smooth): so a jagged curve is not taken for smooth because one c lies on the straight line from l
to r. Where y is convex, concave or a single jump from l to r, the estimate bounds the distance to
the area over every n. Elsewhere it is a fair guess: on jagged curves most areas keep their
tolerance, not all, and what begins and ends between two neighbours of the first 17 points (a spike
over less than 1/16 of the patches) goes unseen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64, Integer
from torch import Tensor

from labn.metrics.faithfulness import Frames, Predict, prepare_frames

_FIRST_HALVINGS = 3

_Panel = tuple[int, int, int]
"""A stretch of a curve: l, c, r."""


@dataclass(frozen=True)
class AdaptiveInsertionDeletion:
    """Scores of each image, how far off their areas may be, and what they cost.

    ``pid`` and the areas are as in ``PatchInsertionDeletion``. The errors are estimates of
    |area - area over every n|, and exceed the tolerance only where ``max_points`` stopped the
    search; the error of ``pid`` is at most their sum. ``num_forwards`` counts the frames shown.
    """

    pid: Float64[Tensor, " n"]
    insertion_auc: Float64[Tensor, " n"]
    deletion_auc: Float64[Tensor, " n"]
    insertion_error: Float64[Tensor, " n"]
    deletion_error: Float64[Tensor, " n"]
    num_forwards: Int64[Tensor, " n"]


def adaptive_insertion_deletion(
    predict: Predict,
    images: Float[Tensor, "n c h w"],
    saliency: Float[Tensor, "*maps"],
    labels: Integer[Tensor, "*labels"],
    *,
    patch_size: int,
    baseline: Float[Tensor, "*baseline"] | float | int,
    tolerance: float,
    max_points: int | None = None,
    batch_size: int = 64,
) -> AdaptiveInsertionDeletion:
    """Score maps as ``patch_insertion_deletion`` does over every n, to within ``tolerance``.

    The panels that owe most of a curve's estimated error are halved until that error is no more
    than ``tolerance``, or the curve has ``max_points`` points, or every n. Where the estimate errs
    is said at the module's head; where ``predict`` itself is as noisy as the tolerance, nothing is
    saved. Settings are otherwise those of ``patch_insertion_deletion``.

    Raises:
        ValueError: an argument, or what ``predict`` returns, breaks its rule.
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance: got {tolerance}, must be above 0")
    if max_points is not None and max_points < 3:
        raise ValueError(f"max_points: got {max_points}, must be at least 3, or None for no limit")
    frames = prepare_frames(
        images, saliency, labels, patch_size=patch_size, baseline=baseline, batch_size=batch_size
    )
    insertions, deletions = _start_curves(predict, frames, max_points, batch_size)
    unfinished = insertions + deletions
    while unfinished:
        wanted = [(curve, n) for curve in unfinished for n in curve.missing()]
        _learn(wanted, predict, frames, batch_size)
        owable = tolerance * frames.num_patches
        unfinished = [curve for curve in unfinished if curve.refine(owable, max_points)]
    return _collect(insertions, deletions, frames.num_patches)


@dataclass
class _Curve:
    """One curve of one image while it is sampled: y by n, and panels with their least errors."""

    image: int
    is_insertion: bool
    y: dict[int, float]
    panels: dict[_Panel, float]
    first_halvings: int

    def missing(self) -> list[int]:
        """List the points at which y must be known next."""
        return sorted({n for panel in self.panels for n in panel} - self.y.keys())

    def area(self, panel: _Panel) -> float:
        """Return the trapezoidal area through all three points, in units of 1 / N."""
        left, centre, right = panel
        below_left = (centre - left) * (self.y[left] + self.y[centre])
        below_right = (right - centre) * (self.y[centre] + self.y[right])
        return (below_left + below_right) / 2

    def change(self, panel: _Panel) -> float:
        """Return how far the midpoint moves the area."""
        left, _, right = panel
        return abs((right - left) * (self.y[left] + self.y[right]) / 2 - self.area(panel))

    def error(self, panel: _Panel) -> float:
        """Estimate how far ``area`` is from that over every n; 0 where every n is known."""
        return max(self.change(panel), self.panels[panel]) if _num_new(panel) else 0.0

    def refine(self, tolerance: float, max_points: int | None) -> bool:
        """Halve the worst panels, at first all, and say whether there were any to halve."""
        errors = {panel: self.error(panel) for panel in self.panels}
        if self.first_halvings:
            self.first_halvings -= 1
            chosen = {panel for panel in self.panels if _num_new(panel)}
        else:
            chosen = self._worst(errors, tolerance, max_points)
        halves = {half: self.change(panel) / 8 for panel in chosen for half in _halves(panel)}
        self.panels = {p: least for p, least in self.panels.items() if p not in chosen} | halves
        return bool(chosen)

    def _worst(
        self, errors: dict[_Panel, float], tolerance: float, max_points: int | None
    ) -> set[_Panel]:
        """Choose the panels without which the rest owe at most half of ``tolerance``.

        The other half is left to the panels' halves: so few rounds are needed, and few points are
        spent on what is good enough.
        """
        chosen = set[_Panel]()
        owed, num_points = sum(errors.values()), len(self.y)
        if owed <= tolerance:
            return chosen
        for panel in sorted(errors, key=errors.__getitem__, reverse=True):
            num_points += _num_new(panel)
            is_full = max_points is not None and num_points > max_points
            if is_full or owed <= tolerance / 2 or not errors[panel]:
                break
            owed -= errors[panel]
            chosen.add(panel)
        return chosen


def _panel(left: int, right: int) -> _Panel:
    return left, (left + right) // 2, right


def _halves(panel: _Panel) -> tuple[_Panel, _Panel]:
    left, centre, right = panel
    return _panel(left, centre), _panel(centre, right)


def _num_new(panel: _Panel) -> int:
    """Count the points that halving asks for; none are left in a panel of two steps."""
    return min(max(panel[2] - panel[0] - 2, 0), 2)


def _start_curves(
    predict: Predict, frames: Frames, max_points: int | None, batch_size: int
) -> tuple[list[_Curve], list[_Curve]]:
    """Return the images' insertions and deletions, their ends known, for these are shared."""
    last = frames.num_patches
    halvings = _FIRST_HALVINGS
    if max_points is not None:
        halvings = min(halvings, (max_points - 1).bit_length() - 2)
    whole = {_panel(0, last): 0.0}
    insertions = [_Curve(i, True, {}, whole, halvings) for i in range(len(frames.labels))]
    _learn([(curve, n) for curve in insertions for n in (0, last)], predict, frames, batch_size)
    deletions = [
        _Curve(curve.image, False, {0: curve.y[last], last: curve.y[0]}, whole, halvings)
        for curve in insertions
    ]
    return insertions, deletions


def _learn(
    wanted: list[tuple[_Curve, int]], predict: Predict, frames: Frames, batch_size: int
) -> None:
    """Find y at points of curves; batches run on across curves and images."""
    for start in range(0, len(wanted), batch_size):
        batch = wanted[start : start + batch_size]
        scores = frames.score(
            predict,
            torch.tensor([curve.image for curve, _ in batch]),
            torch.tensor([curve.is_insertion for curve, _ in batch]),
            torch.tensor([n for _, n in batch]),
        )
        for (curve, n), score in zip(batch, scores.tolist(), strict=True):
            curve.y[n] = score


def _collect(
    insertions: list[_Curve], deletions: list[_Curve], num_patches: int
) -> AdaptiveInsertionDeletion:
    def total(curves: list[_Curve], measure: Callable[..., float]) -> Tensor:
        sums = [sum(measure(curve, panel) for panel in curve.panels) for curve in curves]
        return torch.tensor(sums, dtype=torch.float64) / num_patches

    insertion_auc, deletion_auc = (total(c, _Curve.area) for c in (insertions, deletions))
    pairs = zip(insertions, deletions, strict=True)
    return AdaptiveInsertionDeletion(
        pid=insertion_auc - deletion_auc,
        insertion_auc=insertion_auc,
        deletion_auc=deletion_auc,
        insertion_error=total(insertions, _Curve.error),
        deletion_error=total(deletions, _Curve.error),
        # The ends are shared.
        num_forwards=torch.tensor([len(i.y) + len(d.y) - 2 for i, d in pairs], dtype=torch.int64),
    )
