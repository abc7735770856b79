"""The interface of explanation methods, and helpers that they share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from labn.model.network import upsample_attention


@runtime_checkable
class Method(Protocol):
    """An explanation method: how much each pixel of an image matters."""

    @property
    def name(self) -> str:
        """Name in tables and figures."""

    def explain(
        self, images: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"], names: Sequence[str]
    ) -> Float[Tensor, "b h w"]:
        """Return maps of standardised images, at least 0: higher is more important, on any scale.

        An image's map does not depend, up to rounding, on the others in the batch. ``labels`` are
        the classes to explain, ``names`` those of the images. Maps stay on the images' device.
        """


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode, and restore the mode of each module afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def upsample_map(
    maps: Float[Tensor, "b 1 h2 w2"], images: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b h w"]:
    """Return maps at their images' size and type, upsampled like alpha (bilinear)."""
    return upsample_attention(maps.to(images.dtype), (images.shape[2], images.shape[3]))
