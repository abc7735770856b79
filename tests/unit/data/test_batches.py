from __future__ import annotations

import threading
from collections import Counter
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from labn.data import batches
from labn.data.augment import Augmentation
from labn.data.batches import BIAS_NAME, EvaluationBatches, TrainingBatches, standardise
from labn.data.dataset import ChannelStatistics, Subset, measure_statistics
from labn.errors import UserError

CPU = torch.device("cpu")
ALL_ON = Augmentation(
    horizontal_flip=True,
    vertical_flip=True,
    rotation_deg=20.0,
    zoom=0.1,
    brightness=0.2,
    colour=0.1,
    contrast=0.2,
)


def make_subset(num_images: int = 20, channels: int = 3, num_positives: int = 5) -> Subset:
    """Take every second image of a cache, the last ones positive."""
    images = np.random.default_rng(0).integers(0, 256, (2 * num_images, 8, 8, channels), np.uint8)
    return Subset(
        images=images,
        masks=None,
        indices=np.arange(num_images) * 2 + 1,
        labels=(np.arange(num_images) >= num_images - num_positives).astype(np.int64),
        names=tuple(f"image_{position}" for position in range(num_images)),
        has_mask=np.zeros(num_images, dtype=np.bool_),
    )


def training(subset: Subset, **changes) -> TrainingBatches:
    settings = {
        "batch_size": 6,
        "seed": 0,
        "bias_copies": 1,
        "balanced": False,
        "augment": Augmentation(),
        "device": CPU,
    }
    return TrainingBatches(subset, measure_statistics(subset), **(settings | changes))


def standardise_replica(subset: Subset, statistics: ChannelStatistics, position: int) -> np.ndarray:
    image = subset.images[subset.indices[position]].astype(np.float64) / 255
    out = np.zeros((image.shape[2], *image.shape[:2]))
    for channel in range(image.shape[2]):
        mean, std = statistics.mean[channel].item(), statistics.std[channel].item()
        out[channel] = (image[:, :, channel] - mean) / std
    return out


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_standardised_by_channel_and_stay_channels_last(channels):
    subset = make_subset(channels=channels)
    statistics = measure_statistics(subset)
    images = standardise(subset.pixels(np.arange(4)), statistics, CPU)
    expected = np.stack([standardise_replica(subset, statistics, p) for p in range(4)])
    # Float32, values of at most 2 after three roundings.
    np.testing.assert_allclose(images.numpy(), expected, atol=1e-6)
    assert images.is_contiguous(memory_format=torch.channels_last)
    for batch in training(subset, augment=ALL_ON).epoch(0):
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_an_epoch_is_every_image_once_and_the_copies_of_the_bias_image():
    batches = list(training(make_subset(), bias_copies=3).epoch(0))
    names = Counter(name for batch in batches for name in batch.names)
    assert names == {BIAS_NAME: 3, **{f"image_{position}": 1 for position in range(20)}}


def test_no_copies_leave_the_bias_image_out():
    batches = training(make_subset(), bias_copies=0).epoch(0)
    assert all(BIAS_NAME not in batch.names for batch in batches)


@pytest.mark.parametrize("augment", [Augmentation(), ALL_ON])
def test_the_bias_image_is_a_negative_and_is_never_changed(augment):
    subset = make_subset()
    bias_image = measure_statistics(subset).bias_image
    num_seen = 0
    for batch in training(subset, bias_copies=2, augment=augment).epoch(0):
        for row, name in enumerate(batch.names):
            if name == BIAS_NAME:
                assert torch.equal(batch.images[row], bias_image)
                assert batch.labels[row] == 0 and batch.positions[row] == -1
                num_seen += 1
    assert num_seen == 2


def test_images_labels_names_and_positions_belong_together():
    subset = make_subset()
    statistics = measure_statistics(subset)
    for batch in training(subset, bias_copies=0).epoch(0):
        assert len(batch) == len(batch.images) == len(batch.labels)
        for row, position in enumerate(batch.positions.tolist()):
            assert batch.names[row] == subset.names[position]
            assert batch.labels[row] == subset.labels[position]
            np.testing.assert_allclose(
                batch.images[row], standardise_replica(subset, statistics, position), atol=1e-6
            )


