"""The choice among the forms of torch; the compiled ones have their own tests."""

from __future__ import annotations

import pytest

from labn.model.kernels import dispatch, position_lambda


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
