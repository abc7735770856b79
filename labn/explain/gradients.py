"""Maps from gradients of the class's logit, by Captum: Grad-CAM and the input gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from labn.explain.method import evaluation_mode, upsample_map
from labn.model.network import LABN

Logits = Callable[[Tensor], Tensor]
"""Maps images (n, c, h, w) to logits (n, classes)."""


class GradCam:
    """Grad-CAM: a layer's channels, weighted by their mean gradient, summed, then a ReLU.

    For a LABN the default is the last feature map before pooling: the last bottleneck's output, or
    the masked h_LFE if the LPB has no bottleneck. Since pooling and one linear layer follow, that
    is the class activation map of Zhou et al. 2016. Source: Selvaraju et al. 2017.

    Args:
        model: a LABN, or a network that returns logits.
        layer: the layer whose output (b, c, h2, w2) is weighted; optional for a LABN only.

    Raises:
        ValueError: no layer was passed for a network other than a LABN.
    """

    name = "Grad-CAM"

    def __init__(self, model: nn.Module, layer: nn.Module | None = None) -> None:
        logits = logits_of(model)
        if layer is None:
            if not isinstance(model, LABN):
                raise ValueError(
                    f"layer: got None for a {type(model).__name__}, must be the module whose"
                    " output is to be weighted, for only a LABN has one by default"
                )
            logits, layer = last_feature_map(model)
        # Imported here: the names of the methods are needed without it.
        from captum.attr import LayerGradCam  # type: ignore[import-untyped]

        self._model, self._captum = model, LayerGradCam(logits, layer)

    def explain(
        self, images: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"], names: Sequence[str]
    ) -> Float[Tensor, "b h w"]:
        """Return the layer's channels weighted for each image's class; not negative."""
        with differentiable(self._model, images, labels) as (inputs, targets):
            maps = self._captum.attribute(inputs, targets, relu_attributions=True)
        return upsample_map(maps.detach()[: len(images)], images)


class InputGradient:
    """The absolute gradient of the class's logit at each pixel, the maximum over channels.

    ``model`` is a LABN, or a network that returns logits. Source: Simonyan et al. 2014, section 3.
    """

    name = "input gradient"

    def __init__(self, model: nn.Module) -> None:
        from captum.attr import Saliency

        self._model, self._captum = model, Saliency(logits_of(model))

    def explain(
        self, images: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"], names: Sequence[str]
    ) -> Float[Tensor, "b h w"]:
        """Return the gradient of each image's own class; not negative."""
        with differentiable(self._model, images, labels) as (inputs, targets):
            gradients: Tensor = self._captum.attribute(inputs, targets)
        return gradients[: len(images)].amax(dim=1)


@contextmanager
def differentiable(
    model: nn.Module, images: Tensor, labels: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Enable gradients, even if the caller disabled them, and yield copies that require them.

    A single image is yielded twice. Without autocast: its cache may hold weights that were cast
    while gradients were disabled.
    """
    # A single image is repeated: on the CPU, batch normalisation's backward (seen in torch 2.15)
    # misreads gradients of a batch of one whose strides are those of no memory format.
    num_copies = 2 if len(images) == 1 else 1
    with (
        evaluation_mode(model),
        torch.inference_mode(False),
        torch.autocast(images.device.type, enabled=False),
    ):
        inputs = images.repeat(num_copies, 1, 1, 1)
        yield inputs.requires_grad_(), labels.repeat(num_copies).long()


def logits_of(model: nn.Module) -> Logits:
    """Return a LABN, or a network that returns logits, as a function of images."""

    def logits(images: Tensor) -> Tensor:
        output = model(images)
        result: Tensor = output.logits if isinstance(model, LABN) else output
        return result

    return logits


def last_feature_map(model: LABN) -> tuple[Logits, nn.Module]:
    """Return the LPB's logits as a function, and the module in it that returns the last map."""
    if model.split < len(model.bottlenecks):
        return logits_of(model), model.bottlenecks[-1]
    masked = nn.Identity()

    def logits(images: Tensor) -> Tensor:
        # The network's forward, with a module to hook where it masks.
        h_lfe = model.extract(images)
        attention = model.attention_branch(h_lfe).attention
        return model.classify(masked(model.attend(attention, h_lfe)))

    return logits, masked
