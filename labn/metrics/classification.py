"""Classification metrics: accuracy, AUROC, true skill statistic and confusion matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean

import torch
from jaxtyping import Float64, Int64
from sklearn.metrics import roc_auc_score
from torch import Tensor

from labn.metrics.arguments import Numbers, as_labels, as_numbers, as_tensor

_PROBABILITY_TOLERANCE = 1e-3
"""Largest error of a row's sum, where the type of the probabilities does not round it further."""


@dataclass(frozen=True)
class ClassificationScores:
    """Scores of a set of predictions; a score that is undefined for the labels is NaN.

    ``accuracy`` and ``auroc`` lie in [0, 1], ``tss`` in [-1, 1]; more is better.
    ``confusion`` counts images: rows are the true class, columns the predicted one.
    """

    accuracy: float
    auroc: float
    tss: float
    confusion: Int64[Tensor, "c c"]
    num_images: int

    def as_metrics(self, prefix: str) -> dict[str, float]:
        """Return the defined of ``<prefix>_accuracy``, ``<prefix>_auroc`` and ``<prefix>_tss``."""
        scores = {"accuracy": self.accuracy, "auroc": self.auroc, "tss": self.tss}
        return {f"{prefix}_{name}": v for name, v in scores.items() if not math.isnan(v)}


def classification_scores(probabilities: Numbers, labels: Numbers) -> ClassificationScores:
    """Return the scores of class probabilities (n, c) against true classes (n,).

    The predicted class is the most probable one, the first in a tie. AUROC is that of class 1
    for two classes, else the mean over the classes that occur, each against the rest. TSS is the
    true positive rate minus the false positive rate, where every class but 0 is positive
    (Iida 2022, section 5).

    Raises:
        ValueError: a row is not a distribution, or a label is not one of the classes.
    """
    probabilities = as_probabilities("probabilities", probabilities)
    labels = as_labels(labels, len(probabilities))
    check_labels(labels, probabilities.shape[1])
    confusion = _confusion(probabilities, labels)
    return ClassificationScores(
        accuracy=(confusion.trace().double() / confusion.sum()).item(),
        auroc=_auroc(probabilities, labels),
        tss=_true_skill_statistic(confusion),
        confusion=confusion,
        num_images=len(labels),
    )


def as_probabilities(name: str, given: Numbers) -> Float64[Tensor, "n c"]:
    """Return probability distributions over at least two classes, on the CPU.

    Raises:
        ValueError: a row is not one; the message has ``name`` and the row.
    """
    numbers = as_tensor(name, given)
    probabilities = as_numbers(name, numbers).to("cpu", torch.float64)
    if probabilities.ndim != 2 or probabilities.shape[1] < 2:
        raise ValueError(
            f"{name}: got shape {tuple(probabilities.shape)}, must be (images, classes)"
            " with at least two classes"
        )
    excess = torch.maximum(probabilities - 1, -probabilities).amax(dim=1)
    error = torch.maximum((probabilities.sum(dim=1) - 1).abs(), excess)
    # Each probability is rounded by at most half of eps times itself, a softmax's sum by as much.
    precision = torch.finfo(numbers.dtype).eps if numbers.is_floating_point() else 0.0
    # NaN compares false with everything, so test for valid rows, not for invalid ones.
    if not (valid := error <= max(_PROBABILITY_TOLERANCE, precision)).all():
        row = int((~valid).nonzero()[0])
        raise ValueError(
            f"{name}: got {[round(p, 4) for p in probabilities[row].tolist()]} in row {row}, must"
            " be probabilities (in [0, 1], each row summing to 1); apply softmax to logits"
        )
    return probabilities


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Check that every label is one of the classes.

    Raises:
        ValueError: a label is not; the message has the image.
    """
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        image = int(outside.nonzero()[0])
        raise ValueError(
            f"labels: got {int(labels[image])} for image {image}, must be 0 to {num_classes - 1},"
            f" since there are {num_classes} classes"
        )


def _confusion(probabilities: Tensor, labels: Tensor) -> Int64[Tensor, "c c"]:
    num_classes = probabilities.shape[1]
    pairs = labels * num_classes + probabilities.argmax(dim=1)
    return pairs.bincount(minlength=num_classes**2).reshape(num_classes, num_classes)


def _auroc(probabilities: Tensor, labels: Tensor) -> float:
    present = sorted(set(labels.tolist()))
    if len(present) < 2:
        return math.nan
    scored = [1] if probabilities.shape[1] == 2 else present
    return fmean(roc_auc_score(labels == c, probabilities[:, c]) for c in scored)


def _true_skill_statistic(confusion: Int64[Tensor, "c c"]) -> float:
    true_positive_rate = confusion[1:, 1:].sum().double() / confusion[1:].sum()
    false_positive_rate = confusion[0, 1:].sum().double() / confusion[0].sum()
    return (true_positive_rate - false_positive_rate).item()
