import os

import numpy as np
import pytest
from PIL import Image

from labn.data.readers.class_folders import FolderReader
from labn.errors import UserError


def _write(root, *names, size=(4, 5), channels=3):
    shape = (*size, channels) if channels > 1 else size
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full(shape, 80, dtype=np.uint8)).save(path)
    return root


def _listing(reader):
    return [(r.name, r.label, r.subset) for r in reader.scan().records]


def _problems(reader):
    return [(p.kind, p.name) for p in reader.scan().problems]


def test_a_tree_without_subsets_is_listed_by_class_and_name(tmp_path):
    _write(tmp_path, "no_flare/b.png", "flare/c.JPG", "no_flare/a.bmp", "flare/d.tiff")
    reader = FolderReader(tmp_path)
    assert reader.class_names == ("no_flare", "flare")
    assert reader.num_channels == 3
    assert _listing(reader) == [
        ("no_flare/a.bmp", 0, None),
        ("no_flare/b.png", 0, None),
        ("flare/c.JPG", 1, None),
        ("flare/d.tiff", 1, None),
    ]
    assert _problems(reader) == []
    assert reader.read(reader.scan().records[0]).shape == (4, 5, 3)


@pytest.mark.parametrize("validation", ["val", "validation"])
def test_a_tree_with_subsets_assigns_each_image_to_one(tmp_path, validation):
    folders = ("train", validation, "test")
    _write(tmp_path, *(f"{folder}/{name}/1.png" for folder in folders for name in ("0", "1")))
    reader = FolderReader(tmp_path)
    assert reader.class_names == ("0", "1")
    assert sorted(_listing(reader)) == sorted(
        (f"{folder}/{name}/1.png", int(name), subset)
        for folder, subset in zip(folders, ("train", "validation", "test"), strict=True)
        for name in ("0", "1")
    )
    assert _problems(reader) == []


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("drusen", "healthy"), ("healthy", "drusen")),
        (("DR", "NoDR"), ("NoDR", "DR")),
        (("abnormal", "Normal"), ("Normal", "abnormal")),
        (("nodule", "clear"), ("clear", "nodule")),
        (("c", "a", "b"), ("a", "b", "c")),
    ],
)
def test_the_class_whose_name_reads_as_negative_comes_first(tmp_path, names, expected):
    _write(tmp_path, *(f"{name}/1.png" for name in names))
    assert FolderReader(tmp_path).class_names == expected


def test_the_negative_class_can_be_named(tmp_path):
    _write(tmp_path, "clear/1.png", "nodule/1.png", "normal/1.png")
    assert FolderReader(tmp_path, "nodule").class_names == ("nodule", "clear", "normal")
    with pytest.raises(UserError, match='Did you mean "nodule"'):
        FolderReader(tmp_path, "nodul")


def test_images_are_grey_only_if_all_that_open_are(tmp_path):
    _write(tmp_path, "a/2.png", "b/1.png", channels=1)
    (tmp_path / "a" / "1.png").write_bytes(b"broken")
    reader = FolderReader(tmp_path)
    assert reader.num_channels == 1
    assert reader.read(reader.scan().records[-1]).shape == (4, 5, 1)
    _write(tmp_path, "b/9.png")
    assert FolderReader(tmp_path).num_channels == 3


@pytest.mark.parametrize("suffix", ["webp", "gif", "jfif", "ppm", "pgm", "jp2", "TGA", "avif"])
def test_every_format_that_pillow_reads_is_an_image(tmp_path, suffix):
    _write(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "b" / f"2.{suffix}").write_bytes(b"")
    assert [r.name for r in FolderReader(tmp_path).scan().records][-1] == f"b/2.{suffix}"


@pytest.mark.parametrize("name", ["2.heic", "2.dcm", "2.nii.gz", "2.npy"])
def test_a_file_beside_images_that_is_not_read_is_reported(tmp_path, name):
    _write(tmp_path, "a/1.png", "b/1.png")
    for other in (name, "notes.txt", "Thumbs.db", ".DS_Store", "._1.png"):
        (tmp_path / "b" / other).write_bytes(b"x")
    assert _problems(FolderReader(tmp_path)) == [("unread_file", f"b/{name}")]


