from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from labn.metrics.faithfulness import patch_insertion_deletion

GOLDEN = Path(__file__).parents[2] / "golden" / "rise-causal-metric.npz"

# The replica sums in another order, in the same float64.
ROUNDING = 1e-12


class Network:
    """A small nonlinear classifier in float64, whose every pixel matters differently."""

    def __init__(self, seed, channels, height, width, num_classes):
        rng = np.random.default_rng(seed)
        self.hidden = rng.standard_normal((channels * height * width, 6)) / 3
        self.readout = rng.standard_normal((6, num_classes))
        self.batch_sizes = []

    def __call__(self, images):
        self.batch_sizes.append(len(images))
        features = torch.tanh(images.double().flatten(1) @ torch.from_numpy(self.hidden))
        return (features @ torch.from_numpy(self.readout)).softmax(dim=1)

    def probability(self, image_chw, label):
        exponentials = np.exp(np.tanh(image_chw.ravel() @ self.hidden) @ self.readout)
        return exponentials[label] / exponentials.sum()


def make_case(seed, *, num_images=2, channels=3, height=7, width=9, num_classes=3):
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((num_images, channels, height, width))
    saliency = rng.random((num_images, height, width))
    labels = rng.integers(0, num_classes, num_images)
    baseline = rng.standard_normal((channels, height, width))
    network = Network(seed, channels, height, width, num_classes)
    return network, *map(torch.from_numpy, (images, saliency, labels, baseline))


def patches_by_importance(saliency_hw, patch_size):
    """List the patches as pixel lists, the most important first, ties in row-major order."""
    height, width = saliency_hw.shape
    ranked = []
    for top in range(0, height, patch_size):
        for left in range(0, width, patch_size):
            pixels = [
                (i, j)
                for i in range(top, min(top + patch_size, height))
                for j in range(left, min(left + patch_size, width))
            ]
            ranked.append((-max(saliency_hw[p] for p in pixels), top, left, pixels))
    return [pixels for *_, pixels in sorted(ranked, key=lambda patch: patch[:3])]


def replica(network, image, saliency, label, patch_size, baseline, num_points):
    """One image's curves and areas, a frame at a time."""
    patches = patches_by_importance(saliency, patch_size)
    total = len(patches)
    steps = range(total + 1)
    if num_points is not None:
        steps = sorted({round(total * k / (num_points - 1)) for k in range(num_points)})
    curves = []
    for start, source in ((baseline, image), (image, baseline)):
        curve = []
        for n in steps:
            frame = np.broadcast_to(start, image.shape).copy()
            for i, j in (pixel for patch in patches[:n] for pixel in patch):
                frame[:, i, j] = np.broadcast_to(source, image.shape)[:, i, j]
            curve.append(network.probability(frame, label))
        curves.append(curve)
    areas = [
        sum(
            (curve[k] + curve[k + 1]) / 2 * (steps[k + 1] - steps[k]) / total
            for k in range(len(steps) - 1)
        )
        for curve in curves
    ]
    return curves, areas, [n / total for n in steps]


def assert_replicated(network, images, saliency, labels, patch_size, baseline, num_points=None):
    result = patch_insertion_deletion(
        network,
        images,
        saliency,
        labels,
        patch_size=patch_size,
        baseline=baseline,
        num_points=num_points,
        batch_size=5,
    )
    for i in range(len(images)):
        (insertion, deletion), (insertion_auc, deletion_auc), fractions = replica(
            network,
            images[i].numpy(),
            saliency[i].numpy(),
            int(labels[i]),
            patch_size,
            np.asarray(baseline, dtype=np.float64),
            num_points,
        )
        np.testing.assert_allclose(result.insertion_curve[i], insertion, atol=ROUNDING)
        np.testing.assert_allclose(result.deletion_curve[i], deletion, atol=ROUNDING)
        np.testing.assert_allclose(result.insertion_auc[i], insertion_auc, atol=ROUNDING)
        np.testing.assert_allclose(result.deletion_auc[i], deletion_auc, atol=ROUNDING)
        np.testing.assert_allclose(result.pid[i], insertion_auc - deletion_auc, atol=ROUNDING)
        np.testing.assert_allclose(result.fractions, fractions, atol=ROUNDING)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("patch_size", [1, 2, 3, 7])
def test_curves_and_areas_agree_with_a_replica_that_paints_frame_by_frame(seed, patch_size):
    network, images, saliency, labels, baseline = make_case(seed)
    assert_replicated(network, images, saliency, labels, patch_size, baseline)


@pytest.mark.parametrize(("channels", "num_classes"), [(1, 2), (1, 5), (4, 2)])
def test_any_number_of_channels_and_classes_is_scored(channels, num_classes):
    network, images, saliency, labels, baseline = make_case(
        3, num_images=3, channels=channels, height=6, width=5, num_classes=num_classes
    )
    assert_replicated(network, images, saliency, labels, 4, baseline)


