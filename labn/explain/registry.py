"""The registry of explanation methods."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import entry_points
from typing import Any

import torch
from torch import Tensor

from labn.errors import UserError, did_you_mean
from labn.explain.attention import LabnAttention, LambdaAttention, lambda_attentions
from labn.explain.captum_methods import (
    ATTRIBUTIONS,
    Attribution,
    GuidedBackpropagation,
    ScoreCam,
)
from labn.explain.controls import CentredGaussian, EdgeEnergy, RandomMap
from labn.explain.gradients import GradCam, InputGradient
from labn.explain.greedy import Greedy
from labn.explain.method import Method
from labn.explain.rise import Rise
from labn.explain.rollout import LambdaRollout
from labn.metrics.faithfulness import Predict
from labn.model.network import LABN

LAMBDA_ATTENTION, LAMBDA_ROLLOUT = "lambda attention", "lambda rollout"
ENTRY_POINTS = "labn.methods"
"""The group of entry points by which other packages add methods."""


@dataclass(frozen=True, kw_only=True)
class MethodContext:
    """The values that a method can be built from.

    ``predict`` maps (n, c, h, w) to the class probabilities of ``model``. ``num_masks`` and
    ``seed`` are the evaluation's; ``lambda_layer`` is the layer chosen for "lambda attention",
    if any. ``bias_image`` is b, standardised; without one it is the mean colour. ``patch_size`` is
    that of the score for which "greedy" searches.
    """

    model: LABN
    predict: Predict
    num_masks: int
    seed: int
    lambda_layer: int | None = None
    bias_image: Tensor | None = None
    patch_size: int = 16

    @property
    def baseline(self) -> Tensor:
        """The bias image, or the mean colour."""
        return torch.zeros(()) if self.bias_image is None else self.bias_image


def _lambda_attention(context: MethodContext) -> Method:
    index, num_layers = context.lambda_layer, len(lambda_attentions(context.model))
    assert index is not None
    if index >= num_layers:
        raise UserError(
            f"--methods {LAMBDA_ATTENTION} {index}: must be {LAMBDA_ATTENTION} 0 to"
            f" {num_layers - 1}, for the network has {num_layers} lambda layers"
        )
    return LambdaAttention(context.model, index)


def _attribution(name: str, context: MethodContext) -> Method:
    return Attribution(name, context.model, context.baseline, context.seed)


METHODS: dict[str, Callable[[MethodContext], Method]] = {
    "LABN": lambda context: LabnAttention(context.model),
    LAMBDA_ATTENTION: _lambda_attention,
    # With RISE's own batch size: a map must not depend on validation.batch_size.
    "RISE": lambda context: Rise(
        predict=context.predict, num_masks=context.num_masks, seed=context.seed
    ),
    "Grad-CAM": lambda context: GradCam(context.model),
    "input gradient": lambda context: InputGradient(context.model),
    "random": lambda context: RandomMap(context.seed),
    "centre": lambda context: CentredGaussian(),
    "edges": lambda context: EdgeEnergy(),
    **{name: partial(_attribution, name) for name in ATTRIBUTIONS},
    "guided backpropagation": lambda context: GuidedBackpropagation(context.model),
    "Score-CAM": lambda context: ScoreCam(context.model, context.num_masks),
    LAMBDA_ROLLOUT: lambda context: LambdaRollout(context.model),
    "greedy": lambda context: Greedy(context.predict, context.baseline, context.patch_size),
}
USUAL = tuple(METHODS)[:8]
"""The methods of an evaluation that names none."""
ALL = "all"


def resolve_names(words: Sequence[str]) -> tuple[str, ...]:
    """Return the method names that words match, ignoring case and "-" or "_" for spaces.

    ``all`` stands for every method, those of other packages too.

    Raises:
        UserError: a word matches no method, or there are no words.
    """
    known = {_plain(name): name for name in (*METHODS, *_added())}
    found = list[str]()
    for word in words:
        plain = _plain(word)
        if plain == ALL:
            found += known.values()
            continue
        layer = re.fullmatch(rf"{LAMBDA_ATTENTION} (\d+)", plain)
        if layer is None and plain not in known:
            near = did_you_mean(plain, known)
            for key, name in known.items():
                near = near.replace(f'"{key}"', f'"{name}"')
            raise UserError(f"--methods {word}: must be among {', '.join(known.values())}.{near}")
        found.append(f"{LAMBDA_ATTENTION} {int(layer[1])}" if layer else known[plain])
    if not found:
        raise UserError(f"--methods: names none; specify some of {', '.join(known.values())}")
    return tuple(dict.fromkeys(found))


def build_method(name: str, context: MethodContext) -> Method:
    """Return the method of a name that ``resolve_names`` returned.

    Raises:
        UserError: the network has no such layer, or the package that adds the method is broken.
    """
    if layer := re.fullmatch(rf"{LAMBDA_ATTENTION} (\d+)", name):
        return _lambda_attention(replace(context, lambda_layer=int(layer[1])))
    if name in METHODS:
        return METHODS[name](context)
    added = _added()[name]
    try:
        build = added.load()
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"--methods {name}: {added.value} cannot be loaded ({error}); reinstall its package"
        ) from error
    method: Method = build(context)
    if method.name != name:
        raise UserError(
            f"--methods {name}: {added.value} calls itself {method.name!r}; name both alike"
        )
    return method


# Any: the backport importlib_metadata, once imported, returns entry points of its own class.
def _added() -> dict[str, Any]:
    return {one.name: one for one in entry_points(group=ENTRY_POINTS)}


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()
