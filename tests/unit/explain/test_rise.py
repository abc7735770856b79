from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from explained import (
    CHANNELS,
    NUM_CLASSES,
    make_classifier,
    make_images,
    make_labn,
    predictor,
    upsampled,
)
from torch.utils._python_dispatch import TorchDispatchMode

from labn.explain.rise import Rise, draw_masks, rise

# The replica sums in another order, in the same float64.
ROUNDING = 1e-12


def make_predict(seed=0):
    return predictor(make_classifier(seed))


def mask_images(masks):
    """Make every mask as a whole image: upsample one cell more than the image, then crop."""
    height, width = masks.image_size
    grids, offsets = masks.grids_ngk.numpy().astype(np.float64), masks.offsets.numpy()
    size = grids.shape[1]
    sides = math.ceil(height / size), math.ceil(width / size)
    return np.stack(
        [
            upsampled(grid, (size + 1) * sides[0], (size + 1) * sides[1])[
                top : top + height, left : left + width
            ]
            for grid, (top, left) in zip(grids, offsets, strict=True)
        ]
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("height", "width", "grid_size"), [(14, 14, 7), (13, 18, 7), (8, 5, 3)])
def test_the_map_agrees_with_a_replica_that_makes_every_mask(seed, height, width, grid_size):
    predict = make_predict(seed)
    images = make_images(2, height, width, seed)
    result = rise(
        predict,
        images,
        num_masks=11,
        grid_size=grid_size,
        keep_probability=0.4,
        seed=seed,
        batch_size=4,
    )
    masks = mask_images(draw_masks(11, (height, width), grid_size, 0.4, seed))
    for image, saliency in zip(images, result, strict=True):
        expected = np.zeros((NUM_CLASSES, height, width))
        for mask in masks:
            with torch.no_grad():
                scores = predict((image * torch.from_numpy(mask))[None])[0].tolist()
            for label, score in enumerate(scores):
                expected[label] += score * mask / (11 * 0.4)
        np.testing.assert_allclose(saliency, expected, atol=ROUNDING)


@pytest.mark.parametrize("keep_probability", [0.1, 0.3, 0.5, 0.8])
def test_a_cell_is_kept_with_the_probability_asked_for(keep_probability):
    grids = draw_masks(2000, (14, 14), 7, keep_probability, seed=0).grids_ngk
    deviation = math.sqrt(keep_probability * (1 - keep_probability) / grids.numel())
    assert grids.double().mean().item() == pytest.approx(keep_probability, abs=4 * deviation)


def test_every_offset_up_to_a_cell_is_drawn_equally_often():
    masks = draw_masks(12_000, (21, 30), 7, 0.5, seed=0)  # cells of 3 x 5
    for axis, side in enumerate((3, 5)):
        counts = torch.bincount(masks.offsets[:, axis], minlength=side + 1)
        assert len(counts) == side + 1
        share = 1 / (side + 1)
        deviation = math.sqrt(12_000 * share * (1 - share))
        assert (counts - 12_000 * share).abs().max() < 4 * deviation


def all_masks(length, size):
    """Every mask of a square image that p = 0.5 can draw, each as likely as any other."""
    side = length // size
    masks = []
    for cells in itertools.product([0.0, 1.0], repeat=size**2):
        whole = upsampled(np.array(cells).reshape(size, size), (size + 1) * side, length + side)
        masks += [
            whole[top : top + length, left : left + length]
            for top in range(side + 1)
            for left in range(side + 1)
        ]
    return np.stack(masks)


def test_the_map_of_a_linear_model_is_unbiased():
    generator = np.random.default_rng(0)
    weights, image = generator.standard_normal((2, 6, 6))
    masks = all_masks(6, 2)
    terms = 2 * (masks * image * weights).sum(axis=(1, 2))[:, None, None] * masks
    num_masks = 20_000
    deviation = terms.std(axis=0) / math.sqrt(num_masks)

    readout = torch.from_numpy(weights).flatten()
    result = rise(
        lambda images: (images.flatten(1) @ readout)[:, None],
        torch.from_numpy(image)[None, None],
        num_masks=num_masks,
        grid_size=2,
        batch_size=2000,
    )
    # 36 pixels, of which one lies beyond 4.5 deviations once in 4000 seeds.
    assert (np.abs(result[0, 0].numpy() - terms.mean(axis=0)) < 4.5 * deviation).all()


def test_the_map_of_a_linear_model_follows_its_weights():
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    weights = torch.exp(-((y - 8) ** 2 + (x - 19) ** 2) / 40) - torch.exp(
        -((y - 20) ** 2 + (x - 8) ** 2) / 40
    )
    result = rise(
        lambda images: (images.flatten(1) @ weights.flatten())[:, None],
        torch.ones(1, 1, 28, 28),
        num_masks=2000,
        batch_size=500,
    )
    # Cells of 4 pixels blur the weights, and 2000 masks leave noise.
    assert torch.corrcoef(torch.stack([result.flatten(), weights.flatten()]))[0, 1] > 0.9


def test_with_every_cell_kept_the_map_is_the_probability_everywhere():
    images, predict = make_images(2), make_predict()
    result = rise(predict, images, num_masks=3, keep_probability=1.0)
    expected = predict(images).detach()[:, :, None, None].expand_as(result)
    torch.testing.assert_close(result, expected, rtol=0, atol=ROUNDING)


