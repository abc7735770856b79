"""The choice among the forms of torch; the compiled ones have their own tests."""

from __future__ import annotations

import pytest
import torch

from labn.model.kernels import dispatch, position_lambda
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
