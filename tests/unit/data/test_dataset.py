from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_reader import FakeReader, make_reader, save

from labn.data import dataset
from labn.data.batches import standardise
from labn.data.contrast import local_contrast
from labn.data.dataset import Dataset, Subset, measure_statistics, prepare_dataset
from labn.data.readers.idrid import IdridReader
from labn.data.readers.reader import Problem, Reader
from labn.errors import UserError

IDRID_COPIES = ((21, 391), (28, 327), (45, 333), (73, 375), (79, 279))
SUBSET_OF = ("train",) * 6 + ("validation",) * 2 + ("test",) * 2
LABELS = (0, 1) * 5


def prepare(reader: Reader, cache_dir: Path, **settings) -> Dataset:
    defaults = {
        "image_size": 16,
        "validation_fraction": 0.2,
        "test_fraction": 0.2,
        "split_seed": 0,
        "cross_partition_duplicates": "drop_train",
        "conflicting_labels": "drop",
    }
    return prepare_dataset(reader, cache_dir=cache_dir, **(defaults | settings))


def subset_of(images: np.ndarray, indices: list[int] | None = None) -> Subset:
    places = np.arange(len(images)) if indices is None else np.array(indices)
    return Subset(
        images=images,
        masks=None,
        indices=places,
        labels=places % 2,
        names=tuple(f"image_{place}" for place in places),
        has_mask=np.zeros(len(places), dtype=np.bool_),
    )


def test_each_subset_has_its_own_images_labels_and_names(tmp_path):
    reader = make_reader(tmp_path, LABELS, SUBSET_OF)
    prepared = prepare(reader, tmp_path / "cache")
    assert {name: len(subset) for name, subset in prepared.subsets.items()} == {
        "train": 6,
        "validation": 2,
        "test": 2,
    }
    validation = prepared.subsets["validation"]
    assert validation.names == ("image_006", "image_007")
    np.testing.assert_array_equal(validation.labels, [0, 1])
    np.testing.assert_array_equal(validation.pixels(np.array([1, 0])), validation.images[[7, 6]])


def test_a_selection_of_a_subset_is_a_subset(tmp_path):
    reader = make_reader(tmp_path, LABELS, SUBSET_OF)
    reader.masks = {"image_003": np.ones((24, 32), dtype=np.bool_)}
    train = prepare(reader, tmp_path / "cache").subsets["train"]
    chosen = train.select(np.array([3, 1]))
    assert len(chosen) == 2 and chosen.names == ("image_003", "image_001")
    np.testing.assert_array_equal(chosen.has_mask, [True, False])
    np.testing.assert_array_equal(chosen.labels, [1, 1])
    np.testing.assert_array_equal(chosen.pixels(np.array([0])), train.pixels(np.array([3])))


def test_statistics_are_the_moments_of_the_training_pixels(tmp_path):
    prepared = prepare(make_reader(tmp_path, LABELS, SUBSET_OF), tmp_path / "cache")
    train = prepared.subsets["train"].images[:6].astype(np.float64) / 255
    statistics = prepared.statistics
    for channel in range(3):
        values = train[..., channel]
        # Both are float64; numpy's own two-pass sums are off by some 1e-15.
        assert statistics.mean[channel].item() == pytest.approx(values.mean(), abs=1e-13)
        assert statistics.std[channel].item() == pytest.approx(values.std(), abs=1e-13)


def test_the_bias_image_is_the_mean_of_the_standardised_training_images(tmp_path):
    prepared = prepare(make_reader(tmp_path, LABELS, SUBSET_OF), tmp_path / "cache")
    train = prepared.subsets["train"].images[:6].astype(np.float64) / 255
    expected = np.zeros((3, 16, 16))
    for image in train:
        for channel in range(3):
            values = train[..., channel]
            expected[channel] += (image[..., channel] - values.mean()) / values.std() / 6
    bias = prepared.statistics.bias_image
    assert bias.dtype == torch.float32
    # Rounded to float32 once, from values of at most 2.
    np.testing.assert_allclose(bias.numpy(), expected, atol=2e-7)


def test_statistics_do_not_depend_on_how_they_are_chunked(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (11, 8, 8, 3), np.uint8)
    whole = measure_statistics(subset_of(images))
    monkeypatch.setattr(dataset, "_CHUNK_BYTES", 3 * images[0].size)
    chunked = measure_statistics(subset_of(images))
    for name, value in whole.tensors().items():
        assert torch.equal(value, getattr(chunked, name))


