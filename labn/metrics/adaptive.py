"""PID by adaptive sampling of its curves (Iida 2022, 4.3).

A curve is sampled coarsely, then more densely where it bends. Symbols as in ``faithfulness``; a
panel is an interval of the curve from l over its midpoint c to r, with y known at all three.

A panel's error is estimated as the change of its area due to c, or as an eighth of the change in
the panel that was halved to make it, if larger (about the remaining change where y is smooth): so
a jagged curve does not count as smooth because one c lies on the straight line from l to r. Where
y is convex, concave or a single jump from l to r, the estimate bounds the distance to the area
over every n. Elsewhere it is approximate: on jagged curves most areas are within the tolerance,
not all, and a spike between two neighbours of the first 17 points (over less than 1/16 of the
patches) is missed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from labn.metrics.arguments import Numbers, check_count
from labn.metrics.faithfulness import Frames, Predict, prepare_frames

_FIRST_HALVINGS = 3

_Panel = tuple[int, int, int]
"""An interval of a curve: l, c, r."""


@dataclass(frozen=True)
class AdaptiveInsertionDeletion:
    """Scores of each image, the estimated errors of their areas, and their cost.

    ``pid`` and the areas are as in ``PatchInsertionDeletion``. The errors are estimates of the
    distance to the area over every n, and exceed the tolerance only where ``max_points`` stopped
    the search; the error of ``pid`` is at most their sum. ``num_forwards`` counts the frames
    predicted.
    """

    pid: Float64[Tensor, " n"]
    insertion_auc: Float64[Tensor, " n"]
    deletion_auc: Float64[Tensor, " n"]
    insertion_error: Float64[Tensor, " n"]
    deletion_error: Float64[Tensor, " n"]
    num_forwards: Int64[Tensor, " n"]


def adaptive_insertion_deletion(
    predict: Predict,
    images: Numbers,
    saliency: Numbers,
    labels: Numbers,
    *,
    patch_size: int,
    baseline: Numbers,
    tolerance: float,
    max_points: int | None = None,
    batch_size: int = 64,
) -> AdaptiveInsertionDeletion:
    """Score maps as ``patch_insertion_deletion`` does over every n, to within ``tolerance``.

    The panels with most of a curve's estimated error are halved until that error is at most
    ``tolerance``, or the curve has ``max_points`` points, or every n. The limits of the estimate
    are described at the module's head; if the noise of ``predict`` exceeds the tolerance, no frames
    are saved. Settings are otherwise those of ``patch_insertion_deletion``.

    Raises:
        ValueError: an argument, or the output of ``predict``, is invalid.
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance: got {tolerance}, must be above 0")
    if max_points is not None:
        check_count("max_points", max_points, "at least 3, or None for no limit", least=3)
    frames = prepare_frames(
        images, saliency, labels, patch_size=patch_size, baseline=baseline, batch_size=batch_size
    )
    insertions, deletions = _start_curves(predict, frames, max_points, batch_size)
    unfinished = insertions + deletions
    while unfinished:
        missing = [(curve, n) for curve in unfinished for n in curve.missing()]
        _evaluate(missing, predict, frames, batch_size)
        allowed = tolerance * frames.num_patches
        unfinished = [curve for curve in unfinished if curve.refine(allowed, max_points)]
    return _collect(insertions, deletions, frames.num_patches)


@dataclass
class _Curve:
    """One curve of one image during sampling: y by n, and panels with their smallest errors."""

    image: int
    is_insertion: bool
    y: dict[int, float]
    panels: dict[_Panel, float]
    first_halvings: int

    def missing(self) -> list[int]:
        """Return the points at which y must be evaluated next."""
        return sorted({n for panel in self.panels for n in panel} - self.y.keys())

    def area(self, panel: _Panel) -> float:
        """Return the trapezoidal area through all three points, in units of 1 / N."""
        left, centre, right = panel
        below_left = (centre - left) * (self.y[left] + self.y[centre])
        below_right = (right - centre) * (self.y[centre] + self.y[right])
        return (below_left + below_right) / 2

    def change(self, panel: _Panel) -> float:
        """Return the change of the area due to the midpoint."""
        left, _, right = panel
        return abs((right - left) * (self.y[left] + self.y[right]) / 2 - self.area(panel))

    def error(self, panel: _Panel) -> float:
        """Return the estimated error of ``area``; 0 where every n is known."""
        return max(self.change(panel), self.panels[panel]) if _num_new(panel) else 0.0

    def refine(self, tolerance: float, max_points: int | None) -> bool:
        """Halve the worst panels, at first all; return whether there were any to halve."""
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
        """Return the panels without which the others' error is at most half of ``tolerance``.

        The other half is left to the new panels, so that few rounds and few points suffice.
        """
        chosen = set[_Panel]()
        error, num_points = sum(errors.values()), len(self.y)
        if error <= tolerance:
            return chosen
        for panel in sorted(errors, key=errors.__getitem__, reverse=True):
            num_points += _num_new(panel)
            is_full = max_points is not None and num_points > max_points
            if is_full or error <= tolerance / 2 or not errors[panel]:
                break
            error -= errors[panel]
            chosen.add(panel)
        return chosen


def _panel(left: int, right: int) -> _Panel:
    return left, (left + right) // 2, right


def _halves(panel: _Panel) -> tuple[_Panel, _Panel]:
    left, centre, right = panel
    return _panel(left, centre), _panel(centre, right)


def _num_new(panel: _Panel) -> int:
    """Return the number of points that halving adds: none in a panel of two steps."""
    return min(max(panel[2] - panel[0] - 2, 0), 2)


def _start_curves(
    predict: Predict, frames: Frames, max_points: int | None, batch_size: int
) -> tuple[list[_Curve], list[_Curve]]:
    """Return the images' insertion and deletion curves with their ends, which they share."""
    last = frames.num_patches
    halvings = _FIRST_HALVINGS
    if max_points is not None:
        halvings = min(halvings, (max_points - 1).bit_length() - 2)
    whole = {_panel(0, last): 0.0}
    insertions = [_Curve(i, True, {}, whole, halvings) for i in range(len(frames.labels))]
    _evaluate([(curve, n) for curve in insertions for n in (0, last)], predict, frames, batch_size)
    deletions = [
        _Curve(curve.image, False, {0: curve.y[last], last: curve.y[0]}, whole, halvings)
        for curve in insertions
    ]
    return insertions, deletions


def _evaluate(
    points: list[tuple[_Curve, int]], predict: Predict, frames: Frames, batch_size: int
) -> None:
    """Evaluate y at points of curves, in batches across curves and images."""
    for start in range(0, len(points), batch_size):
        batch = points[start : start + batch_size]
        scores = frames.score(
            predict,
            torch.tensor([curve.image for curve, _ in batch]),
            torch.tensor([curve.is_insertion for curve, _ in batch]),
            torch.tensor([n for _, n in batch]),
        )
        for (curve, n), (score,) in zip(batch, scores.tolist(), strict=True):
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
