"""Metrics of Quantus (Hedström et al. 2023), where it is installed, for one image's maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from labn.errors import UserError, did_you_mean
from labn.metrics.explained import Explain, Explained, Values, as_map
from labn.metrics.faithfulness import Predict

QUANTUS = "quantus:"
"""The beginning of the names of its metrics."""
_LONGEST_REASON = 160
_UNFIT = dict.fromkeys(
    ("MPRT", "SmoothMPRT", "EfficientMPRT", "RandomLogit"),
    "needs maps of another class or of a randomised network, and an evaluation has those of one"
    " class and network; run `labn sanity`, which has these tests",
) | dict.fromkeys(
    ("Consistency", "Focus", "InputInvariance", "RelativeRepresentationStability", "Sufficiency"),
    "needs several images or the network's layers, and gets one image and its probabilities;"
    " leave it out",
)
"""Why metrics of Quantus would be wrong here."""


def quantus_class(name: str) -> Any:
    """Return the class of a metric by its name with the beginning ``quantus:``.

    Raises:
        UserError: the metric would be wrong here, or Quantus is not installed or has none such.
    """
    word = name.removeprefix(QUANTUS)
    if word in _UNFIT:
        raise UserError(f"--metrics {name}: {_UNFIT[word]}")
    try:
        import quantus
    except ImportError as error:
        raise UserError(
            f"--metrics {name}: Quantus is not installed ({error}); run `pip install labn[quantus]`"
        ) from None
    every = [one for group in quantus.AVAILABLE_METRICS.values() for one in group.values()]
    known = {one.__name__: one for one in every if one.__name__ not in _UNFIT}
    if word not in known:
        raise UserError(
            f"--metrics {name}: must be {QUANTUS} and one of {', '.join(known)}."
            f"{did_you_mean(word, known)}"
        )
    return known[word]


class _Network(nn.Module):
    def __init__(self, predict: Predict) -> None:
        super().__init__()
        self.predict = predict

    def forward(self, images: Tensor) -> Tensor:
        return self.predict(images).log()  # whose softmax are the probabilities again


def by_quantus(metric: Any, one: Explained) -> Values:
    """Return the value of an instance of Quantus's metric for each map, the mean of several.

    NaN where it needs the lesions, and these are unknown.

    Raises:
        UserError: the metric fails on this image.
    """
    if metric.evaluation_category.value == "Localisation" and one.mask is None:
        return np.full(len(one.maps), np.nan)
    state = np.random.get_state()  # noqa: NPY002
    try:
        pairs = zip(one.explain, one.maps, strict=True)
        return np.array([_measure(metric, one, explain, own) for explain, own in pairs])
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError,
            ValueError) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        raise UserError(
            f"--metrics {QUANTUS}{type(metric).__name__}: Quantus fails on {one.name} ({reason});"
            " leave it out"
        ) from error
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _measure(
    metric: Any, one: Explained, explain: Explain, own: Float64[np.ndarray, "h w"]
) -> float:
    def explain_all(inputs: np.ndarray) -> np.ndarray:
        images = torch.as_tensor(inputs).to(one.image)
        return np.stack([as_map(explain(image)) for image in images])[:, None]

    np.random.seed(one.seed)  # noqa: NPY002
    values = metric(
        model=_Network(one.predict).eval(),
        x_batch=one.image.float().cpu().numpy()[None],
        y_batch=np.array([one.label]),
        a_batch=own[None, None].copy(),
        s_batch=None if one.mask is None else np.array(one.mask)[None, None],
        explain_func=lambda model, inputs, targets, **given: explain_all(inputs),
        device=str(one.image.device),
    )
    values = list(values.values()) if isinstance(values, dict) else values
    return float(np.mean(np.asarray(values, dtype=np.float64)))
