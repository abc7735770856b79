import os
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from PIL import Image

from labn.data.audit import audit
from labn.data.readers.class_folders import FolderReader
from labn.data.readers.idrid import IdridReader
from labn.data.readers.magnetograms import MagnetogramReader


def _write(path, seed=0, size=(16, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, None if path.suffix != ".jfif" else "JPEG")


def _files(root):
    """Return every file and link below a folder, by its own walk."""
    return sum(len(files) for _, _, files in os.walk(root)) + sum(
        (Path(folder) / name).is_symlink() for folder, names, _ in os.walk(root) for name in names
    )


def _account(reader, **options):
    result = audit(reader, **options)
    files = result.files
    num_images = sum(files.images.values())
    assert files.num_files == num_images + len(files.tables + files.masks + files.left_out)
    # Every finding and file left out can be shown and stored.
    (result.as_text() + str(result.as_json())).encode()
    return files, {entry.file: entry.reason for entry in files.left_out}


def test_a_tree_with_one_file_of_each_kind_is_accounted_for(tmp_path):
    root = tmp_path / "root"
    for seed, name in enumerate(
        ["a/1.png", "a/2.webp", "a/3.jfif", "b/1.gif", "b/2.ppm", "b/3.tif"]
    ):
        _write(root / name, seed)
    _write(root / "masks" / "b" / "1_mask.bmp")
    _write(root / "masks" / "b" / "9.png")
    _write(root / "loose.png")
    _write(root / "b" / "deep" / "1.png")
    for name in ("b/broken.png", "b/page.heic", "README.md", "b/notes.txt", "b/Thumbs.db"):
        (root / name).write_text("not an image")
    (root / ".hidden.png").write_text("")
    (root / "b" / "annex.png").symlink_to("annex/1.png")
    (root / "b" / "loop").symlink_to("..")
    os.mkfifo(root / "b" / "pipe.png")
    (root / "b" / os.fsdecode(b"z\xe9ro.png")).write_text("")

    files, left_out = _account(FolderReader(root))

    assert files.num_files == _files(root) == 20
    assert files.images == {".png": 1, ".webp": 1, ".jfif": 1, ".gif": 1, ".ppm": 1, ".tif": 1}
    assert (files.tables, files.masks) == ([], ["masks/b/1_mask.bmp"])
    assert left_out.pop("b/broken.png").startswith("cannot identify image file")
    assert left_out.pop("b/z\\xe9ro.png").startswith("cannot identify image file")
    assert left_out == {
        ".hidden.png": "hidden, or a file of the operating system",
        "README.md": "not a table that the data set uses",
        "b/Thumbs.db": "hidden, or a file of the operating system",
        "b/annex.png": "links to annex/1.png, which does not exist",
        "b/deep/1.png": "images that are in no class folder: 1",
        "b/loop": f"links back to {root.resolve()}, a folder that holds it",
        "b/notes.txt": "not a table that the data set uses",
        "b/page.heic": ".heic is not a format that is read",
        "b/pipe.png": "is not a regular file",
        "loose.png": "images that are in no class folder: 1",
        "masks/b/9.png": "no image has this mask",
    }


def test_a_mask_that_does_not_fit_its_image_is_found_before_training(tmp_path):
    _write(tmp_path / "a" / "1.png", 1)
    _write(tmp_path / "b" / "1.png", 2)
    _write(tmp_path / "masks" / "b" / "1.png", size=(8, 8))
    result = audit(FolderReader(tmp_path))
    found = [finding for finding in result.findings if finding.severity == "error"]
    assert [(f.kind, f.names) for f in found] == [("unreadable_mask", ("b/1.png",))]
    assert "(8, 8) pixels, its image (16, 16)" in found[0].detail


@pytest.mark.parametrize(("mode", "kind"), [("L", "greyscale"), ("RGB", "in colour")])
def test_images_of_other_channels_are_reported(tmp_path, mode, kind):
    for seed in (1, 2, 3):
        _write(tmp_path / f"2012010{seed}.png", seed)
    names = sorted(tmp_path.glob("*.png"))
    for name in names[: 1 if kind == "greyscale" else 2]:
        Image.open(name).convert("L").save(name)
    if kind == "greyscale":
        for number, name in enumerate(names):
            (tmp_path / f"{number % 2}").mkdir(exist_ok=True)
            name.rename(tmp_path / f"{number % 2}" / name.name)
        reader = FolderReader(tmp_path)
        assert reader.num_channels == 3
    else:
        (tmp_path / "labels.csv").write_text("".join(f"{n.name},M\n" for n in names))
        reader = MagnetogramReader(tmp_path)
    (found,) = (f for f in audit(reader).findings if f.kind == "converted_channels")
    assert f"1 of 3 images are {kind}" in found.detail


def test_images_of_several_frames_are_reported(tmp_path):
    _write(tmp_path / "a" / "1.png", 1)
    frames = [Image.new("L", (8, 8), grey) for grey in (3, 9)]
    (tmp_path / "b").mkdir()
    frames[0].save(tmp_path / "b" / "1.tif", save_all=True, append_images=frames[1:])
    (found,) = (f for f in audit(FolderReader(tmp_path)).findings if f.kind == "several_frames")
    assert found.names == ("b/1.tif",)


def test_an_idrid_layout_is_accounted_for(tmp_path):
    grading = tmp_path / "B. Disease Grading"
    for part, letter, numbers in (("Training", "a", range(1, 5)), ("Testing", "b", range(1, 3))):
        for number in numbers:
            folder = grading / "1. Original Images" / f"{letter}. {part} Set"
            _write(folder / f"IDRiD_{number:03}.jpg", number)
        table = grading / "2. Groundtruths" / f"{letter}. IDRiD_Disease Grading_{part} Labels.csv"
        table.parent.mkdir(exist_ok=True)
        rows = "".join(f"IDRiD_{number:03},{number % 2}\n" for number in numbers)
        table.write_text(f"Image name,Retinopathy grade\n{rows}")
    (tmp_path / "lesion_boxes.csv").write_text(
        "image,class,x0,y0,x1,y1\nIDRiD_001,haemorrhage,0,0,1,1"
    )
    (tmp_path / "provenance.csv").write_text("image,exif_datetime\nIDRiD_001,2012-01-01 00:00:00\n")
    (tmp_path / "LICENSE.txt").write_text("")
    files, left_out = _account(IdridReader(tmp_path), group_by="auto", group_gap_s=120)
    assert (files.num_files, files.images) == (11, {".jpg": 6})
    assert [Path(table).name[:2] for table in files.tables] == ["a.", "b.", "le", "pr"]
    assert left_out == {"LICENSE.txt": "not a table that the data set uses"}


def test_magnetograms_are_accounted_for(tmp_path):
    for name in ("20120101.png", "20160101.png", "20170101.png", "20170102.png"):
        _write(tmp_path / name, int(name[:8]))
        Image.open(tmp_path / name).convert("L").save(tmp_path / name)
    np.savez(tmp_path / "20120101.npz", gauss=np.zeros((4, 4)))
    fits.PrimaryHDU(np.zeros((4, 4), "f4")).writeto(tmp_path / "20130101.fits")
    rows = ("20120101,M", "20160101,O", "20170101,9", "20130101,C")
    (tmp_path / "labels.csv").write_text("file,class\n" + "\n".join(rows))
    files, left_out = _account(MagnetogramReader(tmp_path))
    assert files.images == {".png": 2, ".fits": 1}
    assert files.tables == ["labels.csv"]
    assert left_out == {
        "20120101.npz": "another format of an image that is read, or reported",
        "20170101.png": 'line 4 of labels.csv: the class "9" must be 0 to 3, or O, C, M, X',
        "20170102.png": "no line of labels.csv names it",
    }


def test_yearly_arrays_are_accounted_for(tmp_path):
    for year, labels in ((2012, "a,0\nb,2\n"), (2016, "a,0\n")):
        np.save(tmp_path / f"{year}.npy", np.zeros((2, 8, 8), np.uint8))
        (tmp_path / f"{year}.csv").write_text(labels)
    _write(tmp_path / "loose.png")
    files, left_out = _account(MagnetogramReader(tmp_path))
    assert (files.images, files.tables) == ({".npy": 1}, ["2012.csv"])
    mismatch = "1 rows (from line 1), but 2 images"
    assert left_out == {
        "2016.csv": mismatch,
        "2016.npy": mismatch,
        "loose.png": "only yearly arrays are read",
    }


def _real(name):
    root = os.environ.get("LABN_TEST_DATA")
    if not root:
        pytest.skip("LABN_TEST_DATA names no folder of public data")
    return Path(root) / name


@pytest.mark.real_data
def test_the_real_folders_are_accounted_for():
    for name, reader, images, tables, left_out in (
        ("idrid_official_layout_sample", IdridReader, 12, 2, 1),
        ("hmi_magnetograms/fulldisk", MagnetogramReader, 3, 1, 3),
        ("hmi_magnetograms/sharp", MagnetogramReader, 35, 1, 35),
    ):
        root = _real(name)
        files, _ = _account(reader(root))
        assert files.num_files == _files(root)
        counts = (sum(files.images.values()), len(files.tables), len(files.left_out))
        assert counts == (images, tables, left_out)
