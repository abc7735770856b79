"""Sanity checks of explanations: cascading weight randomisation (Adebayo et al. 2018), and others.

Layers are replaced by untrained ones cumulatively, from the output to the stem, and each map is
compared with the trained network's. A map that stays the same shows the image, not what was learnt.
By construction,

- LABN's attention is computed before the linear layer and the LPB's bottlenecks, so that its
  correlation is 1 until the attention branch is replaced;
- lambda attention of layer l depends neither on the linear layer nor on later bottlenecks, and
  depends on the attention branch only if l is at or beyond the split;
- Grad-CAM of a LABN with bottlenecks in its LPB, the input gradient and RISE depend on all layers;
- controls (random, centre, edges) depend on none, and stay at 1.

Two figures need no stages. The random logit (Sixt et al. 2020) is the rank correlation of a map
with that of another class: 1 for a method that does not explain a class. The rise in complexity
(efficient MPRT, Hedström et al. 2024) is that of the map's entropy from the trained network to the
wholly untrained one, relative to the former: at or below 0, a map of noise is as orderly.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from labn.explain.method import Method
from labn.metrics.explained import seeds_of
from labn.metrics.rank_agreement import rank_correlation
from labn.model.network import LABN

MakeMethods = Callable[[LABN], Sequence[Method]]

_BATCH_SIZE = 8
_NUM_BINS = 100
"""As in the implementation by the authors, Quantus."""
RANDOM_LOGIT, COMPLEXITY_RISE = "random logit", "complexity rise"
Maps = dict[str, NDArray[np.float64]]


class Summary(TypedDict):
    """Mean and deviation (None for too few) over the ``num_images`` that have a value."""

    mean: float | None
    std: float | None
    num_images: int


class SanityRow(Summary):
    """Correlation of one method's maps with the trained network's, after one replacement."""

    method: str
    stage: str


class FigureRow(Summary):
    """A figure of one method's maps: the random logit or the rise in complexity."""

    method: str
    figure: str


@dataclass(frozen=True, kw_only=True)
class SanityCheck:
    """Spearman correlations by method, for each image (columns) after each stage (rows).

    ``stages`` names the layers replaced, in order and cumulatively. ``random_logit`` is the
    correlation with the map of another class. NaN where one of the two maps is constant, so that
    its pixels have no order. ``complexity_rise`` is relative to the trained network's map.
    """

    stages: tuple[str, ...]
    correlations: Mapping[str, Float64[np.ndarray, "stages images"]]
    random_logit: Mapping[str, Float64[np.ndarray, " images"]]
    complexity_rise: Mapping[str, Float64[np.ndarray, " images"]]

    def as_rows(self) -> list[SanityRow]:
        """Return one row for each method and stage, summarised over the images."""
        return [
            {"method": method, "stage": stage, **_summarise(values)}
            for method, by_stage in self.correlations.items()
            for stage, values in zip(self.stages, by_stage, strict=True)
        ]

    def as_figures(self) -> list[FigureRow]:
        """Return one row for each method and figure, summarised over the images."""
        return [
            {"method": method, "figure": figure, **_summarise(values)}
            for figure, by_method in self.figures.items()
            for method, values in by_method.items()
        ]

    @property
    def figures(self) -> dict[str, Mapping[str, Float64[np.ndarray, " images"]]]:
        """The figures that need no stages, by name and method."""
        return {RANDOM_LOGIT: self.random_logit, COMPLEXITY_RISE: self.complexity_rise}


def layer_groups(model: LABN) -> list[tuple[str, nn.Module]]:
    """Return the groups of layers that are replaced together, from the output to the image."""
    blocks = list(enumerate(model.bottlenecks))
    return [
        ("linear", model.fc),
        *((f"LPB {index}", block) for index, block in reversed(blocks[model.split :])),
        ("LAB", model.attention_branch),
        *((f"LFE {index}", block) for index, block in reversed(blocks[: model.split])),
        ("stem", model.stem),
    ]


