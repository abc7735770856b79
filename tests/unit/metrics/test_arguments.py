from __future__ import annotations

import numpy as np
import pytest
import torch

from labn.metrics.arguments import (
    as_images,
    as_labels,
    as_mask,
    as_numbers,
    as_share,
    as_tensor,
    check_count,
)

INTEGERS = (
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32,
    torch.uint64,
)  # fmt: skip
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", (*INTEGERS, *FLOATS, torch.bool, torch.float8_e4m3fn))
def test_every_real_type_is_converted_exactly(dtype):
    values = torch.tensor([[0, 1], [1, 0]]).to(dtype)
    numbers = as_numbers("maps", values)
    assert numbers.tolist() == [[0.0, 1.0], [1.0, 0.0]]
    assert numbers.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert as_mask("masks", values).tolist() == [[False, True], [True, False]]


def test_lists_are_read_as_arrays_and_what_is_no_array_is_refused():
    rows = [torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])]
    assert as_numbers("maps", [[0, 1], [1, 0]]).tolist() == as_numbers("maps", rows).tolist()
    assert as_labels([0, 1], 2).tolist() == [0, 1]
    for uneven in ([[0.0], [0.0, 1.0]], (rows[0], torch.zeros(3))):
        with pytest.raises(ValueError, match=r"maps: got a (list|tuple) that is no array"):
            as_tensor("maps", uneven)


def test_counts_are_integers_and_shares_lie_between_0_and_1():
    for count in (1, np.int64(3)):
        check_count("patch_size", count, "1 to 3", most=3)
    for wrong in (0, 4, 2.0, 2.5, "2", True, None):
        with pytest.raises(ValueError, match=f"patch_size: got {wrong!r}, must be 1 to 3"):
            check_count("patch_size", wrong, "1 to 3", most=3)
    assert [as_share("theta_alpha", one) for one in (0, 1, np.float32(0.5))] == [0, 1, 0.5]
    for wrong in (-0.1, 1.1, float("nan"), "0.5"):
        with pytest.raises(ValueError, match=f"theta_alpha: got {wrong!r}, must be 0 to 1"):
            as_share("theta_alpha", wrong)


def test_large_integers_keep_their_last_digit():
    assert as_numbers("maps", torch.tensor([2**24 + 1, 0])).tolist() == [2**24 + 1, 0]
    with pytest.raises(ValueError, match=r"maps: got torch.int64 of shape \(1,\).*below 2\*\*53"):
        as_numbers("maps", torch.tensor([2**53 + 1]))


def test_arrays_of_any_layout_are_read_and_not_written_to():
    array = np.arange(6, dtype=">i2").reshape(2, 3)[:, ::-1]
    array.setflags(write=False)
    assert as_numbers("maps", array).tolist() == array.tolist()
    assert as_numbers("maps", np.zeros((0, 3), dtype=np.int64)).shape == (0, 3)


@pytest.mark.parametrize(
    "values",
    [torch.tensor([1j]), np.array([1j]), np.array(["1"]), np.array([None]), np.longdouble([1])],
)
def test_what_is_no_real_number_is_refused_with_its_type_and_shape(values):
    with pytest.raises(ValueError, match=r"maps: got .* of shape \(1,\), must be .*numbers"):
        as_numbers("maps", values)


@pytest.mark.parametrize("inside", [1, 255])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_masks_of_image_files_are_those_of_booleans(inside, dtype):
    if dtype == torch.uint8 or inside == 1:
        mask = torch.tensor([True, False])
        assert torch.equal(as_mask("masks", mask.to(dtype) * inside), mask)
    assert as_mask("masks", torch.full((2,), inside, dtype=dtype)).all()
    assert not as_mask("masks", torch.zeros(2, dtype=dtype)).any()


@pytest.mark.parametrize("values", [[0, 1, 2], [0.0, 0.3, 1.0], [-1, 0, 0], [0.0, float("nan"), 1]])
def test_a_mask_of_several_labels_or_shares_is_refused(values):
    with pytest.raises(ValueError, match=r"masks: got torch\.\w+ of shape \(3,\) with .* values"):
        as_mask("masks", torch.tensor(values))


def test_labels_are_integers_one_for_each_image():
    assert as_labels(torch.tensor([True, False]), 2).tolist() == [1, 0]
    for wrong in (torch.tensor([0.0, 1.0]), torch.tensor([[0], [1]]), torch.tensor([0])):
        with pytest.raises(ValueError, match=r"labels: got torch\.\w+ of shape .*\(2,\)"):
            as_labels(wrong, 2)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, 4, 4), torch.zeros(1, 3, 0, 4),
        torch.zeros(1, 0, 4, 4), np.zeros((1, 3, 4, 4), dtype=np.int64),
    ],
)  # fmt: skip
def test_images_of_bytes_of_another_rank_or_without_pixels_are_refused(images):
    with pytest.raises(ValueError, match=r"images: got torch\.\w+ of shape \(.*\), must be floats"):
        as_images(images)
