from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from PIL import Image

from labn.data.readers import idrid
from labn.data.readers.class_folders import FolderReader
from labn.data.readers.idrid import IdridReader
from labn.data.readers.magnetograms import MagnetogramReader
from labn.data.readers.reader import Record
from labn.data.readers.unlabelled import image_suffixes, read_unlabelled


def _pixels(height=6, width=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _record(path):
    return Record(name=path.name, path=path, grade=0, label=0, subset=None)


def _idrid_reader(root):
    folder = root / "B. Disease Grading" / "1. Original Images" / "a. Training Set"
    folder.mkdir(parents=True)
    return IdridReader(root)


def test_a_photograph_of_idrid_is_cropped_as_its_reader_does(tmp_path, monkeypatch):
    monkeypatch.setattr(idrid, "CAMERA_SIZE", (8, 6))
    monkeypatch.setattr(idrid, "FUNDUS_BOX", (1, 0, 6, 5))
    path = tmp_path / "eye.png"
    Image.fromarray(_pixels()).save(path)

    image = read_unlabelled(path, "idrid", 3)

    assert image.box == (1, 0, 6, 5)
    np.testing.assert_array_equal(image.pixels, _pixels())
    np.testing.assert_array_equal(image.kept, _pixels()[0:5, 1:6])
    read = _idrid_reader(tmp_path).read(_record(path))
    np.testing.assert_array_equal(image.kept, read)


@pytest.mark.parametrize("kind", ["idrid", "folder", "synthetic"])
def test_an_image_of_another_size_is_kept_whole(tmp_path, kind):
    path = tmp_path / "eye.png"
    Image.fromarray(_pixels()).save(path)

    image = read_unlabelled(path, kind, 3)

    assert image.box == (0, 0, 8, 6)
    np.testing.assert_array_equal(image.kept, image.pixels)


@pytest.mark.parametrize("num_channels", [1, 3])
def test_an_image_has_the_channels_that_its_data_set_has(tmp_path, num_channels):
    for name in ("negative", "positive"):
        (tmp_path / name).mkdir()
        picture = Image.fromarray(_pixels()).convert("L" if num_channels == 1 else "RGB")
        picture.save(tmp_path / name / "eye.png")
    path = tmp_path / "negative" / "eye.png"

    image = read_unlabelled(path, "folder", num_channels)

    assert image.pixels.shape == (6, 8, num_channels)
    np.testing.assert_array_equal(image.pixels, FolderReader(tmp_path).read(_record(path)))


def test_magnetograms_are_scaled_as_their_reader_does(tmp_path):
    gauss = np.linspace(-900, 900, 48, dtype=np.float32).reshape(6, 8)
    gauss[0, 0] = np.nan
    fits.PrimaryHDU(gauss).writeto(tmp_path / "sun.fits")
    np.savez(tmp_path / "sun.npz", gauss=gauss)
    Image.fromarray(_pixels()).save(tmp_path / "sun.png")
    (tmp_path / "labels.csv").write_text("file,class\nsun.png,O\n")
    reader = MagnetogramReader(tmp_path)
    for name in ("sun.fits", "sun.npz", "sun.png"):
        path = tmp_path / name
        image = read_unlabelled(path, "magnetograms", 1)
        assert image.pixels.shape == (6, 8, 1)
        np.testing.assert_array_equal(image.kept, reader.read(_record(path)))


def test_only_magnetograms_come_as_fits_and_every_kind_as_pictures():
    assert {".fits", ".npz", ".png", ".jpg"} <= set(image_suffixes("magnetograms"))
    assert ".fits" not in image_suffixes("idrid")
    for kind in ("idrid", "folder", "synthetic", "magnetograms"):
        assert {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"} <= set(image_suffixes(kind))
        assert len(set(image_suffixes(kind))) == len(image_suffixes(kind))


@pytest.mark.parametrize(
    ("kind", "name"), [("folder", "x.png"), ("magnetograms", "x.fits"), ("magnetograms", "x.npz")]
)
def test_a_broken_file_raises_what_callers_expect(tmp_path, kind, name):
    path = Path(tmp_path / name)
    path.write_bytes(b"not a picture")
    with pytest.raises((OSError, ValueError)):
        read_unlabelled(path, kind, 1)
