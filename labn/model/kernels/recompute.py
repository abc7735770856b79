"""What the backward pass recomputes: normalised maps, where keeping them costs more, and blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from labn.model.kernels import compiled_norm
from labn.model.kernels.batch_norm import kept_statistics

_in_block: ContextVar[bool] = ContextVar("_in_block", default=False)


def apply(layer: nn.Module, y: Tensor) -> Tensor:
    """Apply a layer to a normalised map without saving the map for the backward pass."""
    with recomputed(y):
        result: Tensor = layer(y)
    return result


def recomputed(*maps: Tensor) -> AbstractContextManager[object]:
    """Recompute normalised maps, or views of all of them, in the backward pass of what follows.

    Recomputing them is one pass over what batch norm saves anyway, and costs less than keeping
    them. Changes nothing for maps that the compiled kernel did not compute.
    """
    if torch.compiler.is_compiling() or _in_block.get():
        return nullcontext()
    sources = [y if y._base is None else y._base for y in maps]
    functions = {_key(y): f for y in sources if (f := compiled_norm.recomputation(y)) is not None}
    if not functions:
        return nullcontext()

    def pack(tensor: Tensor) -> Tensor | Callable[[], Tensor]:
        recompute = functions.get(_key(tensor))
        if recompute is None:
            return tensor
        size, stride = tensor.size(), tensor.stride()
        return lambda: recompute().as_strided(size, stride)  # the tensor may be a view

    def unpack(saved: Tensor | Callable[[], Tensor]) -> Tensor:
        return saved if isinstance(saved, Tensor) else saved()

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def block(forward: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> Tensor:
    """Apply a module's ``forward`` and keep only its input; the backward pass runs it again.

    The second time batch norm leaves its running statistics as they are, so that nothing but
    memory and time differs.
    """
    result: Tensor = checkpoint(
        forward,
        x,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (_inside_block(), _second_time(module)),
    )
    return result


@contextmanager
def _inside_block() -> Iterator[None]:
    """Recompute no single map."""
    token = _in_block.set(True)
    try:
        yield
    finally:
        _in_block.reset(token)


@contextmanager
def _second_time(module: nn.Module) -> Iterator[None]:
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    counts = [norm.num_batches_tracked.clone() for norm in norms]  # type: ignore[union-attr]
    try:
        with _inside_block(), kept_statistics(module):
            yield
    finally:  # also where it stops early, by an exception, since all has been computed
        for norm, count in zip(norms, counts, strict=True):
            norm.num_batches_tracked.copy_(count)  # type: ignore[union-attr]


def _key(x: Tensor) -> tuple[int, int, torch.dtype]:
    """Return what identifies a tensor, or a view of all of it, without keeping it alive."""
    return x.data_ptr(), x.numel(), x.dtype