def test_the_classes_maps_add_up_to_the_mean_mask():
    images = make_images(1)
    result = rise(make_predict(), images, num_masks=9)
    masks = draw_masks(9, (24, 32), 7, 0.5, seed=0).expand(slice(None), images)
    expected = masks.mean(dim=0)[None] / 0.5
    torch.testing.assert_close(result.sum(dim=1), expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("batch_size", [1, 3, 10, 64])
def test_the_map_does_not_depend_on_the_batch_size(batch_size):
    images, predict = make_images(2), make_predict()
    expected = rise(predict, images, num_masks=10, batch_size=7)
    result = rise(predict, images, num_masks=10, batch_size=batch_size)
    torch.testing.assert_close(result, expected, rtol=0, atol=ROUNDING)


def test_every_image_sees_the_same_masks():
    seen = []

    def predict(images):
        seen.append(images[:, 0])
        return torch.ones(len(images), 1)

    rise(predict, torch.ones(2, 1, 14, 14), num_masks=6, batch_size=6)
    assert len(seen) == 2
    assert torch.equal(seen[0], seen[1])
    assert seen[0].min() < 0.1
    assert seen[0].max() > 0.9


def test_the_seed_decides_the_masks():
    images, predict = make_images(1), make_predict()
    first, again, other = (rise(predict, images, num_masks=5, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


class LargestTensor(TorchDispatchMode):
    """Notes how many elements the largest tensor has that any operation yields."""

    def __init__(self):
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.num_elements = max(self.num_elements, tensor.numel())
        return result


def test_memory_does_not_grow_with_the_masks_times_the_image():
    images = torch.ones(2, 3, 56, 56)
    with LargestTensor() as largest:
        rise(lambda x: x.mean(dim=(2, 3)), images, num_masks=1000, batch_size=16)
    # The masked images of one batch; 1000 masks at full size would be 21 times as large.
    assert largest.num_elements == 16 * 3 * 56 * 56


def test_each_call_of_predict_is_full_and_is_reported():
    sizes, num_calls = [], 0

    def predict(images):
        sizes.append(len(images))
        return torch.ones(len(images), 2)

    def on_batch():
        nonlocal num_calls
        num_calls += 1

    rise(predict, torch.ones(2, 1, 8, 8), num_masks=10, batch_size=4, on_batch=on_batch)
    assert sizes == [4, 4, 4, 4, 2, 2]
    assert num_calls == 6


def test_predict_runs_without_gradients_and_the_result_can_be_changed():
    model = make_classifier()
    result = rise(predictor(model), make_images(1), num_masks=2)
    assert not result.requires_grad
    result += 1
    assert all(parameter.grad is None for parameter in model.parameters())


def test_under_autocast_masks_and_sums_keep_the_images_precision():
    images = make_images(1, dtype=torch.float32)
    expected = rise(lambda x: x.mean(dim=(2, 3)), images, num_masks=20)
    with torch.autocast("cpu", torch.bfloat16):
        result = rise(lambda x: x.mean(dim=(2, 3)), images, num_masks=20)
    assert torch.equal(result, expected)


def test_as_a_method_it_maps_the_labels_class():
    images, labels = make_images(3), torch.tensor([2, 0, 1])
    model = make_labn()
    method = Rise(predict=predictor(model), num_masks=6, grid_size=4, keep_probability=0.3, seed=5)
    maps = method.explain(images, labels, ["a", "b", "c"])
    every = rise(predictor(model), images, num_masks=6, grid_size=4, keep_probability=0.3, seed=5)
    assert every.shape == (3, NUM_CLASSES, 24, 32)
    torch.testing.assert_close(maps, torch.stack([every[i, y] for i, y in enumerate(labels)]))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_masks": 0}, r"num_masks: got 0, must be at least 1"),
        ({"grid_size": 0}, r"grid_size: got 0, must be at least 1"),
        ({"batch_size": 0}, r"batch_size: got 0, must be at least 1"),
        ({"keep_probability": 0.0}, r"keep_probability: got 0.0, must be above 0 and at most 1"),
        ({"keep_probability": 1.5}, r"keep_probability: got 1.5"),
    ],
)
def test_a_setting_out_of_its_range_is_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        rise(make_predict(), make_images(1), **({"num_masks": 4} | setting))


def test_a_predict_may_return_an_array_or_a_list():
    predict, images = make_predict(), make_images(1)
    expected = rise(predict, images, num_masks=4)
    for as_other in (torch.Tensor.numpy, torch.Tensor.tolist):
        other = rise(lambda x, f=as_other: f(predict(x)), images, num_masks=4)
        torch.testing.assert_close(other, expected)


@pytest.mark.parametrize("scores", [torch.ones(4), torch.ones(3, 2)])
def test_a_predict_that_does_not_give_a_row_an_image_is_refused(scores):
    with pytest.raises(ValueError, match=r"predict: got shape .* for 4 images"):
        rise(lambda _: scores, torch.ones(1, CHANNELS, 8, 8), num_masks=4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_images_in_half_precision_have_masks_and_sums_in_single(dtype):
    images = make_images(1, dtype=torch.float32)

    def predict(batch):
        return batch[:, :2, :10].float().mean(dim=(2, 3)).to(batch.dtype)

    expected = rise(predict, images, num_masks=500)
    result = rise(predict, images.to(dtype), num_masks=500)
    assert result.dtype == torch.float32
    # The images, their masked copies and the probabilities are rounded, each by half of eps at
    # most; sums in the images' type would be off by a step of 2 ** -2 at 500 masks in bfloat16.
    atol = 2 * torch.finfo(dtype).eps * float(images.abs().max())
    torch.testing.assert_close(result, expected, atol=atol, rtol=0)


@pytest.mark.parametrize(
    "images",
    [torch.ones(1, 3, 8, 8, dtype=torch.uint8), torch.ones(3, 8, 8), torch.ones(0, 3, 8, 8)],
)
def test_images_that_have_no_map_are_refused(images):
    with pytest.raises(ValueError, match=r"images: got .*shape \("):
        rise(lambda x: x.mean(dim=(2, 3)), images, num_masks=4)
