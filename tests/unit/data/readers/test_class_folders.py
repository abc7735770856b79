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


def test_the_first_image_that_opens_decides_the_channels(tmp_path):
    _write(tmp_path, "a/2.png", channels=1)
    _write(tmp_path, "b/1.png")
    (tmp_path / "a" / "1.png").write_bytes(b"broken")
    reader = FolderReader(tmp_path)
    assert reader.num_channels == 1
    assert reader.read(reader.scan().records[-1]).shape == (4, 5, 1)


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
