from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from labn.config import DataConfig
from labn.data.audit import audit
from labn.data.audit_report import MEANINGS
from labn.data.readers.idrid import IdridReader
from labn.data.readers.reader import Problem, ProblemKind, Record, Scan


def photograph(seed, size=64):
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


class FakeReader:
    """Images under one folder, added one by one; grade 0 is negative."""

    class_names = ("negative", "positive")
    num_channels = 3
    geometry = "as stored"

    def __init__(self, folder: Path) -> None:
        self.root = folder
        self.records: list[Record] = []
        self.problems: list[Problem] = []

    def add(self, name, image=None, grade=0, subset="train", **options):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if image is not None:
            Image.fromarray(image).save(path, **options)
        record = Record(name=name, path=path, grade=grade, label=int(grade > 0), subset=subset)
        self.records.append(record)
        return path

    def scan(self):
        return Scan(self.records, self.problems)

    def read(self, record):
        return np.asarray(Image.open(record.path).convert("RGB"))

    def lesion_mask(self, record):
        return None


@pytest.fixture
def reader(tmp_path):
    """Ten sound images of each class in training, five of each in test."""
    reader = FakeReader(tmp_path)
    for seed in range(20):
        reader.add(f"train/{seed:02}.png", photograph(seed), grade=seed % 2)
    for seed in range(20, 30):
        reader.add(f"test/{seed:02}.png", photograph(seed), grade=seed % 2, subset="test")
    return reader


def found(result):
    return {(finding.kind, finding.names) for finding in result.findings}


def test_a_sound_data_set_yields_no_finding(reader):
    result = audit(reader)
    assert result.findings == []
    assert not result.has_errors
    assert (result.num_images, result.num_readable) == (30, 30)
    assert result.sizes == {"64x64": 30}
    assert result.as_text().endswith("Training can use this data set as it is.")


def test_every_broken_file_is_named_and_none_stops_the_audit(reader):
    whole = reader.add("train/truncated.jpg", photograph(50))
    whole.write_bytes(whole.read_bytes()[:400])
    reader.add("train/empty.png").write_bytes(b"")
    reader.add("train/text.png").write_text("not an image")
    reader.add("train/absent.png")
    result = audit(reader)
    assert found(result) == {
        ("unreadable_file", ("train/truncated.jpg",)),
        ("unreadable_file", ("train/empty.png",)),
        ("unreadable_file", ("train/text.png",)),
        ("missing_file", ("train/absent.png",)),
    }
    assert {finding.severity for finding in result.findings} == {"error"}
    assert (result.num_images, result.num_readable) == (34, 30)
    assert "refuses this data set until 4 are fixed" in result.as_text()


def test_equal_pixels_in_two_formats_are_duplicates(reader):
    reader.add("train/copy.bmp", photograph(3), grade=1)
    result = audit(reader)
    assert found(result) == {("duplicates", ("train/03.png", "train/copy.bmp"))}
    assert not result.has_errors


def test_copies_in_two_subsets_with_different_labels_are_both_kinds_of_finding(reader):
    reader.add("test/copy.png", photograph(3), grade=0, subset="test")
    result = audit(reader)
    names = ("train/03.png", "test/copy.png")
    assert found(result) == {("conflicting_labels", names), ("cross_partition_duplicates", names)}
    assert [finding.severity for finding in result.findings] == ["error", "warning"]
    assert result.findings[0].detail == (
        "train/03.png (train, grade 1, positive), test/copy.png (test, grade 0, negative)"
    )


def test_a_group_that_the_data_set_divides_is_found(reader, tmp_path):
    (tmp_path / "eyes.csv").write_text("image,eye\n03,a\n04,a\n05,b\ntest/22.png,b\n")
    result = audit(reader, group_by="eyes.csv:eye")
    (divided, alone) = result.findings
    assert (divided.kind, divided.names) == (
        "cross_partition_groups",
        ("train/05.png", "test/22.png"),
    )
    assert (alone.kind, len(alone.names)) == ("ungrouped", 17)
    assert alone.detail.startswith("17 of 30 images, such as train/00.png, have none by")
    assert not result.has_errors


