import pickle

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from labn.data.readers import synthetic
from labn.data.readers.class_folders import FolderReader
from labn.data.readers.fundus import paint_fundus
from labn.data.readers.synthetic import SyntheticReader, write_synthetic
from labn.errors import UserError


def _reader(num_images=8, positive_fraction=0.5, seed=0, image_size=48, lesions="plain"):
    return SyntheticReader(num_images, positive_fraction, seed, image_size, lesions)


def test_an_image_is_the_same_each_time_it_is_read_also_by_another_process():
    reader = _reader()
    record = reader.scan().records[3]
    copy = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(reader.read(record), copy.read(record))
    np.testing.assert_array_equal(reader.lesion_mask(record), copy.lesion_mask(record))


def test_an_image_and_its_mask_are_painted_once(monkeypatch):
    painted = []

    def paint(*given):
        painted.append(given)
        return paint_fundus(*given)

    monkeypatch.setattr(synthetic, "paint_fundus", paint)
    reader = _reader(seed=12345)
    for record in reader.scan().records:
        image, mask = reader.read(record), reader.lesion_mask(record)
        assert not image.flags.writeable and not mask.flags.writeable
    assert len(painted) == reader.num_images


def test_seeds_and_indices_give_different_images():
    images = [
        paint_fundus(seed, index, 32, None)[0].tobytes() for seed in range(3) for index in range(3)
    ]
    assert len(set(images)) == 9


def test_the_first_images_do_not_depend_on_how_many_follow():
    few, many = _reader(num_images=5), _reader(num_images=50)
    assert few.scan().records == many.scan().records[:5]


@pytest.mark.parametrize("num_images", [20, 33, 400])
@pytest.mark.parametrize("fraction", [0.01, 0.29, 0.5, 0.9])
def test_the_share_of_positives_is_as_asked_to_the_image(num_images, fraction):
    records = _reader(num_images=num_images, positive_fraction=fraction).scan().records
    assert abs(sum(r.label for r in records) - num_images * fraction) <= 0.5
    assert len({r.name for r in records}) == num_images


@pytest.mark.parametrize("image_size", [16, 31, 96])
def test_positives_have_lesions_and_negatives_are_known_to_have_none(image_size):
    reader = _reader(num_images=20, image_size=image_size)
    for record in reader.scan().records:
        image, mask = reader.read(record), reader.lesion_mask(record)
        assert image.shape == (image_size, image_size, 3) and image.dtype == np.uint8
        assert mask.shape == (image_size, image_size) and mask.dtype == np.bool_
        assert mask.any() == (record.label == 1)


def test_lesions_are_few_and_small():
    reader = _reader(num_images=30, positive_fraction=0.99, image_size=128)
    for record in reader.scan().records:
        mask = reader.lesion_mask(record)
        if record.label == 0:
            continue
        _, num_regions = ndimage.label(mask)
        assert 1 <= num_regions <= 6
        # Lesions may touch; all six together, each of radius 5 %, cover 4.7 % of the image.
        assert mask.mean() <= 6 * np.pi * 0.05**2


def test_varied_lesions_are_from_tiny_to_large():
    reader = _reader(num_images=60, positive_fraction=0.99, image_size=128, lesions="varied")
    masks = [reader.lesion_mask(record) for record in reader.scan().records if record.label == 1]
    assert all(mask.any() for mask in masks)
    regions = [ndimage.label(mask) for mask in masks]
    sizes = np.concatenate([np.bincount(labels.ravel())[1:] for labels, _ in regions])
    assert np.percentile(sizes, 10) <= 4
    assert sizes.max() >= 60
    counts = [count for _, count in regions]
    assert min(counts) <= 2
    assert max(counts) >= 20
    assert np.mean([mask.mean() for mask in masks]) < 0.02


@pytest.mark.parametrize(("lesions", "reach_px", "least"), [("plain", 3, 20), ("varied", 8, 5)])
def test_a_positive_differs_from_its_negative_twin_only_at_its_lesions(lesions, reach_px, least):
    for index in range(6):
        positive, mask = paint_fundus(1, index, 96, lesions)
        negative, nothing = paint_fundus(1, index, 96, None)
        difference = np.abs(positive.astype(int) - negative).max(axis=-1)
        assert not nothing.any()
        # Soft edges (plain: under 1 pixel) and blur (0.5) fade; then rounding alone is left.
        assert difference[~ndimage.binary_dilation(mask, iterations=reach_px)].max() <= 1
        assert np.median(difference[mask]) > least


def test_negatives_hold_pixels_as_bright_and_as_dark_as_lesions():
    retina = np.hypot(*np.mgrid[-47.5:48, -47.5:48]) < 38
    for index in range(10):
        positive, mask = paint_fundus(2, index, 96, "plain")
        negative, _ = paint_fundus(2, index, 96, None)
        lesions, tissue = positive[mask].mean(axis=-1), negative[retina].mean(axis=-1)
        # The extremes, less the camera's noise of at most 5 grey levels.
        assert tissue.max() > np.percentile(lesions, 95) - 15
        assert tissue.min() < np.percentile(lesions, 5) + 15


def test_means_and_deviations_of_the_colours_hardly_separate_the_classes():
    reader = _reader(num_images=300, image_size=48)
    records = reader.scan().records
    pixels = np.stack([reader.read(record).reshape(-1, 3) for record in records]) / 255
    features = np.concatenate([pixels.mean(axis=1), pixels.std(axis=1)], axis=1)
    labels = np.array([record.label for record in records])
    model = make_pipeline(StandardScaler(), LogisticRegression())
    scores = cross_val_predict(model, features, labels, cv=5, method="predict_proba")[:, 1]
    # Real IDRiD leaks 0.66 to 0.75 in the same way; its standard error here is 0.03.
    assert roc_auc_score(labels, scores) < 0.75


def test_the_geometry_names_all_that_changes_the_pixels():
    geometries = {
        _reader(**change).geometry
        for change in (
            {},
            {"seed": 1},
            {"image_size": 64},
            {"positive_fraction": 0.4},
            {"lesions": "varied"},
        )
    }
    assert len(geometries) == 5
    assert _reader(num_images=9).geometry == _reader().geometry


def test_a_written_set_reads_back_the_same(tmp_path):
    numbers = {"num_images": 6, "positive_fraction": 0.5, "seed": 3, "image_size": 32}
    write_synthetic(tmp_path / "set", **numbers)
    painted, written = SyntheticReader(**numbers), FolderReader(tmp_path / "set")
    assert written.class_names == painted.class_names
    scan = written.scan()
    assert scan.problems == []
    by_index = {int(record.path.stem): record for record in scan.records}
    for record in painted.scan().records:
        twin = by_index[record.index]
        assert twin.label == record.label
        np.testing.assert_array_equal(written.read(twin), painted.read(record))
        if record.label == 1:
            np.testing.assert_array_equal(written.lesion_mask(twin), painted.lesion_mask(record))
        else:
            assert written.lesion_mask(twin) is None


def test_nothing_is_written_among_other_files(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "mine.png")
    with pytest.raises(UserError, match="must be a new or an empty folder"):
        write_synthetic(tmp_path, num_images=2, positive_fraction=0.5, seed=0, image_size=16)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.png"]
