"""Lambdas as few, large products, against a loop over positions and the other implementations."""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from labn.model.kernels import position_lambda, product_lambda
from tests.gpu.counting import count_without_gpu

MAPS = [(7, 7, 4, 23), (14, 9, 3, 5), (33, 35, 2, 23), (40, 33, 3, 7)]
"""Height, width, values and reach; the last two are cut into tiles that reach beyond the map."""


def operands(
    height: int,
    width: int,
    values: int,
    reach: int,
    *,
    images: int = 2,
    heads: int = 3,
    depth: int = 4,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(height * width + values)
    shapes = (
        (images, height * width, heads, depth),
        (images, height * width, values),
        (images, depth, values),
        (depth, reach, reach),
    )
    return tuple(
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in shapes
    )


def by_loop(q: Tensor, v: Tensor, c: Tensor, w: Tensor, size: tuple[int, int]) -> Tensor:
    """Eq. 6 and 7 position by position, straight from the paper."""
    (height, width), margin = size, w.shape[-1] // 2
    y = torch.zeros(*q.shape[:3], v.shape[2], dtype=q.dtype)
    for row, column in itertools.product(range(height), range(width)):
        lambdas = c.clone()
        for dy, dx in itertools.product(range(-margin, margin + 1), repeat=2):
            if 0 <= row + dy < height and 0 <= column + dx < width:
                seen = v[:, (row + dy) * width + column + dx]
                lambdas += w[:, margin + dy, margin + dx][:, None] * seen[:, None]
        m = row * width + column
        y[:, m] = q[:, m] @ lambdas
    return y


def by_fft(q: Tensor, v: Tensor, c: Tensor, w: Tensor, size: tuple[int, int]) -> Tensor:
    queries = q.permute(0, 2, 3, 1)
    y_bhvm = position_lambda.by_fft(queries, v.mT, w, size)
    return (y_bhvm + torch.einsum("bhkm,bkv->bhvm", queries, c)).permute(0, 3, 1, 2)


def test_small_maps_equal_the_papers_sums():
    given = operands(6, 5, 2, 5)
    with torch.no_grad():
        expected = by_loop(*given, (6, 5))
        assert torch.allclose(product_lambda.apply_lambdas(*given, (6, 5)), expected, atol=1e-12)


@pytest.mark.parametrize("strip_bytes", [1, 1 << 30], ids=["image by image", "whole batch"])
@pytest.mark.parametrize("shape", MAPS)
def test_values_and_gradients_equal_those_by_fft(monkeypatch, shape, strip_bytes):
    monkeypatch.setattr(product_lambda, "STRIP_BYTES", strip_bytes)
    given, size = operands(*shape), shape[:2]
    expected, found = by_fft(*given, size), product_lambda.apply_lambdas(*given, size)
    assert torch.allclose(found, expected, atol=1e-11)
    gradient = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad(expected, given, gradient)
    gradients = torch.autograd.grad(found, given, gradient)
    for one, other in zip(gradients, expected_gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-11)


@pytest.mark.parametrize("shape", MAPS)
def test_gradients_are_equal_bit_by_bit_every_time(shape):
    given = operands(*shape)

    def gradients() -> tuple[Tensor, ...]:
        y = product_lambda.apply_lambdas(*given, shape[:2])
        return torch.autograd.grad(y.square().sum(), given)

    assert all(map(torch.equal, gradients(), gradients()))


class PeakMemory(TorchDispatchMode):
    """The most bytes that were alive at once of what was allocated in this mode."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.peak = 0, 0
        self._known = set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.alive += size
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


@pytest.mark.parametrize(("side", "values"), [(56, 16), (56, 32), (28, 64), (14, 128)])
@pytest.mark.parametrize("images", [32, 128])
def test_extra_memory_is_what_the_formula_says_and_at_most_a_strip(side, values, images):
    size, depth, reach = (side, side), 16, 23
    geometry = product_lambda.Geometry.of(size, reach)
    extra = geometry.extra_bytes(depth, values, 4)
    taps_bytes = 4 * depth * geometry.tiling.tile_height * geometry.tiling.tile_width
    taps_bytes *= geometry.seen[0] * geometry.seen[1]
    with FakeTensorMode():
        q = torch.empty(images, side * side, 4, depth, requires_grad=True)
        v = torch.empty(images, side * side, values, requires_grad=True)
        c, w = (
            torch.empty(images, depth, values),
            torch.empty(depth, reach, reach, requires_grad=True),
        )
        y = product_lambda.apply_lambdas(q, v, c, w, size)
        gradient = torch.empty_like(y)
        with PeakMemory() as memory:
            torch.autograd.grad(y, (q, v, w), gradient)
    results = 2 * 4 * (q.numel() + v.numel() + c.numel())  # of strips, and put together
    at_once = min(extra * images, max(extra, product_lambda.STRIP_BYTES))
    assert (
        memory.peak
        <= at_once + results + (images * extra > at_once) * 2 * taps_bytes + 4 * taps_bytes
    )
    assert memory.peak >= at_once / 2, "the formula asks for far more than is used"


@pytest.mark.parametrize(
    ("backbone", "split", "side", "limit", "growth"),
    [
        pytest.param("lambda_resnet50", 7, 224, 1500, 1.1, marks=pytest.mark.slow),
        ("lambda_cnn", 1, 512, 500, 1.2),
    ],
)
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_pass_launches_few_kernels_whatever_the_batch(
    backbone, split, side, limit, growth, precision
):
    small, large = (
        count_without_gpu(backbone, split=split, image_size=side, batch=batch, precision=precision)
        for batch in (32, 128)
    )
    assert small.total <= limit
    assert large.total <= min(limit, growth * small.total)


def test_products_over_positions_take_bf16_operands_under_autocast():
    counter = count_without_gpu(
        "lambda_resnet26", split=2, image_size=64, batch=2, precision="bf16"
    )
    assert counter.operand_types["contract"] == {torch.bfloat16}
    assert counter.operand_types["contract_backward"] == {torch.bfloat16}
    assert counter.operand_types["bmm"] == {torch.bfloat16}
