from __future__ import annotations

import csv
import errno
import hashlib
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_reader import (
    FakeReader,
    build_at_a_signal,
    build_in_process,
    make_reader,
    noise,
    save,
)

from labn.data.cache import ImageCache, build_cache
from labn.data.decode import resize, resize_mask
from labn.data.readers.reader import Record
from labn.errors import UserError

spawn = multiprocessing.get_context("spawn")


def build(reader: FakeReader, cache_dir: Path, image_size: int = 16, **options) -> ImageCache:
    return build_cache(
        reader, reader.records, image_size=image_size, cache_dir=cache_dir, **options
    )


def finished(cache_dir: Path) -> list[Path]:
    return [path for path in cache_dir.iterdir() if path.is_dir() and not path.suffix]


def wait_until_decoded(reader: FakeReader, num_images: int) -> None:
    while len(reader.decoded()) < num_images:
        time.sleep(0.01)


def bicubic_replica(pixels: np.ndarray, size: int) -> np.ndarray:
    """Keys' cubic with a = -1/2, widened to the reduction's factor, axis by axis, in float64."""

    def kernel(x: float) -> float:
        x = abs(x)
        if x < 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    def weights(length: int) -> np.ndarray:
        scale = max(length / size, 1.0)
        table = np.zeros((size, length))
        for new in range(size):
            center = (new + 0.5) * length / size
            for old in range(length):
                table[new, old] = kernel((old + 0.5 - center) / scale)
        return table / table.sum(axis=1, keepdims=True)

    rows, columns = weights(pixels.shape[0]), weights(pixels.shape[1])
    resized = np.einsum("ih,jw,hwc->ijc", rows, columns, pixels.astype(np.float64))
    return np.clip(resized, 0, 255)


@pytest.mark.parametrize("size", [7, 16, 40])
@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_is_the_antialiased_bicubic(size, channels):
    y, x = np.mgrid[:30, :44]
    waves = 127 + 80 * np.sin(0.3 * x + 0.2 * y)[..., None] * np.linspace(0.5, 1, channels)
    pixels = waves.astype(np.uint8)
    resized = resize(pixels, size)
    assert resized.shape == (size, size, channels)
    # Pillow rounds to whole levels after each axis: at most half a level each, and weights of
    # negative sign enlarge the first a little.
    np.testing.assert_allclose(resized, bicubic_replica(pixels, size), atol=1.2)


def test_an_image_of_the_right_size_is_kept_bit_by_bit():
    pixels = noise(0, 20, 20)
    np.testing.assert_array_equal(resize(pixels, 20), pixels)


def test_a_mask_reduced_by_a_whole_factor_is_the_blocks_maximum():
    mask = np.random.default_rng(0).random((24, 40)) < 0.05
    expected = mask.reshape(8, 3, 8, 5).any(axis=(1, 3))
    np.testing.assert_array_equal(resize_mask(mask, 8), expected)


@pytest.mark.parametrize("size", [5, 8, 64])
def test_a_lesion_of_one_pixel_survives_at_any_position(size):
    for place in range(37 * 23):
        mask = np.zeros(37 * 23, dtype=np.bool_)
        mask[place] = True
        assert resize_mask(mask.reshape(37, 23), size).any()


def test_a_lesion_of_one_pixel_survives_in_a_large_image():
    mask = np.zeros((2848, 4288), dtype=np.bool_)
    mask[1000, 3000] = True
    assert resize_mask(mask, 224).sum() == 1


def test_the_cache_holds_every_image_in_the_order_of_the_records(tmp_path):
    reader = make_reader(tmp_path)
    reader.records.reverse()
    cache = build(reader, tmp_path / "cache")
    assert cache.images.dtype == np.uint8
    for record, image in zip(reader.records, cache.images, strict=True):
        np.testing.assert_array_equal(image, resize(reader.read(record), 16))


