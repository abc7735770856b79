"""Groups of images: by capture time, folder or table, and splits that never cut them."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fake_reader import FakeReader
from PIL import Image

from labn.data.groups import find_groups, merge_groups
from labn.data.readers.class_folders import FolderReader
from labn.data.readers.idrid import IdridReader
from labn.data.readers.reader import Record
from labn.data.splits import assign_subsets
from labn.errors import UserError

SETTINGS = {
    "validation_fraction": 0.2,
    "test_fraction": 0.2,
    "seed": 0,
    "cross_partition_duplicates": "drop_train",
    "conflicting_labels": "drop",
}
SECONDS = (0, 100, 220, 341, 4000, 4000, None)
"""Capture times; a gap of 121 s before the fourth."""


def record(number, *, grade=0, subset="train", folder=Path()):
    path = folder / f"{number:03}.jpg"
    name = f"{subset}/{path.name}"
    return Record(name=name, path=path, grade=grade, label=int(grade > 0), subset=subset)


def clock(seconds, date="2017:08:01"):
    return (
        f"{date} 13:{seconds // 60:02}:{seconds % 60:02}" if seconds < 3600 else f"{date} 23:00:00"
    )


def reader_of(folder, seconds=SECONDS, **changes):
    """Write images with EXIF times."""
    records = [record(number, folder=folder, **changes) for number in range(len(seconds))]
    for one, time in zip(records, seconds, strict=True):
        exif = Image.Exif()
        if time is not None:
            exif.get_ifd(0x8769)[0x9003] = clock(time)
        Image.new("RGB", (8, 8)).save(one.path, exif=exif)
    return FakeReader(folder, records)


def partition(groups):
    """Return the positions of each group."""
    return sorted([i for i, g in enumerate(groups) if g == name] for name in set(groups))


@pytest.mark.parametrize(
    ("gap_s", "expected"),
    [
        (120, [[0, 1, 2], [3], [4, 5], [6]]),
        (121, [[0, 1, 2, 3], [4, 5], [6]]),
        (99, [[0], [1], [2], [3], [4, 5], [6]]),
    ],
)
def test_images_of_a_series_without_a_longer_gap_are_one_group(tmp_path, gap_s, expected):
    reader = reader_of(tmp_path)
    assert partition(find_groups(reader, reader.records, "time", gap_s)) == expected


def test_a_table_at_the_root_has_the_times_that_the_files_have_lost(tmp_path):
    (tmp_path / "images").mkdir()
    reader = reader_of(tmp_path / "images")
    reader.root = tmp_path
    lines = [f"{n:03},{clock(s, '2017-08-01')}" for n, s in enumerate((0, 500, 10, 510))]
    (tmp_path / "provenance.csv").write_text("\n".join(["image,exif_datetime", *lines]))
    groups = find_groups(reader, reader.records, "time", 120)
    assert partition(groups) == [[0, 2], [1, 3], [4], [5], [6]]


def test_a_column_of_a_table_groups_by_its_values(tmp_path):
    records = [*map(record, range(4)), record(0, subset="test")]
    (tmp_path / "patients.csv").write_text(
        "Image name,Patient\n000,a\n001.jpg,b\ntrain/002.jpg,a\n003,\ntest/000.jpg,b\n"
    )
    reader = FakeReader(tmp_path, records)
    groups = find_groups(reader, records, "patients.csv:patient", 0)
    assert partition(groups) == [[0, 2], [1, 4], [3]]
    with pytest.raises(UserError, match=r"patients.csv must have the columns image and eye"):
        find_groups(reader, records, "patients.csv:eye", 0)
    (tmp_path / "two.csv").write_text("image,patient\n000,a\n001,b\n000,a\n001,c\n")
    with pytest.raises(UserError, match=r"two.csv: 001 has b in one row and c in another;"):
        find_groups(reader, records, "two.csv:patient", 0)
    with pytest.raises(UserError, match=r"data.group_by = other.csv:x: .*does not exist"):
        find_groups(reader, records, "other.csv:x", 0)


def test_no_time_at_all_is_an_error_where_it_was_asked_for_and_no_grouping_by_default(tmp_path):
    reader = reader_of(tmp_path, (None, None))
    with pytest.raises(UserError, match=r"data.group_by = time: no image has one"):
        find_groups(reader, reader.records, "time", 120)
    for choice in ("auto", None):
        assert find_groups(reader, reader.records, choice, 120) is None


def test_a_folder_in_a_class_folder_is_a_group(tmp_path):
    for name in ("no/ann/1", "no/ann/2", "no/bob/1", "yes/cy/1", "masks/yes/cy/1"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 5)).save(tmp_path / f"{name}.png")
    reader = FolderReader(tmp_path, has_group_folders=True)
    scan = reader.scan()
    assert scan.problems == []
    assert [(r.name, r.label) for r in scan.records] == [
        ("no/ann/1.png", 0), ("no/ann/2.png", 0), ("no/bob/1.png", 0), ("yes/cy/1.png", 1)
    ]  # fmt: skip
    assert reader.lesion_mask(scan.records[3]) is not None
    assert partition(find_groups(reader, scan.records, "folder", 0)) == [[0, 1], [2], [3]]


def test_groups_that_share_an_image_become_one():
    numbers = merge_groups(["a", "a", "b", "c", "d"], ["1", "2", "2", "3", "4"])
    assert partition(numbers.tolist()) == [[0, 1, 2], [3], [4]]


def grouped(num_images=200):
    """Return images of five grades, in groups of one to four, with a few copies across groups."""
    rng = np.random.default_rng(0)
    records = [record(n, grade=int(rng.integers(5))) for n in range(num_images)]
    groups = tuple(f"g{name}" for name in np.sort(rng.integers(0, num_images // 2, num_images)))
    sha256 = [one.name for one in records]
    for one, other in ((3, 150), (20, 90)):
        sha256[one] = sha256[other]
    return records, sha256, groups


def subsets_of(groups, sha256, subsets):
    """Return the subsets that each group, and each image with its copies, is in."""
    found = {}
    for key, subset in [*zip(groups, subsets, strict=True), *zip(sha256, subsets, strict=True)]:
        found.setdefault(key, set()).add(subset)
    return found.values()


def test_a_drawn_share_cuts_no_group_and_no_pair_of_copies():
    records, sha256, groups = grouped()
    keep = SETTINGS | {"conflicting_labels": "keep"}
    drawn = assign_subsets(records, sha256, **keep, groups=groups)
    assert all(len(subsets) == 1 for subsets in subsets_of(groups, sha256, drawn.subsets))
    counts = Counter(drawn.subsets)
    assert counts["validation"] == pytest.approx(40, abs=4) and counts.total() == 200
    assert "whole groups by data.group_by" in drawn.notes[-1]
    again, other = (
        assign_subsets(records, sha256, **keep | {"seed": seed}, groups=groups).subsets
        for seed in (0, 1)
    )
    assert again == drawn.subsets != other


@pytest.mark.parametrize("has_groups", [True, False])
def test_every_image_validates_in_one_fold_whose_grades_are_those_of_all(has_groups):
    records, sha256, groups = grouped()
    keep, groups = SETTINGS | {"conflicting_labels": "keep"}, groups if has_groups else None
    folds = [
        assign_subsets(records, sha256, **keep, groups=groups, folds=5, fold=fold).subsets
        for fold in range(5)
    ]
    for subsets in folds:
        keys = groups or tuple(one.name for one in records)
        assert all(len(found) == 1 for found in subsets_of(keys, sha256, subsets))
        grades = Counter(r.grade for r, s in zip(records, subsets, strict=True) if s != "train")
        for grade, count in Counter(one.grade for one in records).items():
            assert grades[grade] == pytest.approx(count / 5, abs=4)
    times_validated = [one.count("validation") for one in zip(*folds, strict=True)]
    assert times_validated == [1] * len(records)


def test_folds_that_cannot_be_drawn_are_refused():
    many = [record(n, grade=n % 2) for n in range(40)]
    two = tuple("ab"[number % 2] for number in range(40))
    with pytest.raises(UserError, match=r"data.folds = 9: needs 9 groups of images, but .* are 2"):
        assign_subsets(many, [one.name for one in many], **SETTINGS, groups=two, folds=9)
    rare = [record(n, grade=int(n < 3)) for n in range(40)]
    names = [one.name for one in rare]
    with pytest.raises(UserError, match=r"data.folds = 5: needs 5 training images of each class"):
        assign_subsets(rare, names, **SETTINGS, folds=5)
    own = [*rare, record(50, grade=1, subset="validation")]
    with pytest.raises(UserError, match=r"data.folds = 2: the data set names its validation"):
        assign_subsets(own, [one.name for one in own], **SETTINGS, folds=2)


@pytest.mark.parametrize("fraction", [0.01, 0.02, 0.3, 0.98])
def test_a_share_of_groups_is_as_large_as_it_was_asked_for(fraction):
    records = [record(n, grade=n % 2) for n in range(400)]
    names = tuple(one.name for one in records)
    settings = SETTINGS | {"validation_fraction": fraction}
    drawn = assign_subsets(records, names, **settings, groups=names).subsets
    assert drawn.count("validation") / len(records) == pytest.approx(fraction, abs=0.005)


@pytest.mark.parametrize(
    "settings", [{"folds": 4}, {"validation_fraction": 0.25}], ids=["folds", "share"]
)
def test_groups_that_leave_a_subset_without_a_class_are_refused(settings):
    """All positives are of two patients, so that four folds cannot have some each."""
    records = [record(n, grade=int(n < 20)) for n in range(80)]
    groups = tuple(str(n // 10) for n in range(80))
    if "folds" not in settings:
        groups = tuple("all" if n < 20 else str(n) for n in range(80))
    (key,) = settings
    with pytest.raises(UserError, match=rf"data.{key} = .*each subset has positives.*group_by"):
        assign_subsets(
            records, [one.name for one in records], **(SETTINGS | settings), groups=groups
        )


@pytest.mark.real_data
def test_gaps_of_two_minutes_make_290_groups_of_idrids_training_images():
    root = os.environ.get("LABN_TEST_DATA")
    if not root:
        pytest.skip("LABN_TEST_DATA names no folder of public data")
    reader = IdridReader(Path(root) / "idrid256_dev")
    groups = find_groups(reader, reader.scan().records, "auto", 120)
    assert len(set(groups)) == 290
    assert max(Counter(groups).values()) == 4
    originals = IdridReader(Path(root) / "idrid_official_layout_sample")
    assert find_groups(originals, originals.scan().records, "auto", 120) is not None
