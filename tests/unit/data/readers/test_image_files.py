import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from labn.data.readers.image_files import (
    IMAGE_SUFFIXES,
    is_greyscale,
    read_image,
    read_mask,
    read_size,
)


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


def test_every_extension_is_one_that_pillow_opens():
    Image.init()
    openable = {e for e, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    assert set(IMAGE_SUFFIXES) <= openable
    # Containers of data, and what needs another program or platform.
    others = {
        *(".blp", ".bufr", ".cur", ".dds", ".emf", ".eps", ".fit", ".fits", ".flc", ".fli"),
        *(".ftc", ".ftu", ".gbr", ".grib", ".h5", ".hdf", ".icb", ".icns", ".ico", ".iim"),
        *(".mpeg", ".mpg", ".pcd", ".ps", ".vda", ".vst", ".wmf"),
    }
    assert openable - set(IMAGE_SUFFIXES) <= others


def test_portable_grey_maps_of_16_bits_are_scaled(tmp_path):
    pixels = np.array([[0, 257, 65535]], dtype=">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 65535\n" + pixels.tobytes())
    assert read_image(tmp_path / "a.pgm", 1).ravel().tolist() == [0, 1, 255]


LESION = np.zeros((16, 16), dtype=np.bool_)
LESION[3:9, 4:12] = True


def _rgba(colour, opacity):
    return Image.fromarray(
        np.dstack([np.broadcast_to(c, LESION.shape) for c in (*colour, opacity)]).astype(np.uint8)
    )


def _palette(*colours):
    image = Image.fromarray(LESION.astype(np.uint8), "P")
    image.putpalette([value for colour in colours for value in colour])
    return image


@pytest.mark.parametrize(
    ("image", "suffix"),
    [
        (Image.fromarray(LESION), "tif"),
        (Image.fromarray(LESION.astype(np.uint8)), "png"),
        (Image.fromarray(LESION.astype(np.uint8) * 255), "bmp"),
        (Image.fromarray(LESION.astype(np.uint8) * 255), "jpg"),
        (Image.fromarray(LESION.astype(np.uint8) * 255), "webp"),
        (Image.fromarray(LESION.astype(np.uint8) * 255), "gif"),
        (Image.fromarray(LESION.astype(np.uint16)), "png"),
        (Image.fromarray(LESION.astype(np.uint16) * 3), "tif"),
        (Image.fromarray(LESION.astype(np.int32)), "tif"),
        (Image.fromarray(LESION.astype(np.float32)), "tif"),
        (_rgba((LESION * 9, 0, 0), 255), "png"),
        (_rgba((255, 255, 255), LESION * 255), "png"),
        (_rgba((0, 0, 0), LESION * 255), "png"),
        (_palette((0, 0, 0), (0, 9, 0)), "png"),
        (_palette((0, 0, 0), (0, 0, 0)), "png"),
    ],
)
def test_a_mask_marks_what_its_file_shows_in_every_format(tmp_path, image, suffix):
    image.save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(read_mask(tmp_path / f"a.{suffix}"), LESION)


def test_masks_that_lose_labels_are_refused(tmp_path):
    labels = Image.fromarray(LESION.astype(np.uint8) * 5)
    labels.save(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="JPEG blurs small labels"):
        read_mask(tmp_path / "a.jpg")
    labels.save(tmp_path / "a.tif", save_all=True, append_images=[labels])
    with pytest.raises(ValueError, match="several frames"):
        read_mask(tmp_path / "a.tif")
    Image.fromarray(np.full((4, 4), np.nan, dtype=np.float32)).save(tmp_path / "b.tif")
    with pytest.raises(ValueError, match="not numbers"):
        read_mask(tmp_path / "b.tif")
    (tmp_path / "c.png").write_bytes(_png_of_16_bits_per_colour())
    with pytest.raises(ValueError, match="16 bits per colour"):
        read_mask(tmp_path / "c.png")


def _png_of_16_bits_per_colour():
    def chunk(kind, data):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + struct.pack(">HHH", 1, 1, 1)))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")
