"""What every explanation method offers, and what several of them need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from labn.model.network import upsample_attention


@runtime_checkable
class Method(Protocol):
    """One way to say how much each pixel of an image matters."""

    @property
    def name(self) -> str:
        """What tables and figures call it."""

    def explain(
        self, images: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"], names: Sequence[str]
    ) -> Float[Tensor, "b h w"]:
        """Map standardised images: more is more important, on any scale.

        An image's map does not depend on which others share the batch, to rounding. ``labels`` are
        the classes to explain, ``names`` those of the images. Maps stay on the images' device.
        """


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode, and afterwards each module back in the mode it was in."""
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
    """Bring maps to their images' size and type, as alpha is (bilinear, align_corners False)."""
    return upsample_attention(maps.to(images.dtype), (images.shape[2], images.shape[3]))
