"""Metrics of Quantus (Hedström et al. 2023), where it is installed, for one image's maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from labn.errors import UserError, did_you_mean
from labn.metrics.explained import Explain, Explained, Values, as_map
from labn.metrics.faithfulness import Predict

QUANTUS = "quantus:"
"""The beginning of the names of its metrics."""


def quantus_class(name: str) -> Any:
    """Return the class of a metric by its name with the beginning ``quantus:``.

    Raises:
        UserError: Quantus is not installed, or has no such metric.
    """
    try:
        import quantus
    except ImportError as error:
        raise UserError(
            f"--metrics {name}: Quantus is not installed ({error}); run `pip install labn[quantus]`"
        ) from None
    known = {
        one.__name__: one for group in quantus.AVAILABLE_METRICS.values() for one in group.values()
    }
    word = name.removeprefix(QUANTUS)
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
    """Return the value of an instance of Quantus's metric for each map, the mean of several."""
    found, state = [], np.random.get_state()  # noqa: NPY002
    mask = None if one.mask is None else np.array(one.mask)[None, None]
    for explain, own in zip(one.explain, one.maps, strict=True):

        def explain_all(inputs: np.ndarray, explain: Explain = explain, **_: Any) -> np.ndarray:
            images = torch.as_tensor(inputs).to(one.image)
            return np.stack([as_map(explain(image)) for image in images])[:, None]

        np.random.seed(one.seed)  # noqa: NPY002
        values = metric(
            model=_Network(one.predict).eval(),
            x_batch=one.image.float().cpu().numpy()[None],
            y_batch=np.array([one.label]),
            a_batch=own[None, None].copy(),
            s_batch=mask,
            explain_func=lambda model, inputs, targets, **given: explain_all(inputs, **given),
            device=str(one.image.device),
        )
        values = list(values.values()) if isinstance(values, dict) else values
        found.append(float(np.mean(np.asarray(values, dtype=np.float64))))
    np.random.set_state(state)  # noqa: NPY002
    return np.array(found)