def test_links_to_nowhere_are_missing_files(tmp_path):
    _write(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "b" / "2.png").symlink_to("absent/2.png")
    (tmp_path / "b" / "3.png").symlink_to("3.png")
    os.mkfifo(tmp_path / "b" / "4.png")
    reader = FolderReader(tmp_path)
    assert _problems(reader) == [
        ("missing_file", "b/2.png"),
        ("missing_file", "b/3.png"),
        ("unreadable_file", "b/4.png"),
    ]
    assert all(problem.is_fatal for problem in reader.scan().problems)
    assert "links to absent/2.png, which does not exist" in reader.scan().problems[0].detail


def test_a_class_of_links_to_nowhere_is_still_a_class(tmp_path):
    _write(tmp_path, "a/1.png")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.png").symlink_to(tmp_path / "absent.png")
    assert _problems(FolderReader(tmp_path)) == [("missing_file", "b/1.png")]


@pytest.mark.parametrize("subset", ["", "train/"])
def test_a_class_that_is_lost_as_a_whole_is_reported(tmp_path, subset):
    _write(tmp_path, f"{subset}a/1.png", f"{subset}b/1.png")
    level = tmp_path / subset
    (level / "mounted").symlink_to("/absent/mounted")
    (level / "README.md").symlink_to("/absent/README.md")
    (level / "empty").mkdir()
    (level / "scans").mkdir()
    (level / "scans" / "1.dcm").touch()
    (level / "scans" / "notes.txt").touch()
    reader = FolderReader(tmp_path)
    assert sorted(_problems(reader)) == [
        ("missing_file", f"{subset}mounted"),
        ("unread_file", f"{subset}empty"),
        ("unread_file", f"{subset}scans/1.dcm"),
    ]


def test_linked_folders_are_read_and_links_that_lead_back_are_reported(tmp_path):
    root = tmp_path / "root"
    _write(root, "a/1.png")
    _write(tmp_path / "elsewhere", "1.png", "2.png")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "loop").symlink_to("..")
    (tmp_path / "elsewhere" / "top").symlink_to(tmp_path)
    reader = FolderReader(root)
    assert [r.name for r in reader.scan().records] == ["a/1.png", "b/1.png", "b/2.png"]
    assert _problems(reader) == [("unread_file", "a/loop"), ("unread_file", "b/top")]


def test_names_that_are_not_utf_8_become_text_and_their_files_are_read(tmp_path):
    _write(tmp_path, "a/1.png", "b/1.png", "masks/b/1.png")
    for folder in (tmp_path / "b", tmp_path / "masks" / "b"):
        (folder / "1.png").rename(folder / os.fsdecode(b"ol\xe9.png"))
    (tmp_path / "a").rename(tmp_path / os.fsdecode(b"nein\xe9"))
    reader = FolderReader(tmp_path)
    records = reader.scan().records
    assert reader.class_names == ("b", "nein\\xe9")
    assert [r.name for r in records] == ["b/ol\\xe9.png", "nein\\xe9/1.png"]
    assert reader.read(records[0]).shape == (4, 5, 3)
    assert reader.lesion_mask(records[0]).all()
    assert reader.geometry == FolderReader(tmp_path).geometry


def test_two_names_that_are_shown_alike_are_refused(tmp_path):
    _write(tmp_path, "a/1.png", "b/1.png", r"b/ol\xe9.png")
    (tmp_path / "b" / "1.png").rename(tmp_path / "b" / os.fsdecode(b"ol\xe9.png"))
    assert _problems(FolderReader(tmp_path)) == [("duplicate_row", "b/ol\\xe9.png")] * 2


def test_a_data_set_of_magnetograms_is_no_class_of_images(tmp_path):
    _write(tmp_path, "disks/1.png", "patches/1.png", "notes/1.png")
    for folder, text in (("disks", "file,class\n1.png,M\n"), ("notes", "file,author\n1.png,Q\n")):
        (tmp_path / folder / "labels.csv").write_text(text)
    assert _problems(FolderReader(tmp_path)) == [("bad_table", "disks/labels.csv")]