@pytest.mark.parametrize("levels", [1, 2])
def test_patches_of_equal_importance_are_taken_in_row_major_order(levels):
    network, images, saliency, labels, baseline = make_case(4, height=9, width=8)
    assert_replicated(network, images, (saliency * levels).floor(), labels, 2, baseline)


def test_a_map_below_zero_is_ranked_right_at_the_edges():
    network, images, saliency, labels, baseline = make_case(5)
    assert_replicated(network, images, saliency - 2, labels, 4, baseline)


@pytest.mark.parametrize("num_points", [2, 3, 8, 12, 13, 50])
def test_a_sampled_curve_keeps_the_true_positions_of_its_points(num_points):
    # 12 patches: 8 points lie unevenly, and 50 are more than there are.
    network, images, saliency, labels, baseline = make_case(6, height=5, width=7)
    assert_replicated(network, images, saliency, labels, 2, baseline, num_points)


@pytest.mark.parametrize("value", [0, 0.0, -1.5])
def test_a_number_is_a_baseline(value):
    network, images, saliency, labels, _ = make_case(7)
    assert_replicated(network, images, saliency, labels, 3, value)


def test_a_colour_is_a_baseline():
    network, images, saliency, labels, baseline = make_case(8)
    assert_replicated(network, images, saliency, labels, 3, baseline[:, :1, :1])


def test_single_pixels_against_zero_are_id_and_zero_is_an_image_of_zeros():
    network, images, saliency, labels, _ = make_case(9, height=4, width=5)
    score = patch_insertion_deletion(network, images, saliency, labels, patch_size=1, baseline=0.0)
    assert score.insertion_curve.shape == (2, 21)
    same = patch_insertion_deletion(
        network, images, saliency, labels, patch_size=1, baseline=torch.zeros(3, 4, 5)
    )
    for field in ("pid", "insertion_curve", "deletion_curve", "fractions"):
        assert torch.equal(getattr(score, field), getattr(same, field))


def test_maps_with_a_channel_axis_and_narrow_labels_are_read_alike():
    network, images, saliency, labels, baseline = make_case(10)
    settings = {"patch_size": 2, "baseline": baseline}
    plain = patch_insertion_deletion(network, images, saliency, labels, **settings)
    other = patch_insertion_deletion(network, images, saliency[:, None], labels.byte(), **settings)
    assert torch.equal(plain.insertion_curve, other.insertion_curve)


def test_maps_are_ranked_in_their_own_precision():
    # These steps vanish in float32, where the order would fall back to row-major.
    network, images, _, labels, baseline = make_case(11, height=3, width=3)
    saliency = 1 + 1e-12 * torch.arange(9, dtype=torch.float64).reshape(1, 3, 3).repeat(2, 1, 1)
    assert_replicated(network, images, saliency, labels, 1, baseline)


def test_deletion_is_insertion_with_image_and_baseline_swapped():
    network, images, saliency, labels, baseline = make_case(12, num_images=1)
    forward = patch_insertion_deletion(
        network, images, saliency, labels, patch_size=2, baseline=baseline
    )
    swapped = patch_insertion_deletion(
        network, baseline[None], saliency, labels, patch_size=2, baseline=images[0]
    )
    # Matrix products may round differently at another place of the batch.
    torch.testing.assert_close(forward.deletion_curve, swapped.insertion_curve, rtol=0, atol=1e-14)
    torch.testing.assert_close(forward.pid, -swapped.pid, rtol=0, atol=1e-14)


def test_deletion_is_insertion_of_the_reversed_order_read_backwards():
    network, images, saliency, labels, baseline = make_case(13)
    settings = {"patch_size": 3, "baseline": baseline}
    forward = patch_insertion_deletion(network, images, saliency, labels, **settings)
    # Negated maxima, so that the patches' order is reversed and not only the pixels'.
    maxima = torch.nn.functional.max_pool2d(saliency[:, None], 3, ceil_mode=True)
    reversed_order = torch.nn.functional.interpolate(-maxima, scale_factor=3)[:, :, :7, :9]
    backward = patch_insertion_deletion(network, images, reversed_order, labels, **settings)
    torch.testing.assert_close(
        forward.deletion_curve, backward.insertion_curve.flip(1), rtol=0, atol=1e-14
    )