@pytest.mark.parametrize(
    ("num_images", "sizes"),
    [
        (12, [6, 6]),
        (14, [6, 6, 2]),
        (13, [6, 7]),
        (6, [6]),
        (7, [7]),
        (5, [5]),
    ],
)
def test_no_batch_is_of_one_image(num_images, sizes):
    batches = training(make_subset(num_images), bias_copies=0)
    assert [len(batch) for batch in batches.epoch(0)] == sizes
    assert batches.steps_per_epoch == len(sizes)


@pytest.mark.parametrize("balanced", [False, True])
def test_a_resumed_epoch_continues_with_the_same_bits(balanced):
    subset = make_subset()
    whole = list(training(subset, augment=ALL_ON, balanced=balanced).epoch(3))
    for start_step in range(len(whole) + 1):
        rest = list(training(subset, augment=ALL_ON, balanced=balanced).epoch(3, start_step))
        assert len(rest) == len(whole) - start_step
        for batch, expected in zip(rest, whole[start_step:], strict=True):
            assert batch.names == expected.names
            assert torch.equal(batch.images, expected.images)
            assert torch.equal(batch.labels, expected.labels)


def test_batches_take_nothing_from_the_global_generators():
    batches = training(make_subset(), augment=ALL_ON)
    torch.manual_seed(0)
    first = next(batches.epoch(0)).images
    torch.manual_seed(1)
    assert torch.equal(next(batches.epoch(0)).images, first)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(1)))