def test_a_mask_marks_its_image_and_an_image_without_one_is_unknown(tmp_path):
    _write(tmp_path, "negative/1.jpg", "positive/1.jpg")
    mask = np.zeros((4, 5), dtype=np.uint8)
    mask[1, 2], mask[3, 4] = 1, 255
    (tmp_path / "masks" / "positive").mkdir(parents=True)
    Image.fromarray(mask).save(tmp_path / "masks" / "positive" / "1.png")
    reader = FolderReader(tmp_path)
    assert reader.class_names == ("negative", "positive")
    negative, positive = reader.scan().records
    np.testing.assert_array_equal(reader.lesion_mask(positive), mask > 0)
    assert reader.lesion_mask(negative) is None
    assert _problems(reader) == []


@pytest.mark.parametrize("name", ["1.tif", "1.bmp", "1.gif", "1_mask.png", "1_segmentation.tif"])
def test_masks_are_found_in_the_formats_and_by_the_names_of_the_field(tmp_path, name):
    _write(tmp_path, "a/1.png", "b/1.png")
    _write(tmp_path, f"masks/b/{name}", channels=1)
    reader = FolderReader(tmp_path)
    scan = reader.scan()
    assert reader.lesion_mask(scan.records[1]).all()
    assert scan.problems == [] and scan.others == {tmp_path / "masks" / "b" / name: "mask"}


def test_several_masks_of_one_image_are_refused(tmp_path):
    _write(tmp_path, "a/1.png", "b/1.png", "masks/b/1.png", "masks/b/1.tif")
    problems = FolderReader(tmp_path).scan().problems
    assert [(p.kind, p.name, p.is_fatal) for p in problems] == [
        ("unreadable_mask", "b/1.png", True)
    ]
    assert "masks/b/1.png, masks/b/1.tif" in problems[0].detail


def test_masks_mirror_subsets_too(tmp_path):
    _write(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png")
    _write(tmp_path, "masks/test/b/1.png", channels=1)
    reader = FolderReader(tmp_path)
    masked = [r.name for r in reader.scan().records if reader.lesion_mask(r) is not None]
    assert masked == ["test/b/1.png"]


def test_new_masks_make_caches_stale(tmp_path):
    plain = FolderReader(_write(tmp_path, "a/1.png", "b/1.png")).geometry
    _write(tmp_path, "masks/b/1.png", channels=1)
    masked = FolderReader(tmp_path).geometry
    assert plain != masked == FolderReader(tmp_path).geometry


def test_a_mask_of_another_size_is_refused(tmp_path):
    _write(tmp_path, "a/1.png", "b/1.png")
    _write(tmp_path, "masks/b/1.png", size=(4, 6), channels=1)
    reader = FolderReader(tmp_path)
    with pytest.raises(ValueError, match=r"\(6, 4\) pixels, its image \(5, 4\)"):
        reader.lesion_mask(reader.scan().records[1])


def test_images_and_masks_that_nothing_uses_are_reported(tmp_path):
    _write(tmp_path, "a/1.png", "b/1.png", "loose.png", "a/deep/2.png", "a/deep/3.png")
    _write(tmp_path, "masks/a/9.png", "masks/8.png", channels=1)
    (tmp_path / "docs").mkdir()
    assert sorted(_problems(FolderReader(tmp_path))) == [
        ("unlisted_file", "."),
        ("unlisted_file", "a/deep"),
        ("unlisted_file", "masks"),
        ("unlisted_file", "masks/a/9.png"),
        ("unread_file", "docs"),
    ]


def test_a_class_that_training_lacks_is_reported(tmp_path):
    _write(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/1.png", "test/B/1.png")
    assert _problems(FolderReader(tmp_path)) == [("bad_table", "test/B")]


@pytest.mark.parametrize("names", [(), ("1.png",), ("only/1.png",), ("train/only/1.png",)])
def test_fewer_than_two_classes_are_refused_in_one_line(tmp_path, names):
    _write(tmp_path, *names)
    with pytest.raises(UserError, match="at least two class folders") as caught:
        FolderReader(tmp_path)
    assert "\n" not in str(caught.value)