def test_each_curve_ends_where_the_other_begins():
    network, images, saliency, labels, baseline = make_case(14)
    result = patch_insertion_deletion(
        network, images, saliency, labels, patch_size=4, baseline=baseline
    )
    on_images = [network.probability(images[i].numpy(), labels[i]) for i in range(2)]
    on_baseline = [network.probability(baseline.numpy(), label) for label in labels]
    for curve, start, end in (
        (result.insertion_curve, on_baseline, on_images),
        (result.deletion_curve, on_images, on_baseline),
    ):
        np.testing.assert_allclose(curve[:, 0], start, atol=ROUNDING)
        np.testing.assert_allclose(curve[:, -1], end, atol=ROUNDING)


def test_a_map_that_finds_the_only_pixel_that_matters_scores_by_hand():
    # p(class 1) is 1 where the lower right pixel is lit, else 0; four pixels, so n / N = k / 4.
    def predict(images):
        lit = (images[:, 0, 1, 1] > 0).double()
        return torch.stack([1 - lit, lit], dim=1)

    images = torch.ones(2, 1, 2, 2)
    saliency = torch.tensor([[[0.0, 0.1], [0.2, 0.9]], [[0.9, 0.2], [0.1, 0.0]]])
    result = patch_insertion_deletion(
        predict, images, saliency, torch.tensor([1, 1]), patch_size=1, baseline=0.0
    )
    assert result.insertion_curve.tolist() == [[0, 1, 1, 1, 1], [0, 0, 0, 0, 1]]
    assert result.deletion_curve.tolist() == [[1, 0, 0, 0, 0], [1, 1, 1, 1, 0]]
    assert result.insertion_auc.tolist() == [0.875, 0.125]
    assert result.pid.tolist() == [0.75, -0.75]


@pytest.mark.parametrize("batch_size", [1, 7, 13, 1000])
def test_full_batches_run_across_images_and_curves_and_change_nothing(batch_size):
    network, images, saliency, labels, baseline = make_case(15, num_images=3)
    settings = {"patch_size": 3, "baseline": baseline}
    expected = patch_insertion_deletion(network, images, saliency, labels, **settings)
    network.batch_sizes.clear()
    result = patch_insertion_deletion(
        network, images, saliency, labels, **settings, batch_size=batch_size
    )
    # 3 x 3 patches, so 10 frames a curve.
    full, rest = divmod(3 * 2 * 10, batch_size)
    assert network.batch_sizes == [batch_size] * full + [rest] * (rest > 0)
    torch.testing.assert_close(result.insertion_curve, expected.insertion_curve, rtol=0, atol=1e-14)
    torch.testing.assert_close(result.deletion_curve, expected.deletion_curve, rtol=0, atol=1e-14)


def test_prediction_needs_no_gradients_and_scores_are_ordinary_tensors():
    network, images, saliency, labels, baseline = make_case(16)

    def predict(frames):
        assert torch.is_inference_mode_enabled()
        return network(frames)

    result = patch_insertion_deletion(
        predict, images, saliency, labels, patch_size=4, baseline=baseline
    )
    fields = vars(result)
    assert fields.pop("matched") is None
    for field in fields.values():
        assert field.dtype == torch.float64
        assert not field.is_inference()


def test_frames_keep_the_images_dtype_and_the_arguments_are_not_written_to():
    network, images, saliency, labels, baseline = make_case(17)
    arguments = (images.float(), saliency.float(), labels)
    before = [tensor.clone() for tensor in arguments]

    def predict(frames):
        assert frames.dtype == torch.float32
        frames_seen = network(frames)
        frames.zero_()
        return frames_seen

    patch_insertion_deletion(predict, *arguments, patch_size=4, baseline=baseline)
    assert all(torch.equal(*pair) for pair in zip(arguments, before, strict=True))