def test_copies_with_different_grades_of_one_label_are_only_a_warning(reader):
    reader.add("train/copy.png", photograph(3), grade=4)
    result = audit(reader)
    names = ("train/03.png", "train/copy.png")
    assert found(result) == {("duplicates", names), ("conflicting_grades", names)}
    assert not result.has_errors


@pytest.mark.parametrize(
    ("subset", "kind"),
    [("train", "near_duplicates"), ("test", "cross_partition_near_duplicates")],
)
def test_a_recompressed_copy_is_a_near_duplicate(reader, subset, kind):
    reader.add("copy.jpg", photograph(3), grade=1, subset=subset, quality=70)
    assert found(audit(reader)) == {(kind, ("train/03.png", "copy.jpg"))}


def test_a_near_duplicate_of_one_copy_is_one_of_the_other_copies_too(reader):
    reader.add("test/copy.png", photograph(3), grade=1, subset="test")
    reader.add("train/near.jpg", photograph(3), grade=1, quality=70)
    names = ("train/03.png", "test/copy.png", "train/near.jpg")
    assert ("cross_partition_near_duplicates", names) in found(audit(reader))


def test_a_threshold_of_zero_finds_no_near_duplicate(reader):
    reader.add("train/copy.jpg", photograph(3), grade=1, quality=70)
    assert audit(reader, near_duplicate_threshold=0).findings == []


def test_blank_images_are_named_but_are_not_near_one_another(reader):
    reader.add("train/black.png", np.zeros((64, 64, 3), np.uint8))
    reader.add("train/grey.png", np.full((64, 64, 3), 130, np.uint8))
    result = audit(reader)
    assert found(result) == {
        ("blank_image", ("train/black.png",)),
        ("blank_image", ("train/grey.png",)),
    }
    assert "grey level 130 of 255" in result.findings[1].detail


def test_images_are_counted_by_subset_label_and_grade(reader):
    for number in range(3):
        reader.add(f"more/{number}.png", photograph(60 + number), grade=number, subset=None)
    balances = audit(reader).partitions
    assert list(balances) == ["train", "test", "unassigned"]
    assert balances["train"].labels == {"negative": 10, "positive": 10}
    assert balances["unassigned"].labels == {"negative": 1, "positive": 2}
    assert balances["unassigned"].grades == {"0": 1, "1": 1, "2": 1}


def test_a_subset_of_one_class_and_tiny_classes_are_warnings(reader):
    for number in range(6):
        reader.add(f"validation/{number}.png", photograph(70 + number), subset="validation")
    for number in range(9):
        grade = int(number < 4)
        reader.add(f"more/{number}.png", photograph(80 + number), grade=grade, subset=None)
    result = audit(reader)
    assert found(result) == {
        ("single_class", ("validation",)),
        ("tiny_class", ("unassigned", "positive")),
    }
    assert not result.has_errors


def test_sizes_are_shown_when_there_are_several(reader):
    reader.add("train/wide.png", photograph(90)[:40])
    result = audit(reader)
    assert result.sizes == {"64x64": 30, "64x40": 1}
    assert "2 sizes  64x64: 30, 64x40: 1" in result.as_text()


@pytest.mark.parametrize("kind", get_args(ProblemKind))
def test_what_the_reader_reports_is_kept_with_its_weight(reader, kind):
    reader.problems.append(Problem(kind=kind, name="row 7", detail="something is wrong"))
    (finding,) = audit(reader).findings
    assert (finding.kind, finding.names) == (kind, ("row 7",))
    is_minor = kind in ("unlisted_file", "unread_file", "random_subsets", "mixed_orientation")
    assert finding.severity == ("warning" if is_minor else "error")
    assert finding.detail == "row 7: something is wrong"


def test_a_data_set_without_images_is_an_error(tmp_path):
    result = audit(FakeReader(tmp_path))
    assert found(result) == {("no_images", ())}
    assert result.has_errors


