"""Cascading weight randomisation, a sanity check of explanations (Adebayo et al. 2018).

Layers are replaced by untrained ones cumulatively, from the output to the stem, and each map is
compared with the trained network's. A map that stays the same shows the image, not what was learnt.
By construction,

- LABN's attention is computed before the linear layer and the LPB's bottlenecks, so that its
  correlation is 1 until the attention branch is replaced;
- lambda attention of layer l depends neither on the linear layer nor on later bottlenecks, and
  depends on the attention branch only if l is at or beyond the split;
- Grad-CAM of a LABN with bottlenecks in its LPB, the input gradient and RISE depend on all layers;
- controls (random, centre, edges) depend on none, and stay at 1.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from jaxtyping import Float, Float64, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from labn.explain.method import Method
from labn.metrics.rank_agreement import rank_correlation
from labn.model.network import LABN

MakeMethods = Callable[[LABN], Sequence[Method]]

_BATCH_SIZE = 8
Maps = dict[str, NDArray[np.float64]]


class SanityRow(TypedDict):
    """Correlation of one method's maps with the trained network's, after one replacement.

    Mean and deviation (None for too few) are over the ``num_images`` whose maps can be ranked.
    """

    method: str
    stage: str
    mean: float | None
    std: float | None
    num_images: int


@dataclass(frozen=True, kw_only=True)
class SanityCheck:
    """Spearman correlations by method, for each image (columns) after each stage (rows).

    ``stages`` names the layers replaced, in order and cumulatively. NaN where one of the two maps
    is constant, so that its pixels have no order.
    """

    stages: tuple[str, ...]
    correlations: Mapping[str, Float64[np.ndarray, "stages images"]]

    def as_rows(self) -> list[SanityRow]:
        """Return one row for each method and stage, summarised over the images."""
        return [
            _summarise(method, stage, values)
            for method, by_stage in self.correlations.items()
            for stage, values in zip(self.stages, by_stage, strict=True)
        ]


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

    Raises:
        RuntimeError: the networks' layers differ.
    """
    mixed = copy.deepcopy(model).eval()
    methods = make_methods(mixed)
    trained = _explain(methods, images, labels, names)
    groups = list(zip(layer_groups(mixed), layer_groups(untrained), strict=True))
    stages, correlations = [], {name: list[list[float]]() for name in trained}
    for number, ((stage, layers), (_, fresh)) in enumerate(groups, start=1):
        layers.load_state_dict(fresh.state_dict())
        stages.append(stage)
        for name, maps in _explain(methods, images, labels, names).items():
            pairs = zip(trained[name], maps, strict=True)
            correlations[name].append([rank_correlation(*pair) for pair in pairs])
        on_stage(number, len(groups))
    return SanityCheck(
        stages=tuple(stages),
        correlations={name: np.array(values) for name, values in correlations.items()},
    )


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


def _summarise(method: str, stage: str, values: Float64[np.ndarray, " images"]) -> SanityRow:
    ranked = values[np.isfinite(values)]
    return {
        "method": method,
        "stage": stage,
        "mean": float(ranked.mean()) if len(ranked) else None,
        "std": float(ranked.std(ddof=1)) if len(ranked) > 1 else None,
        "num_images": len(ranked),
    }
