"""The registry of metrics of explanations beside PID, computed for all maps of one image.

Symbols: x an image, b the bias image, y the probability of the explained class, k the maps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from labn.errors import UserError, did_you_mean
from labn.metrics.explained import Explained, Metric, Values, as_map, over_views, small_shift
from labn.metrics.imputation import impute
from labn.metrics.localisation import field_distance, localisation
from labn.metrics.quantus_metrics import QUANTUS, by_quantus, quantus_class
from labn.metrics.rank_agreement import rank_correlation

_ROAD_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
_NUM_NOISY, _NOISE_SHARE = 4, 0.02
_TOP_SHARE = 0.01


def _road(one: Explained) -> Values:
    """Return the mean of y with the least important pixels imputed, less the most important."""

    def frames() -> Iterator[Tensor]:
        for saliency in one.maps:
            order = np.argsort(-saliency, axis=None, kind="stable")
            for share in _ROAD_SHARES:
                count = round(share * order.size)
                yield impute(one.image, order[order.size - count :], one.generator)
                yield impute(one.image, order[:count], one.generator)

    scores = one.score(frames()).reshape(len(one.maps), -1, 2)
    found: Values = (scores[..., 0] - scores[..., 1]).mean(axis=1)
    return found


def _single_deletion(one: Explained) -> Values:
    return np.array([rank_correlation(sums, one.single_drops) for sums in one.patch_sums])


def _infidelity(one: Explained) -> Values:
    """Return the share of the squared drops that sums over the map, at the best scale, leave."""
    chosen, drops = one.random_subsets
    total = (drops**2).sum()
    sums = one.patch_sums @ chosen.T.astype(float)
    norms = (sums**2).sum(axis=1)
    scales = np.divide(sums @ drops, norms, out=np.zeros_like(norms), where=norms > 0)
    left = ((scales[:, None] * sums - drops) ** 2).sum(axis=1)
    return left / total if total > 0 else np.full(len(left), math.nan)


def _sparseness(one: Explained) -> Values:
    """Return Gini's coefficient of the pixels."""
    ascending = np.sort(one.maps.reshape(len(one.maps), -1), axis=1)
    number, totals = ascending.shape[1], ascending.sum(axis=1)
    ranks = 2 * np.arange(1, number + 1) - number - 1
    found: Values = _ratio(ascending @ ranks, number * totals)
    return found


def _entropy(one: Explained) -> Values:
    """Return the entropy of the map as a distribution, as a share of the greatest, log pixels."""
    flat = one.maps.reshape(len(one.maps), -1)
    shares = _ratio(flat, flat.sum(axis=1, keepdims=True))
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    found: Values = -(shares * logs).sum(axis=1) / math.log(flat.shape[1])
    return found


def _sensitivity(one: Explained) -> Values:
    """Return the greatest relative distance of the maps of noisy images."""
    spread = _NOISE_SHARE * (one.image.max() - one.image.min()).item()
    noise = one.generator.uniform(-spread, spread, (_NUM_NOISY, *one.image.shape))
    images = [one.image + torch.from_numpy(each).to(one.image) for each in noise]
    found = []
    for explain, own in zip(one.explain, one.maps, strict=True):
        distances = [np.linalg.norm(as_map(explain(image)) - own) for image in images]
        found.append(_ratio(np.array(max(distances)), np.array(np.linalg.norm(own))))
    return np.array(found, dtype=np.float64)


def _moved(transform: Callable[[Explained, Tensor, int], Tensor]) -> Callable[[Explained], Values]:
    """Return the rank correlation of a map with that of the moved image, moved back."""

    def compute(one: Explained) -> Values:
        image, found = transform(one, one.image, 1), []
        for explain, own in zip(one.explain, one.maps, strict=True):
            found.append(rank_correlation(as_map(transform(one, explain(image), -1)), own))
        return np.array(found)

    return compute


def _shift(one: Explained, x: Tensor, sign: int) -> Tensor:
    steps = [sign * small_shift(length) for length in one.image.shape[1:]]
    return torch.roll(x, steps, dims=(-2, -1))


def _spread(one: Explained) -> Values:
    """Return the standard deviation over flips and shifts, as a share of the mean map."""
    views = [over_views(explain, one.image).double() for explain in one.explain]
    spreads = np.array([maps.std(dim=0, correction=0).mean().item() for maps in views])
    found: Values = _ratio(spreads, np.array([maps.mean().item() for maps in views]))
    return found


def _located(name: str) -> Callable[[Explained], Values]:
    def compute(one: Explained) -> Values:
        if one.mask is None:
            return np.full(len(one.maps), math.nan)
        masks = np.broadcast_to(one.mask, one.maps.shape)
        found: Values = getattr(localisation(one.maps, masks), name).numpy()
        return found

    return compute