def test_the_gravest_findings_come_first(reader):
    reader.problems.append(Problem(kind="unlisted_file", name="a.png", detail="no row"))
    reader.problems.append(Problem(kind="bad_table", name="a.csv", detail="no such column"))
    reader.add("train/copy.png", photograph(3), grade=1)
    kinds = [finding.kind for finding in audit(reader).findings]
    assert kinds == ["bad_table", "duplicates", "unlisted_file"]


def test_ten_lines_of_a_kind_are_shown_and_the_others_counted(reader):
    for number in range(13):
        reader.problems.append(Problem(kind="unlisted_file", name=f"{number}.png", detail="no row"))
    lines = audit(reader).as_text().splitlines()
    assert sum(line.endswith("no row") for line in lines) == 10
    assert "  +3 more" in lines


def test_a_large_group_is_named_whole_but_shown_in_part(reader):
    for number in range(6):
        reader.add(f"train/copy{number}.png", photograph(3), grade=1)
    (finding,) = audit(reader).findings
    assert len(finding.names) == 7
    assert finding.detail.endswith("train/copy2.png (grade 1, positive), +3 more")


def test_the_defaults_in_the_text_are_those_of_the_settings():
    text = " ".join(consequence for _, consequence in MEANINGS.values())
    stated = dict(re.findall(r"data\.(\w+) = (\w+), the default", text))
    assert set(stated) == {"conflicting_labels", "cross_partition_duplicates"}
    assert stated == {key: DataConfig.model_fields[key].default for key in stated}


def test_the_json_is_plain_and_the_same_each_time(reader):
    reader.add("test/copy.png", photograph(3), grade=0, subset="test")
    tree = audit(reader).as_json()
    assert json.loads(json.dumps(tree)) == tree == audit(reader).as_json()
    assert (tree["num_images"], tree["num_errors"], tree["num_warnings"]) == (31, 1, 1)
    assert tree["partitions"]["train"]["grades"] == {"0": 10, "1": 10}
    assert tree["findings"][0] == {
        "severity": "error",
        "kind": "conflicting_labels",
        "names": ["train/03.png", "test/copy.png"],
        "detail": "train/03.png (train, grade 1, positive),"
        " test/copy.png (test, grade 0, negative)",
    }


def test_progress_is_reported_after_each_image(reader):
    reported = []
    audit(reader, report_progress=lambda done, total: reported.append((done, total)))
    assert reported == [(number, 30) for number in range(1, 31)]


def test_an_error_of_our_own_is_not_taken_for_a_broken_file(reader):
    reader.read = lambda record: record.no_such_field
    with pytest.raises(AttributeError, match="no_such_field"):
        audit(reader)


def real_data() -> Path:
    root = os.environ.get("LABN_TEST_DATA")
    if not root:
        pytest.skip("LABN_TEST_DATA names no folder of public data")
    return Path(root)


@pytest.mark.real_data
def test_the_copies_of_idrid_are_found_and_no_others():
    result = audit(IdridReader(real_data() / "idrid256_dev"))
    pairs = {
        (f.kind, *(re.search(r"\d{3}", name).group() for name in f.names)) for f in result.findings
    }
    assert pairs == {
        ("duplicates", "021", "391"),
        ("duplicates", "028", "327"),
        ("duplicates", "045", "333"),
        ("duplicates", "073", "375"),
        ("duplicates", "079", "279"),
        ("conflicting_grades", "021", "391"),
        ("conflicting_grades", "028", "327"),
    }
    assert result.partitions["train"].grades == {"0": 134, "1": 20, "2": 136, "3": 74, "4": 49}


@pytest.mark.real_data
def test_the_image_that_idrid_has_in_both_subsets_is_found():
    result = audit(IdridReader(real_data() / "idrid_official_layout_sample"))
    kinds = Counter(finding.kind for finding in result.findings)
    assert kinds == {"conflicting_labels": 1, "cross_partition_duplicates": 1, "single_class": 1}
    assert [Path(name).stem for name in result.findings[0].names] == ["IDRiD_118", "IDRiD_064"]
    assert result.has_errors
