"""Types of failed explanations: the error analysis of Table 5 (Iida 2022, 5.4 and 5.5)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from labn.metrics.arguments import Numbers, as_mask, as_numbers, as_share, as_tensor
from labn.metrics.faithfulness import check_finite

FAILURES = {
    "IP": "Incorrect Prediction",
    "OA": "Over-Attended",
    "IA": "Insufficiently Attended",
    "WA": "Wrongly Attended",
}
"""The error IDs of Table 5, in the order in which they are tested, and their names."""
_ROUNDING = 1e-3
"""Interpolated attention of half precision exceeds its range by less."""


@dataclass(frozen=True, kw_only=True)
class ErrorThresholds:
    """Thresholds of the failure types; only ``pid`` is from the paper.

    An explanation fails where its score is below ``pid``. It is over-attended where more than
    ``over_attended`` of the image is attended, insufficiently where less than
    ``insufficiently_attended`` is; both are shares of the area, in [0, 1].
    """

    pid: float = 0.2
    over_attended: float = 0.5
    insufficiently_attended: float = 0.001

    def __post_init__(self) -> None:
        if not 0 <= self.insufficiently_attended <= self.over_attended <= 1:
            raise ValueError(
                "0 <= insufficiently_attended <= over_attended <= 1 must hold, but got"
                f" (insufficiently_attended={self.insufficiently_attended},"
                f" over_attended={self.over_attended})"
            )
        if not -1 <= self.pid <= 1:
            raise ValueError(f"pid: got {self.pid}, must be -1 to 1")


def classify_failures(
    pid: Numbers,
    is_correct: Numbers,
    saliency: Numbers,
    theta_alpha: float,
    thresholds: ErrorThresholds | None = None,
) -> tuple[str | None, ...]:
    """Return for each image the first of ``FAILURES`` that applies, or None if its PID suffices.

    ``pid`` (n,) is measured at m = 16 in the paper. ``saliency`` (n, h, w) is alpha, upsampled to
    the image but not thresholded; a pixel is attended where it exceeds ``theta_alpha``, strictly,
    as in the network (eq. 2). A failure with the right class and neither too much nor too little
    attended area is a wrongly attended one.

    Raises:
        ValueError: the shapes do not agree, a score is not finite, or a map is not in [0, 1].
    """
    thresholds = thresholds or ErrorThresholds()
    scores, right, maps = _check(pid, is_correct, saliency)
    attended = (maps > as_share("theta_alpha", theta_alpha)).flatten(start_dim=1)
    shares = attended.double().mean(dim=1)
    rows = zip(scores.tolist(), right.tolist(), shares.tolist(), strict=True)
    return tuple(
        _classify(correct, share, thresholds) if score < thresholds.pid else None
        for score, correct, share in rows
    )


def count_failures(codes: Iterable[str | None]) -> dict[str, int]:
    """Return the count of each of ``FAILURES``, in Table 5's order; None is not counted."""
    counts = Counter(codes)
    return {code: counts[code] for code in FAILURES}


def _classify(is_correct: bool, attended_share: float, thresholds: ErrorThresholds) -> str:
    if not is_correct:
        return "IP"
    if attended_share > thresholds.over_attended:
        return "OA"
    if attended_share < thresholds.insufficiently_attended:
        return "IA"
    return "WA"


def _check(
    pid: Numbers, is_correct: Numbers, saliency: Numbers
) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"], Float[Tensor, "n h w"]]:
    scores, maps = as_numbers("pid", pid), as_numbers("saliency", saliency)
    correct = as_tensor("is_correct", is_correct)
    num_images = maps.shape[:1]
    if (
        maps.ndim != 3
        or 0 in maps.shape[1:]
        or scores.shape != num_images
        or correct.shape != num_images
    ):
        raise ValueError(
            f"pid, is_correct and saliency: got shapes {tuple(scores.shape)},"
            f" {tuple(correct.shape)} and {tuple(maps.shape)}, must be (n,), (n,) and (n, h, w)"
        )
    if not scores.isfinite().all():
        image = int((~scores.isfinite()).nonzero()[0])
        raise ValueError(f"pid: got {scores[image].item()} for image {image}, must be finite")
    check_finite(maps)
    outside = ((maps < -_ROUNDING) | (maps > 1 + _ROUNDING)).flatten(start_dim=1).any(dim=1)
    if outside.any():
        image = int(outside.nonzero()[0])
        low, high = maps[image].aminmax()
        raise ValueError(
            f"saliency: got {low.item():.4g} to {high.item():.4g} in the map of image {image}, must"
            " be attention, from 0 to 1"
        )
    return scores, as_mask("is_correct", correct), maps
