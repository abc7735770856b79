"""Maps by Captum's attributions of the class's logit, and Score-CAM and guided gradients.

Each image is explained on its own, with random draws that depend on the seed and its name only, and
in passes of at most 16 images. Where an attribution has a sign, the map is the evidence for the
class: channels are summed, and what is below 0 becomes 0.

Symbols: x an image, b the bias image, A_k a channel of the last feature map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from labn.explain.gradients import (
    InputGradient,
    Logits,
    differentiable,
    last_feature_map,
    logits_of,
)
from labn.explain.method import upsample_map
from labn.metrics.explained import seeds_of
from labn.model.network import LABN, upsample_attention

_BATCH_SIZE = 16
_NUM_STEPS = 32  # of the integral, and samples
_NOISE_SHARE = 0.15  # of an image's range (Smilkov 2017, section 4)
_WINDOWS_PER_SIDE = 7

Attribute = Callable[[Logits, Tensor, int, Tensor], Tensor]
"""Maps logits, an image (1, c, h, w), its class and b (c, h, w) to the image's attributions."""


@dataclass(frozen=True)
class Attribution:
    """One of ``ATTRIBUTIONS`` as a method.

    ``model`` is a LABN, or a network that returns logits; ``baseline`` b broadcasts to an image.
    """

    name: str
    model: nn.Module
    baseline: Tensor
    seed: int = 0

    def explain(
        self, images: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"], names: Sequence[str]
    ) -> Float[Tensor, "b h w"]:
        """Return the attributions of each image's class, summed over channels; not negative."""
        attribute, logits, maps = ATTRIBUTIONS[self.name], logits_of(self.model), []
        with differentiable(self.model, images, labels) as (inputs, targets):
            baseline = self.baseline.to(images).expand_as(inputs[0])
            for image, target, name in zip(inputs, targets.tolist(), names, strict=False):
                with _seeded(self.seed, name, image.device):
                    found = attribute(logits, image[None].detach(), target, baseline[None])
                maps.append(found.detach().sum(dim=1).clamp(min=0))
        return torch.cat(maps).to(images.dtype)


def _integrated_gradients(logits: Logits, x: Tensor, label: int, b: Tensor) -> Tensor:
    from captum.attr import IntegratedGradients  # type: ignore[import-untyped]

    found: Tensor = IntegratedGradients(logits).attribute(
        x, b, label, n_steps=_NUM_STEPS, internal_batch_size=_BATCH_SIZE
    )
    return found


def _gradient_shap(logits: Logits, x: Tensor, label: int, b: Tensor) -> Tensor:
    from captum.attr import GradientShap

    shap, rounds = GradientShap(logits), _NUM_STEPS // _BATCH_SIZE
    found: list[Tensor] = [shap.attribute(x, b, _BATCH_SIZE, target=label) for _ in range(rounds)]
    return torch.stack(found).mean(dim=0)


def _smooth_grad(logits: Logits, x: Tensor, label: int, b: Tensor) -> Tensor:
    from captum.attr import NoiseTunnel, Saliency

    noise = _NOISE_SHARE * (x.max() - x.min()).item()
    found: Tensor = NoiseTunnel(Saliency(logits)).attribute(
        x, "smoothgrad", _NUM_STEPS, _BATCH_SIZE, stdevs=noise, target=label, abs=False
    )
    return found.abs().amax(dim=1, keepdim=True)


def _occlusion(logits: Logits, x: Tensor, label: int, b: Tensor) -> Tensor:
    from captum.attr import Occlusion

    window = tuple(max(4, length // _WINDOWS_PER_SIDE) for length in x.shape[2:])
    strides = (x.shape[1], *(length // 2 for length in window))
    found: Tensor = Occlusion(logits).attribute(
        x, (x.shape[1], *window), strides, b, label, perturbations_per_eval=_BATCH_SIZE
    )
    return found / x.shape[1]  # each channel has the drop of the window


ATTRIBUTIONS: dict[str, Attribute] = {
    "integrated gradients": _integrated_gradients,
    "gradient SHAP": _gradient_shap,
    "SmoothGrad": _smooth_grad,
    "occlusion": _occlusion,
}


class GuidedBackpropagation(InputGradient):
    """The input gradient, of which each ReLU passes back only what is positive.

    Source: Springenberg et al. 2015. Captum's needs each ReLU to be a module of its own.
    """

    name = "guided backpropagation"

    def explain(
        self, images: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"], names: Sequence[str]
    ) -> Float[Tensor, "b h w"]:
        """Return the guided gradient of each image's own class; not negative."""
        with _GuidedReLUs():
            return super().explain(images, labels, names)


class ScoreCam:
    """Channels A_k, summed by the probability of the class for x * A_k, then a ReLU.

    A_k is of ``GradCam``'s layer; it masks x upsampled and scaled to [0, 1]. The ``max_channels``
    of the greatest variance take part. Source: Wang et al. 2020, as the authors' code computes it.
    """

    name = "Score-CAM"

    def __init__(self, model: LABN, max_channels: int) -> None:
        self._model, self._max_channels = model, max_channels

    def explain(
        self, images: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"], names: Sequence[str]
    ) -> Float[Tensor, "b h w"]:
        """Return the channels weighted for each image's class; not negative."""
        with differentiable(self._model, images, labels) as (inputs, targets), torch.no_grad():
            pairs = list(zip(inputs, targets.tolist(), strict=True))[: len(images)]
            maps = [self._explain(image[None], label) for image, label in pairs]
        return torch.cat(maps).to(images.dtype)

    def _explain(self, image: Tensor, label: int) -> Float[Tensor, "1 h w"]:
        logits, layer = last_feature_map(self._model)
        found: list[Tensor] = []
        with layer.register_forward_hook(lambda _, args, output: found.append(output)):
            logits(image)
        (channels,) = found[0]
        num_channels = min(self._max_channels, len(channels))
        channels = channels[channels.flatten(1).var(dim=1).topk(num_channels).indices]
        low, high = channels.amin(dim=(1, 2), keepdim=True), channels.amax(dim=(1, 2), keepdim=True)
        scaled = (channels - low) / (high - low).clamp(min=torch.finfo(low.dtype).tiny)
        size = (image.shape[2], image.shape[3])
        parts = (upsample_attention(one[:, None], size) for one in scaled.split(_BATCH_SIZE))
        shown = [logits(image * mask[:, None]).softmax(dim=1)[:, label] for mask in parts]
        weights_k = torch.cat(shown)
        total = torch.einsum("k,khw->hw", weights_k.to(channels), channels)
        return upsample_map(total[None, None].clamp(min=0), image)


class _GuidedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.clamp(min=0)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        gradient: Tensor = grads[0].clamp(min=0) * (y > 0)
        return gradient


class _GuidedReLUs(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.relu:
            return _GuidedReLU.apply(args[0])
        return func(*args, **(kwargs or {}))


@contextmanager
def _seeded(seed: int, name: str, device: torch.device) -> Iterator[None]:
    """Seed the global generators, from which Captum draws, and restore them afterwards."""
    (number,) = np.random.SeedSequence(seeds_of(seed, name)).generate_state(1)
    state = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(number))
        np.random.seed(int(number))  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002