def _highest(share: float | None, *, as_iou: bool = False) -> Callable[[Explained], Values]:
    """Return the share of the highest pixels in the mask: as many as it has, or a share of all."""

    def compute(one: Explained) -> Values:
        if one.mask is None or not 0 < one.mask.mean() < 1:
            return np.full(len(one.maps), math.nan)
        count = int(one.mask.sum()) if share is None else max(1, round(share * one.mask.size))
        order = np.argsort(-one.maps.reshape(len(one.maps), -1), axis=1, kind="stable")
        hits = one.mask.ravel()[order[:, :count]].sum(axis=1)
        union = 2 * count - hits if as_iou else count
        return np.asarray(hits / union, dtype=np.float64)

    return compute


def _field_distance(one: Explained) -> Values:
    if one.field is None:
        return np.full(len(one.maps), math.nan)
    return field_distance(one.maps, one.field)


def _ratio(value: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Return value / total, NaN where the total is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > 0, value / np.where(total > 0, total, 1), math.nan)


METRICS: dict[str, Metric] = {
    "ROAD": Metric(_road, "higher", (-1, 1), "10 per map", "Rong et al. 2022", kind="faithfulness"),
    "IDSDS": Metric(
        _single_deletion, "higher", (-1, 1), "1 per patch", "Hesse et al. 2024", kind="faithfulness"
    ),
    "infidelity": Metric(
        _infidelity, "lower", (0, 1), "64 per image", "Yeh et al. 2019", kind="faithfulness"
    ),
    "average drop": Metric(
        lambda one: np.maximum(one.p_image - one.p_masked, 0) / one.p_image,
        "lower", (0, 1), "1 per map", "Chattopadhay et al. 2018", kind="faithfulness",
    ),
    "average gain": Metric(
        lambda one: _ratio(np.maximum(one.p_masked - one.p_image, 0), np.array(1 - one.p_image)),
        "higher", (0, 1), "1 per map", "Zhang et al. 2024", kind="faithfulness",
    ),
    "sparseness": Metric(
        _sparseness, "higher", (0, 1), "none", "Chalasani et al. 2020", kind="complexity"
    ),
    "entropy": Metric(_entropy, "lower", (0, 1), "none", "Bhatt et al. 2020", kind="complexity"),
    "sensitivity": Metric(
        _sensitivity, "lower", (0, math.inf), "4 maps", "Yeh et al. 2019", kind="robustness"
    ),
    "shift": Metric(_moved(_shift), "higher", (-1, 1), "1 map", "LABN", kind="robustness"),
    "flip": Metric(
        _moved(lambda one, x, sign: x.flip(-1)), "higher", (-1, 1), "1 map", "LABN",
        kind="robustness",
    ),
    "spread": Metric(_spread, "lower", (0, math.inf), "8 maps", "LABN", kind="robustness"),
    "relevance mass": Metric(
        _located("energy_inside"), "higher", (0, 1), "none", "Arras et al. 2022",
        kind="localisation",
    ),
    "relevance rank": Metric(
        _highest(None), "higher", (0, 1), "none", "Arras et al. 2022", kind="localisation"
    ),
    "top-k": Metric(
        _highest(_TOP_SHARE), "higher", (0, 1), "none", "Theiner et al. 2022", kind="localisation"
    ),
    "IoU": Metric(
        _highest(None, as_iou=True), "higher", (0, 1), "none", "at the mask's area",
        kind="localisation",
    ),
    "field distance": Metric(
        _field_distance, "lower", (0, math.inf), "none", "LABN; threshold: Schrijver 2007",
        kind="localisation",
    ),
}  # fmt: skip


def find_metric(name: str) -> Metric:
    """Return the metric of a name that ``resolve_metrics`` returned."""
    if not name.startswith(QUANTUS):
        return METRICS[name]
    metric = quantus_class(name)(disable_warnings=True, display_progressbar=False)
    better: Literal["higher", "lower"]
    better = "lower" if metric.score_direction.value == "lower" else "higher"
    return Metric(
        partial(by_quantus, metric), better, (-math.inf, math.inf), "Quantus's", "Quantus",
        kind="faithfulness",
    )  # fmt: skip


def resolve_metrics(words: Sequence[str]) -> tuple[str, ...]:
    """Return the names of metrics that words match, ignoring case; ``all`` stands for every one.

    Raises:
        UserError: a word matches no metric.
    """
    known = {name.casefold(): name for name in METRICS}
    found = list[str]()
    for word in words:
        plain = word.strip().casefold().replace("_", " ")
        if plain == "all":
            found += METRICS
        elif plain.startswith(QUANTUS):
            found.append(f"{QUANTUS}{quantus_class(word.strip()).__name__}")
        elif plain in known:
            found.append(known[plain])
        else:
            near = did_you_mean(plain, known)
            for key, name in known.items():
                near = near.replace(f'"{key}"', f'"{name}"')
            raise UserError(
                f"--metrics {word}: must be all, or some of {', '.join(METRICS)}, or {QUANTUS}NAME;"
                f" comma-separated.{near}"
            )
    return tuple(dict.fromkeys(found))
