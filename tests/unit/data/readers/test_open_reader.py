import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labn.data.readers.class_folders import FolderReader
from labn.data.readers.idrid import IdridReader
from labn.data.readers.magnetograms import MagnetogramReader
from labn.data.readers.open_reader import detect_layout, open_reader
from labn.data.readers.synthetic import SyntheticReader, write_synthetic
from labn.errors import UserError

NUMBERS = {"num_images": 20, "positive_fraction": 0.5, "seed": 0}


def _tree(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(path)
    return root


def _every_layout(tmp_path):
    idrid = "B. Disease Grading/1. Original Images/a. Training Set/IDRiD_001.jpg"
    magnetograms = _tree(tmp_path / "magnetograms", "a.png")
    (magnetograms / "labels.csv").write_text("a,0\n")
    return {
        "idrid": (_tree(tmp_path / "idrid", idrid), IdridReader),
        "magnetograms": (magnetograms, MagnetogramReader),
        "folder": (_tree(tmp_path / "folder", "a/1.png", "b/1.png"), FolderReader),
    }


def test_each_name_opens_its_reader_and_each_layout_is_recognised(tmp_path):
    for name, (root, kind) in _every_layout(tmp_path).items():
        assert isinstance(open_reader(name, root, image_size=32, **NUMBERS), kind)
        assert detect_layout(root) == name


def test_the_synthetic_set_is_painted_or_read_from_its_root(tmp_path):
    painted = open_reader("synthetic", None, image_size=32, **NUMBERS)
    assert isinstance(painted, SyntheticReader)
    assert len(painted.scan().records) == 20 and painted.image_size == 32
    write_synthetic(tmp_path / "set", image_size=16, **NUMBERS)
    assert isinstance(
        open_reader("synthetic", tmp_path / "set", image_size=32, **NUMBERS), FolderReader
    )


def test_an_unknown_name_or_a_missing_root_is_the_user_s_mistake():
    with pytest.raises(UserError, match='Did you mean "idrid"'):
        open_reader("idird", None, image_size=32, **NUMBERS)
    with pytest.raises(UserError, match=r"data\.root = null: folder needs"):
        open_reader("folder", None, image_size=32, **NUMBERS)


def test_a_folder_of_no_known_layout_is_refused_with_all_of_them(tmp_path):
    with pytest.raises(UserError, match="IDRiD as its archive") as caught:
        detect_layout(tmp_path)
    message = str(caught.value)
    assert "magnetograms" in message and "class folders" in message and "\n" not in message
    with pytest.raises(UserError, match="no such folder"):
        detect_layout(tmp_path / "absent")


@pytest.mark.real_data
@pytest.mark.skipif(
    "LABN_TEST_DATA" not in os.environ, reason="LABN_TEST_DATA names no folder of public data"
)
def test_the_real_layouts_are_detected():
    data = Path(os.environ["LABN_TEST_DATA"])
    assert detect_layout(data / "idrid256_dev") == "idrid"
    assert detect_layout(data / "idrid_official_layout_sample" / "B. Disease Grading") == "idrid"
    assert detect_layout(data / "hmi_magnetograms" / "fulldisk") == "magnetograms"
    assert detect_layout(data / "hmi_magnetograms" / "sharp") == "magnetograms"
