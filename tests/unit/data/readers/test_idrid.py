import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labn.data.readers.idrid import IdridReader
from labn.errors import UserError

TRAIN = ("a. Training Set", "a. IDRiD_Disease Grading_Training Labels.csv")
TEST = ("b. Testing Set", "b. IDRiD_Disease Grading_Testing Labels.csv")
HEADER = "Image name,Retinopathy grade,Risk of macular edema ,,,,,,,,,"

real_data = pytest.mark.real_data
needs_data = pytest.mark.skipif(
    "LABN_TEST_DATA" not in os.environ, reason="LABN_TEST_DATA names no folder of public data"
)


def _write_subset(root, names, rows, images, *, header=HEADER, encoding="utf-8"):
    folder = root / "B. Disease Grading" / "1. Original Images" / names[0]
    folder.mkdir(parents=True)
    for name in images:
        Image.fromarray(np.full((6, 8, 3), 90, dtype=np.uint8)).save(folder / name)
    table = root / "B. Disease Grading" / "2. Groundtruths" / names[1]
    table.parent.mkdir(exist_ok=True)
    lines = [header, *(f"{row},0,,,,,,,,," for row in rows), ",,,,,,,,,,,"]
    table.write_text("\r\n".join(lines), encoding=encoding)


def _small_set(root):
    _write_subset(
        root,
        TRAIN,
        ["IDRiD_001,3", "IDRiD_002,0", "IDRiD_003,1"],
        ["IDRiD_001.jpg", "IDRiD_002.JPG", "IDRiD_003.jpg"],
    )
    _write_subset(root, TEST, ["IDRiD_001,0"], ["IDRiD_001.jpg"])
    return root


def _kinds(scan):
    return [problem.kind for problem in scan.problems]


def test_both_subsets_are_listed_with_their_grades_and_labels(tmp_path):
    scan = IdridReader(_small_set(tmp_path)).scan()
    assert scan.problems == []
    assert [(r.name, r.grade, r.label, r.subset) for r in scan.records] == [
        ("train/IDRiD_001.jpg", 3, 1, "train"),
        ("train/IDRiD_002.JPG", 0, 0, "train"),
        ("train/IDRiD_003.jpg", 1, 1, "train"),
        ("test/IDRiD_001.jpg", 0, 0, "test"),
    ]


def test_each_grade_may_be_a_class_of_its_own(tmp_path):
    reader = IdridReader(_small_set(tmp_path), by_grade=True)
    assert reader.class_names == ("grade 0", "grade 1", "grade 2", "grade 3", "grade 4")
    assert [(r.grade, r.label) for r in reader.scan().records] == [(3, 3), (0, 0), (1, 1), (0, 0)]
    assert reader.geometry == IdridReader(tmp_path).geometry  # so that caches are shared


def test_the_root_may_be_the_grading_folder_itself(tmp_path):
    grading = _small_set(tmp_path) / "B. Disease Grading"
    assert IdridReader(grading).scan().records == IdridReader(tmp_path).scan().records