def test_statistics_of_local_contrast_are_those_of_the_contrast_alone():
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    found = measure_statistics(subset_of(images), 0.3)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255
    contrast = local_contrast(pixels, 0.3)
    std, mean = torch.std_mean(contrast, dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(found.mean, mean)
    torch.testing.assert_close(found.std, std)
    seen = standardise(images, found, torch.device("cpu"))
    torch.testing.assert_close(found.bias_image, seen.mean(dim=0), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        seen, ((contrast - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)).float(), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("value", [9, 75, 240])
def test_a_channel_without_local_contrast_is_refused(value):
    images = np.random.default_rng(0).integers(20, 256, (4, 16, 16, 3), np.uint8)
    images[..., 2] = value
    with pytest.raises(
        UserError, match=r"local_contrast = 0.2: channel 2 of the 4 training images has"
    ):
        measure_statistics(subset_of(images), 0.2)


def test_a_deviation_far_below_the_mean_keeps_its_digits():
    images = np.full((2000, 16, 16, 1), 255, np.uint8)
    images[7, 3, 3, 0] = 254
    count = images.size
    expected = np.sqrt(count - 1) / count / 255
    assert measure_statistics(subset_of(images)).std.item() == pytest.approx(expected, rel=1e-12)


def test_a_constant_channel_is_refused():
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    images[..., 1] = 9
    with pytest.raises(UserError, match="channel 1 has the value 9 in every pixel of the 4"):
        measure_statistics(subset_of(images))


def test_statistics_are_measured_once_for_each_training_subset(tmp_path, monkeypatch):
    reader = make_reader(tmp_path, (0, 1) * 10)
    calls = []
    monkeypatch.setattr(
        dataset,
        "measure_statistics",
        lambda *given: calls.append(given) or measure_statistics(*given),
    )
    first = prepare(reader, tmp_path / "cache")
    again = prepare(reader, tmp_path / "cache")
    assert len(calls) == 1
    for name, value in first.statistics.tensors().items():
        assert torch.equal(value, getattr(again.statistics, name))
    other = prepare(reader, tmp_path / "cache", split_seed=1)
    assert len(calls) == 2
    assert not torch.equal(other.statistics.bias_image, first.statistics.bias_image)
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_statistics_that_cannot_be_stored_are_still_returned(tmp_path, monkeypatch, caplog):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(dataset.np, "savez", refuse)
    prepared = prepare(make_reader(tmp_path, LABELS, SUBSET_OF), tmp_path / "cache")
    assert prepared.statistics.mean.shape == (3,)
    assert "Read-only file system" in caplog.text
    assert not list((tmp_path / "cache").rglob("statistics*"))


def test_the_manifest_lists_every_image_in_use(tmp_path):
    reader = make_reader(tmp_path, LABELS, SUBSET_OF)
    shutil.copyfile(reader.records[9].path, reader.records[1].path)
    prepared = prepare(reader, tmp_path / "cache")
    manifest = prepared.manifest
    columns = ["name", "path", "partition", "label", "grade", "sha256"]
    assert list(manifest.columns) == columns
    assert list(manifest["name"]) == [r.name for r in reader.records if r.name != "image_001"]
    assert prepared.subsets["train"].names == tuple(
        manifest["name"][manifest["partition"] == "train"]
    )
    assert prepared.notes[0].endswith("image_001 = image_009")


def test_images_saved_in_two_ways_are_copies(tmp_path):
    reader = make_reader(tmp_path, LABELS, SUBSET_OF)
    pixels = reader.read(reader.records[9])
    reader.records[1].path.unlink()
    bitmap = reader.records[1].path.with_suffix(".bmp")
    save(bitmap, pixels)
    reader.records[1] = replace(reader.records[1], path=bitmap)
    assert len(prepare(reader, tmp_path / "cache").subsets["train"]) == 5


def test_the_digest_does_not_depend_on_where_the_data_are(tmp_path):
    (tmp_path / "a").mkdir()
    here = make_reader(tmp_path / "a", LABELS)
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    there = FakeReader(
        tmp_path / "b",
        [replace(r, path=tmp_path / "b" / r.path.name) for r in here.records],
    )
    settings = {"validation_fraction": 0.3, "test_fraction": 0.2}
    digests = {
        prepare(here, tmp_path / "x", **settings).digest,
        prepare(there, tmp_path / "y", **settings).digest,
        prepare(here, tmp_path / "x", image_size=20, **settings).digest,
    }
    assert len(digests) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda records: records.__setitem__(0, replace(records[0], label=1)),
        lambda records: records.__setitem__(1, replace(records[1], grade=3)),
        lambda records: records.__setitem__(2, replace(records[2], name="new")),
        lambda records: records.__setitem__(2, replace(records[2], subset="test")),
        lambda records: save(records[3].path, np.zeros((8, 8, 3), np.uint8)),
        lambda records: records.pop(),
    ],
    ids=["label", "grade", "name", "subset", "contents", "fewer"],
)
def test_the_digest_changes_with_the_data(tmp_path, change):
    reader = make_reader(tmp_path, LABELS, SUBSET_OF)
    before = prepare(reader, tmp_path / "cache").digest
    change(reader.records)
    assert prepare(reader, tmp_path / "cache").digest != before


def test_a_defective_data_set_is_refused_before_anything_is_decoded(tmp_path):
    reader = make_reader(tmp_path, LABELS, SUBSET_OF)
    reader.problems = [
        Problem(kind="missing_file", name=f"lost_{i}", detail="not there") for i in range(5)
    ]
    with pytest.raises(UserError) as caught:
        prepare(reader, tmp_path / "cache")
    message = str(caught.value)
    assert "defects in the data set: 5, first lost_0: not there (missing_file); lost_1" in message
    assert "lost_2" in message and "lost_3" not in message and "labn data check" in message
    assert reader.decoded() == []


def test_files_that_nobody_lists_are_no_reason_to_refuse(tmp_path):
    reader = make_reader(tmp_path, LABELS, SUBSET_OF)
    reader.problems = [Problem(kind="unlisted_file", name="extra", detail="no row")]
    assert len(prepare(reader, tmp_path / "cache").manifest) == 10


def test_a_data_set_without_images_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no images; check data.name and data.root"):
        prepare(FakeReader(tmp_path, []), tmp_path / "cache")


@pytest.mark.real_data
def test_idrids_copies_stay_in_the_training_subset(tmp_path):
    data = os.environ.get("LABN_TEST_DATA")
    if not data:
        pytest.skip("LABN_TEST_DATA does not name the folder of the public data")
    prepared = prepare(IdridReader(Path(data) / "idrid256_dev"), tmp_path, image_size=32)
    assert {name: len(subset) for name, subset in prepared.subsets.items()} == {
        "train": 330,
        "validation": 83,
        "test": 0,
    }
    copies = {f"IDRiD_{number:03}" for pair in IDRID_COPIES for number in pair}
    train = {Path(name).stem for name in prepared.subsets["train"].names}
    assert copies <= train