def cascade(
    model: LABN,
    untrained: LABN,
    make_methods: MakeMethods,
    images: Float[Tensor, "b c h w"],
    labels: Int[Tensor, " b"],
    names: Sequence[str],
    on_stage: Callable[[int, int], None] = lambda done, total: None,
    seed: int = 0,
) -> SanityCheck:
    """Replace a network's layers by untrained ones, and return how its maps change.

    ``model`` is not modified. Batch norm's running statistics are replaced with the weights: at
    every stage the upper layers are as before training.

    Args:
        model: the trained network.
        untrained: a network of the same architecture, drawn from another seed than ``model``.
        make_methods: builds the methods to check, for the copy whose weights are replaced.
        images: standardised images.
        labels: classes to explain, for class-specific methods.
        names: names of the images.
        on_stage: called after each stage with the number of stages done and in all.
        seed: for the other classes of the random logit, together with an image's name.

    Raises:
        RuntimeError: the networks' layers differ.
    """
    mixed = copy.deepcopy(model).eval()
    methods = make_methods(mixed)
    trained = maps = _explain(methods, images, labels, names)
    others = other_classes(labels, names, model.fc.out_features, seed)
    of_others = _explain(methods, images, others, names)
    groups = list(zip(layer_groups(mixed), layer_groups(untrained), strict=True))
    stages, correlations = [], {name: list[list[float]]() for name in trained}
    for number, ((stage, layers), (_, fresh)) in enumerate(groups, start=1):
        layers.load_state_dict(fresh.state_dict())
        stages.append(stage)
        maps = _explain(methods, images, labels, names)
        for name in trained:
            correlations[name].append(_correlate(trained[name], maps[name]))
        on_stage(number, len(groups))
    return SanityCheck(
        stages=tuple(stages),
        correlations={name: np.array(values) for name, values in correlations.items()},
        random_logit={name: np.array(_correlate(trained[name], of_others[name])) for name in maps},
        complexity_rise={name: complexity_rise(trained[name], maps[name]) for name in maps},
    )


def other_classes(
    labels: Int[Tensor, " b"], names: Sequence[str], num_classes: int, seed: int
) -> Int[Tensor, " b"]:
    """Draw for each image a class that is not its own; of two classes, the other."""
    steps = [np.random.default_rng(seeds_of(seed, name)).integers(1, num_classes) for name in names]
    return (labels + torch.tensor(steps).to(labels)) % num_classes


def complexity_rise(
    before: Float64[np.ndarray, "b h w"], after: Float64[np.ndarray, "b h w"]
) -> Float64[np.ndarray, " b"]:
    """Return the rise of each map's entropy, relative to the one before.

    The entropy is that of a histogram of 100 bins from the least value to the greatest, whatever
    their scale; NaN where the map before is constant. At most log(100) / entropy - 1; higher is
    better (Hedström et al. 2024).
    """
    first, last = ([_entropy(one) for one in maps] for maps in (before, after))
    pairs = zip(first, last, strict=True)
    return np.array([(b - a) / a if a > 0 else math.nan for a, b in pairs])


def _entropy(saliency: Float64[np.ndarray, "h w"]) -> float:
    counts, _ = np.histogram(saliency, bins=_NUM_BINS)
    shares = counts[counts > 0] / saliency.size
    return float(-(shares * np.log(shares)).sum())


def _correlate(
    maps: Float64[np.ndarray, "b h w"], others: Float64[np.ndarray, "b h w"]
) -> list[float]:
    return [rank_correlation(*pair) for pair in zip(maps, others, strict=True)]


def _explain(
    methods: Sequence[Method], images: Tensor, labels: Tensor, names: Sequence[str]
) -> Maps:
    parts = [slice(start, start + _BATCH_SIZE) for start in range(0, len(images), _BATCH_SIZE)]
    return {
        method.name: np.concatenate(
            [
                method.explain(images[part], labels[part], names[part]).double().cpu().numpy()
                for part in parts
            ]
        )
        for method in methods
    }


def _summarise(values: Float64[np.ndarray, " images"]) -> Summary:
    ranked = values[np.isfinite(values)]
    return {
        "mean": float(ranked.mean()) if len(ranked) else None,
        "std": float(ranked.std(ddof=1)) if len(ranked) > 1 else None,
        "num_images": len(ranked),
    }