def test_no_images_give_empty_scores():
    network, images, saliency, labels, baseline = make_case(18)
    result = patch_insertion_deletion(
        network, images[:0], saliency[:0], labels[:0], patch_size=4, baseline=baseline
    )
    assert result.pid.shape == (0,)
    assert result.insertion_curve.shape == result.deletion_curve.shape == (0, 7)
    assert result.fractions.shape == (7,)
    assert network.batch_sizes == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"saliency": torch.zeros(2, 7, 8)},
            r"saliency: got torch.float32 of shape \(2, 7, 8\), must be \(2, 7, 9",
        ),
        ({"saliency": torch.zeros(1, 7, 9)}, r"saliency: got torch.float32 of shape \(1, 7, 9\)"),
        (
            {"images": torch.zeros(2, 3, 7, 9, dtype=torch.uint8)},
            "images: got torch.uint8 of shape",
        ),
        ({"labels": torch.tensor([0.0, 1.0])}, r"labels: got torch.float32 of shape \(2,\)"),
        (
            {"saliency": torch.full((2, 7, 9), math.nan)},
            "saliency: got NaN or infinity in the map of image 0",
        ),
        (
            {"saliency": torch.zeros(2, 7, 9).index_fill(0, torch.tensor(1), math.inf)},
            "saliency: got NaN or infinity in the map of image 1",
        ),
        ({"labels": torch.tensor([0, 3])}, "labels: got 3 for image 1, must be 0 to 2"),
        ({"labels": torch.tensor([-1, 0])}, "labels: got -1 for image 0, must be 0 to 2"),
        ({"labels": torch.tensor([0, 1, 2])}, r"labels: got torch.int64 of shape \(3,\)"),
        ({"baseline": torch.zeros(3, 8, 9)}, r"baseline: got shape \(3, 8, 9\).*\(3, 7, 9\)"),
        ({"baseline": torch.zeros(2, 3, 7, 9)}, r"baseline: got shape \(2, 3, 7, 9\)"),
        ({"patch_size": 0}, "patch_size: got 0, must be 1 to 7"),
        ({"patch_size": 8}, "patch_size: got 8, must be 1 to 7"),
        ({"num_points": 1}, "num_points: got 1, must be at least 2"),
        ({"temperature": 0.0}, "temperature: got 0.0, must be above 0"),
        ({"temperature": math.nan}, "temperature: got nan, must be above 0"),
        ({"batch_size": 0}, "batch_size: got 0, must be at least 1"),
        ({"predict": lambda x: x}, r"predict: got shape \(64, 3, 7, 9\), must be"),
        ({"predict": lambda x: x.flatten(1)}, "predict: .* in row 0, must be probabilities"),
        (
            {"predict": lambda x: torch.full((1, 2), 0.5)},
            "predict: got 1 rows for 64 images, must return one each",
        ),
        ({"predict": lambda x: torch.full((len(x), 2), math.nan)}, "predict: .* in row 0"),
    ],
)
def test_what_breaks_a_rule_is_refused_in_one_line_that_names_it(changes, message):
    network, images, saliency, labels, baseline = make_case(19)
    arguments = {
        "predict": network,
        "images": images,
        "saliency": saliency,
        "labels": labels,
        "patch_size": 1,
        "baseline": baseline,
    } | changes
    with pytest.raises(ValueError, match=message) as raised:
        patch_insertion_deletion(**arguments)
    assert "\n" not in str(raised.value)


def test_the_areas_follow_the_convention_of_the_rise_authors():
    # Their area is normalised: the trapezoidal rule over n / N, as here; 50176 pixels, 224 a step.
    golden = np.load(GOLDEN)
    curves = {"insertion": golden["insertion"], "deletion": golden["deletion"]}
    steps = iter([*curves["insertion"], *curves["deletion"]])

    def predict(frames):
        probability = torch.tensor([next(steps) for _ in frames], dtype=torch.float64)
        return torch.stack([1 - probability, probability], dim=1)

    image = torch.zeros(1, 1, 224, 224)
    result = patch_insertion_deletion(
        predict, image, image, torch.tensor([1]), patch_size=1, baseline=0.0, num_points=225
    )
    np.testing.assert_array_equal(result.fractions, np.arange(225) / 224)
    np.testing.assert_array_equal(result.insertion_curve[0], curves["insertion"])
    np.testing.assert_allclose(result.insertion_auc[0], golden["insertion_auc"], atol=ROUNDING)
    np.testing.assert_allclose(result.deletion_auc[0], golden["deletion_auc"], atol=ROUNDING)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_softmax_in_half_precision_is_scored_and_logits_still_refused(dtype):
    network, images, saliency, labels, baseline = make_case(20, num_images=4, num_classes=9)
    arguments = {"patch_size": 2, "baseline": baseline}
    exact = patch_insertion_deletion(network, images, saliency, labels, **arguments)
    halved = patch_insertion_deletion(
        lambda x: network(x).to(dtype), images, saliency, labels, **arguments
    )
    # A mean of values that are each off by at most half of the type's precision.
    precision = torch.finfo(dtype).eps
    torch.testing.assert_close(halved.pid, exact.pid, atol=precision, rtol=0)
    with pytest.raises(ValueError, match=r"predict: .* must be probabilities"):
        patch_insertion_deletion(
            lambda x: network(x).to(dtype) * 1.05, images, saliency, labels, **arguments
        )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.float16])
def test_maps_of_any_type_rank_patches_as_their_exact_numbers_do(dtype):
    network, images, saliency, labels, baseline = make_case(21)
    given = (saliency * 5).to(dtype)
    arguments = {"patch_size": 2, "baseline": baseline}
    for protocol in ("exact", "released"):
        scores, expected = (
            patch_insertion_deletion(
                network, images, maps, labels, protocol=protocol, **arguments
            ).pid
            for maps in (given, given.double())
        )
        assert torch.equal(scores, expected)