def test_the_paths_are_absolute_for_workers_that_run_elsewhere(tmp_path, monkeypatch):
    _small_set(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    assert IdridReader(Path("set")).scan().records[0].path.is_absolute()


def test_a_missing_test_subset_is_no_problem(tmp_path):
    _write_subset(tmp_path, TRAIN, ["IDRiD_001,3"], ["IDRiD_001.jpg"])
    scan = IdridReader(tmp_path).scan()
    assert len(scan.records) == 1 and scan.problems == []


def test_headers_with_blanks_and_a_byte_order_mark_are_read(tmp_path):
    header = "Image name ,Retinopathy grade ,Risk of macular edema "
    _write_subset(
        tmp_path, TRAIN, ["IDRiD_001,3"], ["IDRiD_001.jpg"], header=header, encoding="utf-8-sig"
    )
    assert [r.grade for r in IdridReader(tmp_path).scan().records] == [3]


def test_every_defect_of_rows_is_reported_and_the_good_rows_stay(tmp_path):
    rows = ["IDRiD_001,3", "IDRiD_002,5", "IDRiD_003,", "IDRiD_004,1", "IDRiD_001,2", ",1"]
    images = ["IDRiD_001.jpg", "IDRiD_002.jpg", "IDRiD_003.jpg", "IDRiD_009.jpg"]
    _write_subset(tmp_path, TRAIN, rows, images)
    scan = IdridReader(tmp_path).scan()
    assert [(r.name, r.grade) for r in scan.records] == [("train/IDRiD_001.jpg", 3)]
    assert [(p.kind, p.name) for p in scan.problems] == [
        ("label_out_of_range", "train/IDRiD_002"),
        ("label_out_of_range", "train/IDRiD_003"),
        ("missing_file", "train/IDRiD_004"),
        ("duplicate_row", "train/IDRiD_001"),
        ("bad_table", "train/"),
        ("unlisted_file", "train/IDRiD_009.jpg"),
    ]
    assert "line 3 " in scan.problems[0].detail and '"5"' in scan.problems[0].detail


def test_a_name_that_differs_in_case_is_another_image(tmp_path):
    _write_subset(tmp_path, TRAIN, ["idrid_001,3"], ["IDRiD_001.jpg"])
    assert _kinds(IdridReader(tmp_path).scan()) == ["missing_file", "unlisted_file"]


def test_files_that_are_not_images_are_ignored(tmp_path):
    _write_subset(tmp_path, TRAIN, ["IDRiD_001,3"], ["IDRiD_001.jpg", "._IDRiD_001.jpg"])
    folder = tmp_path / "B. Disease Grading" / "1. Original Images" / TRAIN[0]
    (folder / "Thumbs.db").write_bytes(b"")
    assert IdridReader(tmp_path).scan().problems == []


@pytest.mark.parametrize(
    "content", [None, b"", b"Image,Grade\r\nIDRiD_001,3\r\n", b"\xff\xfe\x00binary"]
)
def test_a_table_that_cannot_be_used_is_one_problem(tmp_path, content):
    _small_set(tmp_path)
    table = tmp_path / "B. Disease Grading" / "2. Groundtruths" / TRAIN[1]
    table.unlink() if content is None else table.write_bytes(content)
    scan = IdridReader(tmp_path).scan()
    assert [(p.kind, p.name) for p in scan.problems] == [("bad_table", TRAIN[1])]
    assert [r.subset for r in scan.records] == ["test"]


def test_a_table_without_its_folder_of_images_is_one_problem(tmp_path):
    _small_set(tmp_path)
    folder = tmp_path / "B. Disease Grading" / "1. Original Images" / TEST[0]
    (folder / "IDRiD_001.jpg").unlink()
    folder.rmdir()
    scan = IdridReader(tmp_path).scan()
    assert [(p.kind, p.name) for p in scan.problems] == [("missing_file", TEST[0])]


def test_another_layout_is_refused_in_one_line_that_names_what_was_expected(tmp_path):
    with pytest.raises(UserError, match=r"expected IDRiD .*1\. Original Images") as caught:
        IdridReader(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no such folder"):
        IdridReader(tmp_path / "absent")


def test_an_image_as_the_camera_took_it_is_cropped_to_the_fundus(tmp_path):
    _write_subset(tmp_path, TRAIN, ["IDRiD_001,3"], [])
    pixels = np.zeros((2848, 4288, 3), dtype=np.uint8)
    pixels[:, 290:3701] = (10, 20, 30)
    pixels[0, 290] = pixels[2847, 3700] = 255
    folder = tmp_path / "B. Disease Grading" / "1. Original Images" / TRAIN[0]
    Image.fromarray(pixels).save(folder / "IDRiD_001.png", compress_level=1)
    reader = IdridReader(tmp_path)
    cropped = reader.read(reader.scan().records[0])
    assert cropped.shape == (2848, 3411, 3)
    assert cropped[0, 0, 0] == cropped[-1, -1, 0] == 255
    assert cropped[:, :, 1].min() == 20


def test_an_image_of_another_size_counts_as_cropped(tmp_path):
    reader = IdridReader(_small_set(tmp_path))
    assert reader.read(reader.scan().records[0]).shape == (6, 8, 3)


def _write_boxes(root, *rows):
    (root / "lesion_boxes.csv").write_text("\r\n".join(["image,class,x0,y0,x1,y1", *rows]))


def test_the_mask_is_the_union_of_lesion_boxes_without_the_disc(tmp_path):
    _write_boxes(
        _small_set(tmp_path),
        "IDRiD_001,hard_exudates,0.0,0.0,0.25,0.5",
        "IDRiD_001,haemorrhage,0.80,0.70,0.81,0.71",
        "IDRiD_001,optic_disc,0.5,0,0.6,1",
    )
    reader = IdridReader(tmp_path)
    first, second, *_ = reader.scan().records
    expected = np.zeros((6, 8), dtype=bool)
    expected[:3, :2] = True
    expected[4, 6] = True  # a box smaller than a pixel still marks the pixel it lies in
    np.testing.assert_array_equal(reader.lesion_mask(first), expected)
    assert [box[0] for box in reader.lesion_boxes(first)] == [
        "hard_exudates",
        "haemorrhage",
        "optic_disc",
    ]
    assert reader.lesion_mask(second) is None


def test_an_image_with_only_its_disc_boxed_has_unknown_lesions(tmp_path):
    _write_boxes(_small_set(tmp_path), "IDRiD_001,optic_disc,0.5,0,0.6,1")
    reader = IdridReader(tmp_path)
    assert reader.lesion_mask(reader.scan().records[0]) is None


def test_boxes_of_training_images_are_not_used_for_test_images_of_the_same_name(tmp_path):
    _write_boxes(_small_set(tmp_path), "IDRiD_001,haemorrhage,0,0,1,1")
    reader = IdridReader(tmp_path)
    records = {record.name: record for record in reader.scan().records}
    assert reader.lesion_mask(records["train/IDRiD_001.jpg"]) is not None
    assert reader.lesion_mask(records["test/IDRiD_001.jpg"]) is None


def test_changed_boxes_make_caches_stale(tmp_path):
    plain = IdridReader(_small_set(tmp_path)).geometry
    _write_boxes(tmp_path, "IDRiD_001,haemorrhage,0,0,1,1")
    boxed = IdridReader(tmp_path).geometry
    assert plain != boxed == IdridReader(tmp_path).geometry


@pytest.mark.parametrize("corners", ["0,0,1.5,1", "0.5,0,0.4,1", "a,0,1,1", "nan,0,1,1", "0,0,1"])
def test_boxes_outside_the_image_are_reported(tmp_path, corners):
    _write_boxes(_small_set(tmp_path), f"IDRiD_001,haemorrhage,{corners}")
    problems = IdridReader(tmp_path).scan().problems
    assert [(p.kind, p.name) for p in problems] == [("bad_table", "lesion_boxes.csv line 2")]


def test_boxes_that_mark_nothing_are_reported(tmp_path):
    _write_boxes(
        _small_set(tmp_path),
        "IDRiD_001.jpg,hard_exudates,0,0,1,1",
        "IDRiD_999,haemorrhage,0,0,1,1",
        "IDRiD_002,Haemorrhages,0,0,1,1",
    )
    reader = IdridReader(tmp_path)
    scan = reader.scan()
    assert reader.lesion_mask(scan.records[0]).all()  # a name with its extension is the same
    assert [(p.kind, p.name) for p in scan.problems] == [
        ("unlisted_file", "IDRiD_999"),
        ("unlisted_file", "Haemorrhages"),
    ]
    assert scan.others[tmp_path / "lesion_boxes.csv"] == "table"


def test_boxes_without_the_right_columns_are_reported(tmp_path):
    (_small_set(tmp_path) / "lesion_boxes.csv").write_text("image,x,y\nIDRiD_001,0,0\n")
    assert _kinds(IdridReader(tmp_path).scan()) == ["bad_table"]


def test_a_link_to_nowhere_is_a_missing_image(tmp_path):
    folder = _small_set(tmp_path) / "B. Disease Grading" / "1. Original Images" / TRAIN[0]
    (folder / "IDRiD_002.JPG").unlink()
    (folder / "IDRiD_002.JPG").symlink_to("absent/2.jpg")
    (problem,) = IdridReader(tmp_path).scan().problems
    assert (problem.kind, problem.name) == ("missing_file", "train/IDRiD_002")
    assert "links to absent/2.jpg" in problem.detail


def test_other_files_beside_the_images_are_reported_unless_they_are_the_system_s(tmp_path):
    folder = _small_set(tmp_path) / "B. Disease Grading" / "1. Original Images" / TRAIN[0]
    for name in ("Thumbs.db", "._IDRiD_001.jpg", "desktop.ini", ".DS_Store", "eye.heic"):
        (folder / name).write_bytes(b"x")
    problems = IdridReader(tmp_path).scan().problems
    assert [(p.kind, p.name) for p in problems] == [("unread_file", "train/eye.heic")]


ROWS = [HEADER.rstrip(","), "IDRiD_001,3,0", "IDRiD_002,0,0", "IDRiD_003,1,0"]


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(ROWS).replace(",", ";").encode(),
        "\n".join(ROWS).replace(",", "\t").encode(),
        "\r\n".join(ROWS).encode("utf-16"),
        "\n".join(ROWS).replace("edema", "\u0153d\u00e8me").encode("cp1252"),
        "\n".join([ROWS[0], *(row.replace(",0", ".0,0") for row in ROWS[1:2]), *ROWS[2:]]).encode(),
    ],
    ids=["semicolons", "tabs", "UTF-16", "Latin", "decimal grades"],
)
def test_tables_as_other_programs_save_them_are_read(tmp_path, content):
    _small_set(tmp_path)
    (tmp_path / "B. Disease Grading" / "2. Groundtruths" / TRAIN[1]).write_bytes(content)
    scan = IdridReader(tmp_path).scan()
    assert scan.problems == []
    assert [r.grade for r in scan.records] == [3, 0, 1, 0]


