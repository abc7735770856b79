"""Comparison of the outputs of two runs, bit by bit."""

from __future__ import annotations

from typing import Any

import torch


def assert_same(actual: Any, expected: Any, where: str = "state") -> None:
    """Compare trees of tensors and plain values bit by bit."""
    assert type(actual) is type(expected), where
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys(), where
        for key in expected:
            assert_same(actual[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected), where
        for place, (one, other) in enumerate(zip(actual, expected, strict=True)):
            assert_same(one, other, f"{where}[{place}]")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected), where
    else:
        assert actual == expected, where
