from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from labn.model.kernels import position_lambda as module
from labn.model.kernels.position_lambda import (
    by_convolution,
    by_fft,
    dense,
    dense_with_content,
    tiled,
)

PATHS = [dense, tiled, by_fft, by_convolution]

# Sums of a few thousand float64 products of order 1, in another order.
ROUNDING = 1e-10


def make_case(seed, *, map_size, field, num_images=2, num_heads=3, key_depth=2, value_depth=4):
    rng = np.random.default_rng(seed)
    num_positions = map_size[0] * map_size[1]
    shapes = (
        (num_images, num_heads, key_depth, num_positions),
        (num_images, value_depth, num_positions),
        (key_depth, field, field),
    )
    return tuple(torch.from_numpy(rng.standard_normal(shape)) for shape in shapes)


def slow_position_lambda(queries, values, kernel, map_size):
    """Compute every position's lambda (eq. 6), pixel by pixel, and apply it (eq. 7)."""
    q_bhkm, w_krr = queries.numpy(), kernel.numpy()
    height, width = map_size
    v_bvyx = values.numpy().reshape(*values.shape[:2], height, width)
    reach = w_krr.shape[-1] // 2
    y_bhvm = np.zeros((*q_bhkm.shape[:2], v_bvyx.shape[1], height * width))
    for image, v_vyx in enumerate(v_bvyx):
        for y in range(height):
            for x in range(width):
                lambda_kv = np.zeros((w_krr.shape[0], v_vyx.shape[0]))
                for v_y in range(max(0, y - reach), min(height, y + reach + 1)):
                    for v_x in range(max(0, x - reach), min(width, x + reach + 1)):
                        tap_k = w_krr[:, v_y - y + reach, v_x - x + reach]
                        lambda_kv += np.outer(tap_k, v_vyx[:, v_y, v_x])
                m = y * width + x
                for head in range(q_bhkm.shape[1]):
                    y_bhvm[image, head, :, m] = lambda_kv.T @ q_bhkm[image, head, :, m]
    return y_bhvm


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("map_size", "field"),
    [
        ((1, 1), 3),
        ((1, 9), 5),
        ((5, 3), 1),
        ((4, 6), 23),  # smaller than the kernel
        ((9, 8), 5),  # larger than the kernel and than a tile
        ((15, 7), 9),  # rectangular; as wide as a tile
    ],
)
def test_each_path_agrees_with_the_definition(path, map_size, field):
    queries, values, kernel = make_case(0, map_size=map_size, field=field)
    expected = slow_position_lambda(queries, values, kernel, map_size)
    y = path(queries, values, kernel, map_size)
    np.testing.assert_allclose(y, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(
    ("map_size", "value_depth"), [((14, 14), 8), ((28, 28), 16), ((17, 30), 17), ((20, 20), 3)]
)
def test_all_paths_agree_at_the_networks_own_sizes(map_size, value_depth):
    # With 23x23 taps, tiles are worked through in several chunks, the last one smaller.
    sizes = {"num_heads": 4, "key_depth": 16, "value_depth": value_depth, "num_images": 1}
    queries, values, kernel = make_case(2, map_size=map_size, field=23, **sizes)
    one, *others = (path(queries, values, kernel, map_size) for path in PATHS)
    for other in others:
        torch.testing.assert_close(other, one, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("path", PATHS)
def test_gradients_agree_with_finite_differences(path, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_BYTES", 1)  # one tile a chunk: gradients add up over them
    sizes = {"num_heads": 2, "value_depth": 2, "key_depth": 2, "num_images": 1}
    case = make_case(3, map_size=(8, 3), field=5, **sizes)
    inputs = tuple(tensor.requires_grad_() for tensor in case)
    assert torch.autograd.gradcheck(lambda q, v, w: path(q, v, w, (8, 3)), inputs)


def test_gradients_of_all_paths_agree_over_images_and_chunks():
    map_size, field = (14, 21), 23
    gradients = []
    for path in PATHS:
        case = make_case(4, map_size=map_size, field=field, num_images=3, value_depth=3)
        inputs = [tensor.requires_grad_() for tensor in case]
        weights = torch.from_numpy(np.random.default_rng(5).standard_normal((3, 3, 3, 14 * 21)))
        (path(*inputs, map_size) * weights).sum().backward()
        gradients.append([tensor.grad for tensor in inputs])
    # A kernel tap's gradient sums over images, heads, values and positions: terms by the thousand.
    for others in gradients[1:]:
        torch.testing.assert_close(others, gradients[0], rtol=1e-10, atol=ROUNDING)


@pytest.mark.parametrize("path", PATHS)
def test_the_result_is_linear_in_the_queries(path):
    queries, values, kernel = make_case(6, map_size=(9, 8), field=5)
    others = make_case(7, map_size=(9, 8), field=5)[0]
    together = path(2 * queries - 3 * others, values, kernel, (9, 8))
    apart = 2 * path(queries, values, kernel, (9, 8)) - 3 * path(others, values, kernel, (9, 8))
    torch.testing.assert_close(together, apart, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("path", PATHS)
def test_a_single_tap_moves_the_values_and_leaves_the_border_empty(path):
    kernel = torch.zeros(1, 5, 5, dtype=torch.float64)
    kernel[0, 3, 0] = 1  # one row below the position, two columns to its left
    values = torch.arange(1.0, 73.0, dtype=torch.float64).reshape(1, 1, 72)
    queries = torch.ones(1, 1, 1, 72, dtype=torch.float64)
    expected = torch.zeros(9, 8, dtype=torch.float64)
    expected[:-1, 2:] = values.view(9, 8)[1:, :-2]
    moved = path(queries, values, kernel, (9, 8)).view(9, 8)
    torch.testing.assert_close(moved, expected, rtol=0, atol=ROUNDING)


def test_the_dense_form_with_content_adds_the_content_lambda():
    queries, values, kernel = make_case(10, map_size=(4, 5), field=3)
    content = torch.from_numpy(np.random.default_rng(11).standard_normal((2, 2, 4)))
    found = dense_with_content(queries.permute(0, 3, 1, 2), values.mT, content, kernel, (4, 5))
    position = torch.from_numpy(slow_position_lambda(queries, values, kernel, (4, 5)))
    expected = position + torch.einsum("bhkm,bkv->bhvm", queries, content)
    torch.testing.assert_close(found.permute(0, 2, 3, 1), expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("path", PATHS)
def test_an_image_adds_nothing_of_positions_times_positions_to_what_is_saved(path):
    def num_saved(num_images):
        sizes = []
        case = make_case(8, map_size=(28, 28), field=3, num_images=num_images, value_depth=16)
        with saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            path(*(tensor.requires_grad_() for tensor in case), (28, 28))
        return sum(sizes)

    num_inputs = 784 * (3 * 2 + 16)
    added = num_saved(3) - num_saved(2)
    assert 0 < added < 784**2 / 2
    # Tiles see their margins too, and the FFT keeps a spectrum: a few times the inputs.
    assert added < 8 * num_inputs


@pytest.mark.parametrize("path", PATHS)
def test_queries_that_are_views_are_read_right(path):
    queries, values, kernel = make_case(9, map_size=(9, 8), field=5)
    strided = torch.stack([queries, queries], dim=-1)[..., 0]
    flipped = values.transpose(1, 2).contiguous().transpose(1, 2)
    assert not strided.is_contiguous() and not flipped.is_contiguous()
    torch.testing.assert_close(
        path(strided, flipped, kernel, (9, 8)), path(queries, values, kernel, (9, 8))
    )
