import numpy as np
import pytest
from PIL import Image

from labn.data.readers.image_files import is_greyscale, read_image, read_size


def _noise(height, width, *channels):
    shape = (height, width, *channels)
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def test_a_colour_image_comes_back_as_it_was_saved(tmp_path):
    pixels = _noise(5, 7, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 3), pixels)
    assert read_size(tmp_path / "a.png") == (7, 5)


def test_a_grey_image_keeps_its_axis_of_one_channel_or_is_repeated_to_three(tmp_path):
    pixels = _noise(5, 7)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 1), pixels[..., None])
    np.testing.assert_array_equal(
        read_image(tmp_path / "a.png", 3), np.repeat(pixels[..., None], 3, axis=-1)
    )


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix):
    wide = np.array([[0, 257, 256 * 128, 65535]], dtype=np.uint16)
    Image.fromarray(wide).save(tmp_path / f"a.{suffix}")
    assert read_image(tmp_path / f"a.{suffix}", 1).ravel().tolist() == [0, 1, 128, 255]


def test_pixels_of_32_bits_are_refused_because_their_range_is_unknown(tmp_path):
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="32-bit"):
        read_image(tmp_path / "a.tif", 1)


def test_transparency_is_dropped(tmp_path):
    pixels = _noise(4, 4, 4)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 3), pixels[..., :3])


def test_the_exif_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.fromarray(_noise(4, 8, 3)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg", 3).shape == (4, 8, 3)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
def test_a_file_cut_short_anywhere_is_an_oserror_or_a_valueerror(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(_noise(24, 24, 3)).save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole) // 2, 13):
        path.write_bytes(whole[:length])
        with pytest.raises((OSError, ValueError)):
            read_image(path, 3)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
def test_a_damaged_file_raises_nothing_else_either(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(_noise(16, 16, 3)).save(path)
    whole = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    rng = np.random.default_rng(1)
    num_refused = 0
    for _ in range(60):
        damaged = whole.copy()
        damaged[rng.integers(0, len(whole), 4)] = rng.integers(0, 256, 4)
        path.write_bytes(damaged.tobytes())
        try:
            read_image(path, 3)
        except (OSError, ValueError):
            num_refused += 1
    # BMP has no checksums, so that only damage to its short header is seen.
    assert num_refused > (0 if suffix == "bmp" else 5)


def test_the_header_distinguishes_grey_from_colour(tmp_path):
    Image.fromarray(_noise(4, 4)).save(tmp_path / "grey.png")
    Image.fromarray(_noise(4, 4).astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(_noise(4, 4, 3)).save(tmp_path / "colour.png")
    assert is_greyscale(tmp_path / "grey.png")
    assert is_greyscale(tmp_path / "deep.png")
    assert not is_greyscale(tmp_path / "colour.png")
