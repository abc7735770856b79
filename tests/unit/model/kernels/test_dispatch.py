"""The choice among the forms; each has its own tests."""

from __future__ import annotations

import pytest
import torch

from labn.model.kernels import compiled_lambda, dispatch, position_lambda
from labn.model.lambda_layer import LambdaLayer


@pytest.mark.parametrize(
    ("map_size", "value_depth", "expected"),
    [
        ((16, 16), 1, position_lambda.dense),
        ((2, 128), 16, position_lambda.dense),
        ((16, 17), 16, position_lambda.tiled),
        ((16, 17), 15, position_lambda.by_fft),
    ],
)
def test_the_size_and_the_value_depth_choose_the_form(map_size, value_depth, expected):
    assert dispatch._choose_position_lambda(map_size, value_depth) is expected


# Channels and side of each lambda layer, whose batches of 8 the dense form computes faster, by
# `python -m tests.bench shapes`: with vectors of 64 bytes (AVX512), and of 32 (AVX2).
RESNET50_AT_224 = [(64, 56), (128, 56), (128, 28), (256, 28), (256, 14), (512, 14), (512, 7)]
RESNET26_AT_112 = [(64, 28), (128, 28), (128, 14), (256, 14), (256, 7), (512, 7), (512, 4)]
CNN = [(8, 28), (8, 56), (8, 128)]
FASTER_DENSE = {
    64: {(512, 7), (512, 4)},
    32: {(256, 14), (512, 14), (256, 7), (512, 7), (512, 4)},
}


@pytest.mark.parametrize("num_bytes", [64, 32, 16])
def test_each_layer_computes_by_the_form_that_is_faster_with_such_vectors(num_bytes, monkeypatch):
    monkeypatch.setattr(dispatch.compiled_lambda, "is_available", lambda x: True)
    monkeypatch.setattr(dispatch.compiled_lambda, "vector_bytes", lambda: num_bytes)
    chosen = set()
    for channels, side in {*RESNET50_AT_224, *RESNET26_AT_112, *CNN}:
        queries = torch.empty(8, 4, 16, side**2, device="meta")
        values = torch.empty(8, channels // 4, side**2, device="meta")
        form = dispatch._choose_whole_layer(queries, values, (side, side))
        assert form in (position_lambda.dense_with_content, compiled_lambda.apply_lambdas)
        if form is position_lambda.dense_with_content:
            chosen.add((channels, side))
    # Unmeasured vectors are treated as those of AVX2.
    assert chosen == FASTER_DENSE.get(num_bytes, FASTER_DENSE[32])


def test_a_small_batch_leaves_small_maps_to_the_compiled_form(monkeypatch):
    monkeypatch.setattr(dispatch.compiled_lambda, "is_available", lambda x: True)
    monkeypatch.setattr(dispatch.compiled_lambda, "vector_bytes", lambda: 64)
    queries, values = torch.empty(1, 4, 16, 49), torch.empty(1, 128, 49)
    form = dispatch._choose_whole_layer(queries, values, (7, 7))
    assert form is compiled_lambda.apply_lambdas


def test_a_layer_computes_by_the_chosen_form_where_no_kernel_is_compiled(monkeypatch):
    seen = []

    def choose(map_size, value_depth):
        seen.append((map_size, value_depth))
        return lambda *case: seen.append(case[-1]) or position_lambda.dense(*case)

    monkeypatch.setattr(dispatch.compiled_lambda, "is_available", lambda x: False)
    monkeypatch.setattr(dispatch, "_choose_position_lambda", choose)
    LambdaLayer(32)(torch.randn(1, 32, 5, 7))

    assert seen == [((5, 7), 8), (5, 7)]


def test_an_accelerator_computes_the_same_layer_by_products(monkeypatch):
    torch.manual_seed(0)
    layer = LambdaLayer(32, stride=2).double()
    x = torch.randn(2, 32, 9, 11, dtype=torch.float64, requires_grad=True)
    inputs = [x, *layer.parameters()]
    expected = layer(x)
    expected_gradients = torch.autograd.grad(expected.square().sum(), inputs)
    calls = []
    monkeypatch.setattr(dispatch, "is_accelerator", lambda x: True)
    monkeypatch.setattr(dispatch.compiled_lambda, "is_available", lambda x: False)
    apply = dispatch.product_lambda.apply_lambdas
    monkeypatch.setattr(
        dispatch.product_lambda, "apply_lambdas", lambda *a: calls.append(1) or apply(*a)
    )
    found = layer(x)
    assert calls == [1]
    assert torch.allclose(found, expected, atol=1e-12)
    gradients = torch.autograd.grad(found.square().sum(), inputs)
    for one, other in zip(gradients, expected_gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-9)


def test_sums_over_positions_are_in_half_precision_on_an_accelerator_only(monkeypatch):
    x = torch.zeros(1, dtype=torch.bfloat16)
    assert dispatch.product_dtype(x) == torch.float32
    monkeypatch.setattr(dispatch, "is_accelerator", lambda x: True)
    assert dispatch.product_dtype(x) == torch.bfloat16
    assert dispatch.product_dtype(x.double()) == torch.float64
