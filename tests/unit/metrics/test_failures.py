from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labn.metrics.failures import FAILURES, ErrorThresholds, classify_failures, count_failures

THETA_ALPHA = 0.75


def maps_with(*num_attended):
    """Maps of 40 x 50 pixels, so many of which are attended."""
    saliency = torch.full((len(num_attended), 2000), 0.1)
    for row, count in zip(saliency, num_attended, strict=True):
        row[:count] = 0.9
    return saliency.reshape(-1, 40, 50)


def classify(pid, is_correct, saliency, thresholds=None, theta_alpha=THETA_ALPHA):
    return classify_failures(
        torch.tensor(pid, dtype=torch.float64),
        torch.tensor(is_correct),
        saliency,
        theta_alpha,
        thresholds,
    )


@pytest.mark.parametrize(
    ("pid", "is_correct", "num_attended", "code"),
    [
        (0.2, False, 0, None),
        (0.9, False, 2000, None),
        (math.nextafter(0.2, 0), False, 2000, "IP"),
        (-1.0, False, 0, "IP"),
        (0.1, True, 1001, "OA"),
        (0.1, True, 1000, "WA"),
        (0.1, True, 2, "WA"),
        (0.1, True, 1, "IA"),
        (0.1, True, 0, "IA"),
    ],
)
def test_each_failure_begins_strictly_past_its_threshold(pid, is_correct, num_attended, code):
    assert classify([pid], [is_correct], maps_with(num_attended)) == (code,)


def replica(pid, is_correct, saliency_hw, thresholds):
    """The rules of the error analysis, one pixel at a time."""
    num_attended = sum(value > THETA_ALPHA for row in saliency_hw for value in row)
    num_pixels = len(saliency_hw) * len(saliency_hw[0])
    rules = {
        None: pid >= thresholds.pid,
        "IP": not is_correct,
        "OA": num_attended > thresholds.over_attended * num_pixels,
        "IA": num_attended < thresholds.insufficiently_attended * num_pixels,
        "WA": True,
    }
    return next(code for code, applies in rules.items() if applies)


# Eighths, so that shares of the 64 pixels meet them exactly.
SHARES = st.lists(st.integers(0, 8).map(lambda k: k / 8), min_size=2, max_size=2).map(sorted)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.integers(-4, 4), st.booleans(), st.integers(0, 64)), min_size=1, max_size=5
    ),
    st.integers(-4, 4),
    SHARES,
)
def test_codes_agree_with_a_replica_at_any_thresholds(rows, pid_threshold, shares):
    thresholds = ErrorThresholds(
        pid=pid_threshold / 4, insufficiently_attended=shares[0], over_attended=shares[1]
    )
    pid = torch.tensor([p / 4 for p, _, _ in rows])
    is_correct = torch.tensor([c for _, c, _ in rows], dtype=torch.bool)
    order = torch.from_numpy(np.random.default_rng(0).permutation(64))
    saliency = torch.stack([(order < k).double().reshape(8, 8) for *_, k in rows])
    codes = classify_failures(pid, is_correct, saliency, THETA_ALPHA, thresholds)
    maps = saliency.tolist()
    assert codes == tuple(
        replica(p / 4, c, hw, thresholds) for (p, c, _), hw in zip(rows, maps, strict=True)
    )


def test_no_images_have_no_failures():
    nothing = torch.zeros(0)
    assert classify_failures(nothing, nothing > 0, torch.zeros(0, 8, 8), THETA_ALPHA) == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pixel_at_theta_alpha_is_not_attended_in_any_precision(dtype):
    # 0.2 is larger in float32 than in float64, yet the network compares float32 with float32.
    at_threshold = torch.full((1, 4, 4), 0.2, dtype=dtype)
    assert classify([0.0], [True], at_threshold, theta_alpha=0.2) == ("IA",)


def test_the_defaults_are_those_of_the_papers_analysis():
    assert ErrorThresholds() == ErrorThresholds(
        pid=0.2, over_attended=0.5, insufficiently_attended=0.001
    )


def test_counts_follow_table_5_and_leave_out_what_did_not_fail():
    # The paper's IDRiD column.
    codes = ["WA"] + [None] * 71 + ["OA"] * 16 + ["IA"] * 3 + ["IP"] * 12
    counts = count_failures(codes)
    assert list(counts.items()) == [("IP", 12), ("OA", 16), ("IA", 3), ("WA", 1)]
    assert count_failures([]) == dict.fromkeys(FAILURES, 0)


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ({"over_attended": 1.1}, r"0 <= insufficiently_attended <= .*over_attended=1.1"),
        ({"insufficiently_attended": -0.1}, r"must hold, but got .*insufficiently_attended=-0.1"),
        ({"insufficiently_attended": 0.6}, r"must hold, but got .*insufficiently_attended=0.6"),
        ({"over_attended": math.nan}, "must hold"),
        ({"pid": 1.5}, "pid: got 1.5, must be -1 to 1"),
        ({"pid": math.nan}, "pid: got nan"),
    ],
)
def test_thresholds_out_of_range_are_refused(thresholds, message):
    with pytest.raises(ValueError, match=message):
        ErrorThresholds(**thresholds)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pid": torch.zeros(3)}, r"got shapes \(3,\), \(2,\) and \(2, 4, 4\), must be"),
        ({"pid": torch.tensor(0.0)}, r"got shapes \(\), "),
        ({"is_correct": torch.ones(2, 1) > 0}, r"got shapes \(2,\), \(2, 1\)"),
        ({"saliency": torch.zeros(2, 1, 4, 4)}, r"and \(2, 1, 4, 4\), must be"),
        ({"pid": torch.tensor([0.0, math.nan])}, "pid: got nan for image 1, must be finite"),
        ({"saliency": torch.full((2, 4, 4), math.inf)}, "saliency: got NaN or infinity"),
        (
            {"saliency": torch.tensor([[[0]], [[255]]], dtype=torch.uint8)},
            "saliency: got 255 to 255 in the map of image 1, must be attention, from 0 to 1",
        ),
        ({"theta_alpha": 1.5}, "theta_alpha: got 1.5, must be 0 to 1"),
    ],
)
def test_what_breaks_a_rule_is_refused_in_one_line_that_names_it(changes, message):
    arguments = {
        "pid": torch.zeros(2),
        "is_correct": torch.ones(2) > 0,
        "saliency": torch.zeros(2, 4, 4),
        "theta_alpha": 0.5,
    } | changes
    with pytest.raises(ValueError, match=message) as raised:
        classify_failures(**arguments)
    assert "\n" not in str(raised.value)
