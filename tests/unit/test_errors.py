from __future__ import annotations

import pytest

from labn.errors import RunFailed, UserError, did_you_mean


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("lambda_cn", ' Did you mean "lambda_cnn"?'),
        ("lambda_resnet51", ' Did you mean "lambda_resnet50"?'),
        ("vgg", ""),
        ("", ""),
    ],
)
def test_the_nearest_known_word_is_offered_if_it_is_near(word, expected):
    assert did_you_mean(word, ["lambda_cnn", "lambda_resnet50", "lambda_resnet101"]) == expected


def test_nothing_is_offered_where_nothing_is_known():
    assert did_you_mean("lambda_cnn", iter(())) == ""


def test_a_failed_run_is_not_taken_for_the_user_s_mistake():
    assert not issubclass(RunFailed, UserError) and not issubclass(UserError, RunFailed)