def test_epochs_and_seeds_differ_in_order_and_in_augmentation():
    subset = make_subset()
    runs = [
        next(training(subset, seed=seed, augment=ALL_ON, batch_size=21).epoch(epoch))
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert runs[i].names != runs[j].names
        row_i, row_j = (run.names.index("image_4") for run in (runs[i], runs[j]))
        assert not torch.equal(runs[i].images[row_i], runs[j].images[row_j])


def test_steps_differ_in_augmentation():
    subset = make_subset(12)
    subset.images[:] = subset.images[0]
    subset.images[0] += 1
    first, second = islice(training(subset, augment=ALL_ON, bias_copies=0).epoch(0), 2)
    assert not torch.equal(first.images, second.images)


def test_skipped_steps_are_not_read():
    subset = make_subset()
    batches = training(subset, bias_copies=0)
    expected = list(batches.epoch(0))[-1]
    subset.images[subset.indices[expected.positions[0]]] ^= 255
    changed = list(batches.epoch(0, batches.steps_per_epoch - 1))
    assert len(changed) == 1 and not torch.equal(changed[0].images, expected.images)


@pytest.mark.parametrize("bias_copies", [0, 1, 4])
def test_balanced_epochs_have_all_classes_equally_often(bias_copies):
    subset = make_subset(num_positives=3)
    batches = training(subset, balanced=True, bias_copies=bias_copies)
    plain = training(subset, balanced=False, bias_copies=bias_copies)
    assert batches.steps_per_epoch == plain.steps_per_epoch
    drawn = Counter[str]()
    for epoch in range(20):
        seen = list(batches.epoch(epoch))
        labels = Counter(torch.cat([batch.labels for batch in seen]).tolist())
        assert labels.total() == 20 + bias_copies and abs(labels[0] - labels[1]) <= 1
        names = Counter(name for batch in seen for name in batch.names)
        assert names[BIAS_NAME] == bias_copies
        drawn += names
    # Of 17 negatives at least 6 an epoch: one is missed in 20 epochs with probability 0.001.
    assert set(subset.names) <= set(drawn)


def test_a_balanced_epoch_mixes_its_classes():
    batches = list(training(make_subset(200, num_positives=20), balanced=True).epoch(0))
    shares = [batch.labels.double().mean() for batch in batches]
    # A class's share of six images is all or nothing with probability 1/32.
    assert sum(0 < share < 1 for share in shares) > len(shares) * 3 / 4


def test_more_bias_images_than_negatives_in_a_balanced_epoch_are_refused():
    with pytest.raises(UserError, match=r"data.bias_copies = 30: exceeds the 25 negatives"):
        training(make_subset(), balanced=True, bias_copies=30)


@pytest.mark.parametrize(("batch_size", "num_batches"), [(6, 4), (5, 4), (64, 1), (19, 2)])
def test_evaluation_sees_every_image_once_in_order(batch_size, num_batches):
    subset = make_subset()
    statistics = measure_statistics(subset)
    evaluation = EvaluationBatches(subset, statistics, batch_size, CPU)
    batches = list(evaluation)
    assert len(evaluation) == len(batches) == num_batches
    assert [name for batch in batches for name in batch.names] == list(subset.names)
    positions = torch.cat([batch.positions for batch in batches])
    assert torch.equal(positions, torch.arange(20))
    np.testing.assert_array_equal(torch.cat([batch.labels for batch in batches]), subset.labels)
    images = torch.cat([batch.images for batch in batches])
    expected = np.stack([standardise_replica(subset, statistics, p) for p in range(20)])
    np.testing.assert_allclose(images.numpy(), expected, atol=1e-6)


def test_evaluation_of_no_images_is_no_batch():
    subset = make_subset()
    nothing = subset.select(np.array([], dtype=np.int64))
    assert list(EvaluationBatches(nothing, measure_statistics(subset), 6, CPU)) == []


def assert_same_batches(found, expected):
    pairs = list(zip(found, expected, strict=True))
    assert pairs
    for one, other in pairs:
        assert one.names == other.names
        for name in ("images", "labels", "positions"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        assert one.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("is_resident", [True, False], ids=["on the device", "one batch ahead"])
def test_a_gpu_gets_the_same_batches_bit_by_bit(monkeypatch, is_resident):
    """There is no GPU here: the CPU takes its path, without pinned memory."""
    subset, changes = make_subset(), {"augment": ALL_ON, "bias_copies": 3}
    statistics = measure_statistics(subset)
    expected = list(training(subset, **changes).epoch(1, 1))
    expected_evaluation = list(EvaluationBatches(subset, statistics, 6, CPU))

    threads = set()
    gather = batches._Source.gather

    def watched(source, positions):
        threads.add(threading.current_thread().name)
        return gather(source, positions)

    monkeypatch.setattr(batches._Source, "gather", watched)
    monkeypatch.setattr(batches, "_is_gpu", lambda device: True)
    monkeypatch.setattr(batches, "_fits", lambda *_: is_resident)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    assert_same_batches(training(subset, **changes).epoch(1, 1), expected)
    assert_same_batches(EvaluationBatches(subset, statistics, 6, CPU), expected_evaluation)
    assert all(name.startswith("batches") != is_resident for name in threads)


def test_an_error_while_fetching_ahead_reaches_the_reader():
    def items():
        yield 1
        raise OSError("the disk is gone")

    ahead = batches._ahead(items())
    assert next(ahead) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)


def test_reading_ahead_ends_with_its_reader():
    ahead = batches._ahead(iter(range(100)))
    assert list(islice(ahead, 3)) == [0, 1, 2]
    ahead.close()
    assert not any(thread.name.startswith("batches") for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("setting", "memory", "expected"),
    [("auto", 4 * 20 * 192, True), ("auto", 4 * 20 * 192 - 1, False), ("always", 1, True),
     ("never", 1 << 40, False)],
)  # fmt: skip
def test_images_stay_on_a_gpu_where_they_take_a_quarter_of_it(
    monkeypatch, setting, memory, expected
):
    properties = SimpleNamespace(total_memory=memory)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert batches._fits(make_subset(), torch.device("cuda"), setting) is expected