@pytest.mark.parametrize(
    "content",
    ["\n".join(ROWS).replace("IDRiD_001", '"IDRiD_001').encode(), b"PK\x03\x04\x00" * 9],
    ids=["a quote that never ends", "a spreadsheet"],
)
def test_what_is_no_table_is_refused_in_words(tmp_path, content):
    _small_set(tmp_path)
    (tmp_path / "B. Disease Grading" / "2. Groundtruths" / TRAIN[1]).write_bytes(content)
    problem = IdridReader(tmp_path).scan().problems[0]
    assert problem.kind == "bad_table" and "cannot be read as comma-separated" in problem.detail


def test_names_of_other_encodings_or_forms_of_accents_are_found(tmp_path):
    latin, composed = b"ol\xe9", "ol\u00e9"
    _write_subset(tmp_path, TRAIN, ["x,3", f"{composed},1"], ["x.jpg", "ole\u0301.jpg"])
    folder = tmp_path / "B. Disease Grading" / "1. Original Images" / TRAIN[0]
    (folder / "x.jpg").rename(folder / os.fsdecode(latin + b".jpg"))
    table = tmp_path / "B. Disease Grading" / "2. Groundtruths" / TRAIN[1]
    table.write_bytes(table.read_bytes().replace(b"x,3", latin + b",3"))
    scan = IdridReader(tmp_path).scan()
    assert scan.problems == []
    assert [r.name for r in scan.records] == ["train/ol\\xe9.jpg", "train/ole\u0301.jpg"]


@real_data
@needs_data
def test_the_real_training_subset_is_complete():
    reader = IdridReader(Path(os.environ["LABN_TEST_DATA"]) / "idrid256_dev")
    scan = reader.scan()
    assert scan.problems == []
    assert Counter(r.grade for r in scan.records) == {0: 134, 1: 20, 2: 136, 3: 74, 4: 49}
    assert sum(r.label for r in scan.records) == 279
    masked = [r for r in scan.records if reader.lesion_mask(r) is not None]
    assert Counter(r.label for r in masked) == {1: 228, 0: 10}
    assert sum(len(reader.lesion_boxes(r)) for r in scan.records) == 3082


@real_data
@needs_data
def test_the_real_originals_are_cropped():
    reader = IdridReader(Path(os.environ["LABN_TEST_DATA"]) / "idrid_official_layout_sample")
    scan = reader.scan()
    assert scan.problems == []
    assert Counter(r.subset for r in scan.records) == {"train": 11, "test": 1}
    assert reader.read(scan.records[-1]).shape == (2848, 3411, 3)