def test_the_cache_is_read_only(tmp_path):
    cache = build(make_reader(tmp_path), tmp_path / "cache")
    assert isinstance(cache.images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        cache.images[0] = 0


def test_grey_images_keep_their_channel_axis(tmp_path):
    cache = build(make_reader(tmp_path, channels=1), tmp_path / "cache")
    assert cache.images.shape == (8, 16, 16, 1)


def test_masks_are_kept_where_they_are_known(tmp_path):
    reader = make_reader(tmp_path)
    mask = np.zeros((24, 32), dtype=np.bool_)
    mask[5, 7] = True
    reader.masks = {"image_002": mask, "image_005": np.zeros_like(mask)}
    cache = build(reader, tmp_path / "cache")
    np.testing.assert_array_equal(np.flatnonzero(cache.has_mask), [2, 5])
    assert cache.masks is not None and cache.masks.dtype == np.bool_
    np.testing.assert_array_equal(cache.masks[2], resize_mask(mask, 16))
    assert cache.masks[2].any() and not cache.masks[5].any()


def test_no_disk_space_is_used_for_masks_if_none_is_known(tmp_path):
    cache = build(make_reader(tmp_path), tmp_path / "cache")
    assert cache.masks is None and not cache.has_mask.any()
    assert not (cache.path / "masks.npy").exists()


def test_the_manifest_identifies_each_image_by_its_file_and_its_pixels(tmp_path):
    reader = make_reader(tmp_path)
    cache = build(reader, tmp_path / "cache")
    with (cache.path / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for record, row, sha256 in zip(reader.records, rows, cache.sha256, strict=True):
        contents = record.path.read_bytes()
        assert (row["name"], row["path"], row["index"]) == (record.name, str(record.path), "")
        assert row["sha256"] == sha256 == hashlib.sha256(contents).hexdigest()
        assert row["pixels_sha256"] == hashlib.sha256(reader.read(record).tobytes()).hexdigest()
        assert int(row["size"]) == len(contents)
        assert int(row["mtime_ns"]) == record.path.stat().st_mtime_ns


def test_names_that_look_like_missing_values_or_numbers_come_back_as_they_are(tmp_path):
    reader = make_reader(tmp_path)
    reader.records = [
        replace(record, name=name)
        for record, name in zip(reader.records, ["NA", "007", 'a,"b"'], strict=False)
    ]
    cache = build(reader, tmp_path / "cache")
    with (cache.path / "manifest.csv").open(newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["NA", "007", 'a,"b"']


def test_images_that_share_a_file_are_distinguished_by_their_pixels(tmp_path):
    stack = np.stack([noise(seed) for seed in range(3)])
    np.save(tmp_path / "2011.npy", stack)
    records = [
        Record(
            name=f"2011_{i}",
            path=tmp_path / "2011.npy",
            index=i,
            grade=0,
            label=0,
            subset=None,
        )
        for i in range(3)
    ]
    cache = build(FakeReader(tmp_path, records), tmp_path / "cache")
    expected = tuple(hashlib.sha256(pixels.tobytes()).hexdigest() for pixels in stack)
    assert cache.sha256 == cache.pixels_sha256 == expected


def test_images_without_a_file_are_distinguished_by_their_pixels(tmp_path):
    records = [
        Record(name=f"s{i}", path=Path("synthetic"), grade=0, label=0, subset=None)
        for i in range(3)
    ]
    cache = build(FakeReader(tmp_path, records), tmp_path / "cache")
    assert cache.sha256 == cache.pixels_sha256 and len(set(cache.sha256)) == 3


def test_a_second_call_decodes_nothing(tmp_path):
    reader = make_reader(tmp_path)
    first = build(reader, tmp_path / "cache")
    num_decoded = len(reader.decoded())
    # A cache does not depend on labels and subsets.
    reader.records = [replace(r, label=1, grade=3, subset="test") for r in reader.records]
    second = build(reader, tmp_path / "cache")
    assert (num_decoded, len(reader.decoded())) == (8, 8)
    assert first.path == second.path and first.sha256 == second.sha256


@pytest.mark.parametrize(
    "change",
    [
        lambda reader: save(reader.records[3].path, noise(99)),
        lambda reader: os.utime(reader.records[3].path, (1, 1)),
        lambda reader: setattr(reader, "geometry", "cropped"),
        lambda reader: reader.records.pop(),
        lambda reader: reader.records.reverse(),
        lambda reader: reader.records.__setitem__(0, replace(reader.records[0], name="new")),
    ],
    ids=["contents", "date", "geometry", "fewer records", "order", "name"],
)
def test_a_change_of_the_images_or_their_reading_makes_a_new_cache(tmp_path, change):
    reader = make_reader(tmp_path)
    before = build(reader, tmp_path / "cache")
    change(reader)
    after = build(reader, tmp_path / "cache")
    assert before.path != after.path
    assert len(reader.decoded()) == 8 + len(reader.records)


def test_a_changed_file_shows_in_the_new_cache(tmp_path):
    reader = make_reader(tmp_path)
    build(reader, tmp_path / "cache")
    save(reader.records[3].path, noise(99))
    cache = build(reader, tmp_path / "cache")
    np.testing.assert_array_equal(cache.images[3], resize(noise(99), 16))


def test_each_size_has_its_own_cache(tmp_path):
    reader = make_reader(tmp_path)
    small, large = (build(reader, tmp_path / "cache", image_size=size) for size in (16, 20))
    assert small.images.shape[1:3] == (16, 16) and large.images.shape[1:3] == (20, 20)
    assert small.path != large.path


def test_equal_names_sizes_and_dates_elsewhere_are_another_cache(tmp_path):
    caches = []
    for folder, value in (("a", 0), ("b", 255)):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "2011.npy", np.full((1, 8, 8, 3), value, np.uint8))
        os.utime(tmp_path / folder / "2011.npy", (0, 0))
        record = Record(
            name="2011_0",
            path=tmp_path / folder / "2011.npy",
            index=0,
            grade=0,
            label=0,
            subset=None,
        )
        caches.append(build(FakeReader(tmp_path, [record]), tmp_path / "cache"))
    assert [int(cache.images.max()) for cache in caches] == [0, 255]


def test_progress_counts_every_image_while_building_only(tmp_path):
    reader = make_reader(tmp_path)
    calls: list[tuple[int, int]] = []
    for _ in range(2):
        build(reader, tmp_path / "cache", report_progress=lambda *call: calls.append(call))
    assert calls == [(done, 8) for done in range(1, 9)]


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    cache = build(make_reader(tmp_path), Path("~/cache"))
    assert cache.path.parent == tmp_path / "cache"


def test_all_unreadable_images_are_counted_and_three_are_named(tmp_path):
    reader = make_reader(tmp_path)
    for number in (1, 2, 5, 6):
        reader.records[number].path.write_bytes(b"no image")
    with pytest.raises(UserError) as caught:
        build(reader, tmp_path / "cache")
    message = str(caught.value)
    assert message.startswith("4 of 8 images cannot be read: image_001 (")
    assert "image_002 (" in message and "image_005 (" in message and "image_006" not in message
    assert "labn data check" in message and "\n" not in message
    assert [p for p in (tmp_path / "cache").iterdir() if p.is_dir()] == []


def test_a_missing_file_is_an_unreadable_image(tmp_path):
    reader = make_reader(tmp_path)
    reader.records[4].path.unlink()
    with pytest.raises(UserError, match=r"1 of 8 images cannot be read: image_004 \("):
        build(reader, tmp_path / "cache")


def test_a_full_disk_is_the_users_to_fix(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    reader = make_reader(tmp_path)
    with pytest.raises(UserError, match=r"data.cache_dir = .*No space left on device"):
        build(reader, tmp_path / "cache")
    assert [p for p in (tmp_path / "cache").iterdir() if p.is_dir()] == []
    assert reader.decoded() == []


def test_a_disk_that_fills_up_with_masks_is_a_user_error(tmp_path, monkeypatch):
    reserve = os.posix_fallocate

    def refuse_masks(descriptor, offset, length):
        if "masks" in Path(f"/proc/self/fd/{descriptor}").readlink().name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reserve(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", refuse_masks)
    reader = make_reader(tmp_path)
    reader.masks = {"image_002": np.ones((24, 32), dtype=np.bool_)}
    with pytest.raises(UserError, match=r"data.cache_dir = .*No space left on device"):
        build(reader, tmp_path / "cache")


def test_a_folder_that_cannot_be_written_is_the_users_to_fix(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"data.cache_dir = .*file/cache.*data.cache_dir=PATH"):
        build(make_reader(tmp_path), tmp_path / "file" / "cache")


def test_no_records_are_a_programming_mistake(tmp_path):
    with pytest.raises(ValueError, match="at least one record"):
        build(FakeReader(tmp_path, []), tmp_path / "cache")


@pytest.mark.parametrize("lost", ["images.npy", "manifest.csv", "masks.npy"])
def test_a_cache_that_lost_a_file_is_built_again(tmp_path, lost):
    reader = make_reader(tmp_path)
    reader.masks = {"image_001": np.ones((24, 32), dtype=np.bool_)}
    before = build(reader, tmp_path / "cache")
    expected = before.images.tobytes()
    (before.path / lost).unlink()
    after = build(reader, tmp_path / "cache")
    assert after.images.tobytes() == expected and after.has_mask.sum() == 1
    assert len(reader.decoded()) == 16


def test_four_processes_build_one_cache(tmp_path):
    reader = make_reader(tmp_path)
    reader.read_time_s = 0.05
    reader.masks = {"image_001": np.ones((24, 32), dtype=np.bool_)}
    barrier, contents = spawn.Barrier(4), spawn.Queue()
    processes = [
        spawn.Process(
            target=build_at_a_signal, args=(reader, tmp_path / "cache", barrier, contents)
        )
        for _ in range(4)
    ]
    for process in processes:
        process.start()
    seen = [contents.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert all(other == seen[0] for other in seen)
    assert reader.decoded() == [record.name for record in reader.records]
    assert len(finished(tmp_path / "cache")) == 1


def test_a_builder_killed_midway_leaves_nothing_that_lasts(tmp_path):
    reader = make_reader(tmp_path)
    stuck = replace(reader, gate=tmp_path / "never")
    cache_dir = tmp_path / "cache"
    builders = [
        spawn.Process(target=build_in_process, args=(stuck, image_size, cache_dir))
        for image_size in (16, 20)
    ]
    for builder in builders:
        builder.start()
    wait_until_decoded(reader, 2 * 7)
    for builder in builders:
        os.kill(builder.pid, signal.SIGKILL)
        builder.join()
    assert len(list(cache_dir.glob("*.building"))) == 2 and finished(cache_dir) == []

    cache = build(reader, cache_dir)
    assert list(cache_dir.glob("*.building")) == [] and finished(cache_dir) == [cache.path]
    for record, image in zip(reader.records, cache.images, strict=True):
        np.testing.assert_array_equal(image, resize(reader.read(record), 16))


def test_a_cache_in_the_making_is_not_taken_for_an_abandoned_one(tmp_path):
    reader = make_reader(tmp_path)
    cache_dir = tmp_path / "cache"
    waiting = replace(reader, gate=tmp_path / "gate")
    builder = spawn.Process(target=build_in_process, args=(waiting, 20, cache_dir))
    builder.start()
    wait_until_decoded(reader, 7)
    build(reader, cache_dir, image_size=16)
    assert len(list(cache_dir.glob("*.building"))) == 1
    (tmp_path / "gate").touch()
    builder.join()
    assert builder.exitcode == 0 and len(finished(cache_dir)) == 2
