"""How sure a network is, and whether rightly: reliability, and temperatures (Guo 2017)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from scipy.optimize import minimize_scalar
from torch import Tensor

from labn.metrics.arguments import Numbers, as_labels
from labn.metrics.classification import as_probabilities, check_labels

NUM_BINS = 15
_LARGEST_TEMPERATURE = 20.0


@dataclass(frozen=True)
class Reliability:
    """Predictions by confidence, the probability of the predicted class, in bins of equal width.

    A bin's ``confidence`` and ``accuracy`` are means over its ``counts`` images, 0 if it is empty.
    """

    confidence: Float64[Tensor, " bins"]
    accuracy: Float64[Tensor, " bins"]
    counts: Int64[Tensor, " bins"]

    @property
    def expected_error(self) -> float:
        """The expected calibration error, in [0, 1]: 0 where confidence equals accuracy."""
        gaps = (self.confidence - self.accuracy).abs()
        return ((self.counts * gaps).sum() / self.counts.sum()).item()


def reliability(probabilities: Numbers, labels: Numbers, num_bins: int = NUM_BINS) -> Reliability:
    """Return predictions and their accuracy by confidence (Guo 2017, eq. 2 and 3).

    Raises:
        ValueError: a row is not a distribution, or a label is not one of the classes.
    """
    probabilities = as_probabilities("probabilities", probabilities)
    labels = as_labels(labels, len(probabilities))
    check_labels(labels, probabilities.shape[1])
    confidence, predicted = probabilities.max(dim=1)
    # Bins are closed above, as in the source: 1 belongs to the last.
    bins = (confidence * num_bins).ceil().long().clamp(1, num_bins) - 1
    counts = torch.bincount(bins, minlength=num_bins)
    mean_confidence, accuracy = (
        torch.bincount(bins, weights=values, minlength=num_bins) / counts.clamp(min=1)
        for values in (confidence, (predicted == labels).double())
    )
    return Reliability(mean_confidence, accuracy, counts)


def tempered(probabilities: Float[Tensor, "n c"], temperature: float) -> Float64[Tensor, "n c"]:
    """Return the probabilities for logits divided by a temperature."""
    logits = probabilities.double().clamp(min=torch.finfo(torch.float64).tiny).log()
    return (logits / temperature).softmax(dim=1)


def fit_temperature(probabilities: Numbers, labels: Numbers) -> float:
    """Return the temperature with the least cross-entropy, within [1/20, 20] (Guo 2017, 4.2).

    Above 1 it makes a network less sure; it never changes a predicted class.

    Raises:
        ValueError: a row is not a distribution, or a label is not one of the classes.
    """
    probabilities = as_probabilities("probabilities", probabilities)
    labels = as_labels(labels, len(probabilities))
    check_labels(labels, probabilities.shape[1])

    def loss(log_temperature: float) -> float:
        own = tempered(probabilities, math.exp(log_temperature)).gather(1, labels[:, None])
        return -own.clamp(min=torch.finfo(torch.float64).tiny).log().mean().item()

    bound = math.log(_LARGEST_TEMPERATURE)
    found = minimize_scalar(loss, bounds=(-bound, bound), method="bounded")
    return math.exp(found.x)
