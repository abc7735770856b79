import os
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from PIL import Image

from labn.data.readers.magnetograms import (
    MagnetogramReader,
    field_strength,
    read_magnetogram,
)
from labn.errors import UserError

real_data = pytest.mark.real_data
needs_data = pytest.mark.skipif(
    "LABN_TEST_DATA" not in os.environ, reason="LABN_TEST_DATA names no folder of public data"
)


def _write_year(root, year, lines, num_images=None):
    shape = (len(lines) if num_images is None else num_images, 4, 5)
    images = np.random.default_rng(year).integers(0, 256, shape).astype(np.uint8)
    np.save(root / f"{year}.npy", images)
    (root / f"{year}.csv").write_text("\n".join(lines) + "\n")
    return images


def _write_png(path, value=7):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 5), value, dtype=np.uint8)).save(path)


def _write_folder(root, table, names):
    for name in names:
        _write_png(root / name)
    (root / "labels.csv").write_text(table)
    return MagnetogramReader(root)


def _problems(scan):
    return [(problem.kind, problem.name) for problem in scan.problems]


RANDOM = ("random_subsets", "labels.csv")


def test_years_decide_the_subset_and_classes_the_label(tmp_path):
    images = _write_year(tmp_path, 2010, ["a.png,0", "b.png,1", "c.png,2", "d.png,3"])
    _write_year(tmp_path, 2015, ["a.png,0"])
    _write_year(tmp_path, 2016, ["e.png,2"])
    _write_year(tmp_path, 2017, ["f.png,1"])
    reader = MagnetogramReader(tmp_path)
    scan = reader.scan()
    assert scan.problems == []
    assert [(r.name, r.grade, r.label, r.subset) for r in scan.records] == [
        ("2010/a.png", 0, 0, "train"),
        ("2010/b.png", 1, 0, "train"),
        ("2010/c.png", 2, 1, "train"),
        ("2010/d.png", 3, 1, "train"),
        ("2015/a.png", 0, 0, "train"),
        ("2016/e.png", 2, 1, "validation"),
        ("2017/f.png", 1, 0, "test"),
    ]
    for index in range(4):
        pixels = reader.read(scan.records[index])
        np.testing.assert_array_equal(pixels, images[index][..., None])
    assert reader.lesion_mask(scan.records[0]) is None


def test_a_year_s_table_may_have_a_header_and_letters(tmp_path):
    images = _write_year(tmp_path, 2012, ["name,class", "a,O", "b,c", "c,M", "d,X"], num_images=4)
    reader = MagnetogramReader(tmp_path)
    scan = reader.scan()
    assert scan.problems == []
    assert [r.grade for r in scan.records] == [0, 1, 2, 3]
    np.testing.assert_array_equal(reader.read(scan.records[3])[..., 0], images[3])


def test_a_defective_row_of_a_year_does_not_shift_the_others(tmp_path):
    images = _write_year(tmp_path, 2012, ["a,0", "b,4", "a,1", ",1", "c,2"])
    reader = MagnetogramReader(tmp_path)
    scan = reader.scan()
    assert _problems(scan) == [
        ("label_out_of_range", "2012/b"),
        ("duplicate_row", "2012/a"),
        ("bad_table", "2012/"),
    ]
    assert [(r.name, r.index) for r in scan.records] == [("2012/a", 0), ("2012/c", 4)]
    np.testing.assert_array_equal(reader.read(scan.records[1])[..., 0], images[4])


def test_years_whose_array_and_table_do_not_match_have_no_records(tmp_path):
    _write_year(tmp_path, 2009, ["a,0"])
    _write_year(tmp_path, 2011, ["a,0", "b,1"], num_images=3)
    _write_year(tmp_path, 2012, ["a,0"])
    (tmp_path / "2012.npy").unlink()
    _write_year(tmp_path, 2013, ["a,0"])
    (tmp_path / "2013.csv").unlink()
    _write_year(tmp_path, 2014, ["a,0"])
    np.save(tmp_path / "2014.npy", np.zeros((1, 4, 5)))
    _write_year(tmp_path, 2015, ["a,0"])
    (tmp_path / "2015.npy").write_bytes((tmp_path / "2015.npy").read_bytes()[:90])
    _write_year(tmp_path, 2016, ["a,red", "b,green"])
    scan = MagnetogramReader(tmp_path).scan()
    assert scan.records == []
    assert _problems(scan) == [
        ("bad_table", "2009"),
        ("bad_table", "2011.csv"),
        ("missing_file", "2012.npy"),
        ("bad_table", "2013.csv"),
        ("unreadable_file", "2014.npy"),
        ("unreadable_file", "2015.npy"),
        ("bad_table", "2016.csv"),
    ]
    assert "2 rows" in scan.problems[1].detail and "3 images" in scan.problems[1].detail


def test_an_array_of_pickled_objects_is_not_opened(tmp_path):
    _write_year(tmp_path, 2012, ["a,0"])
    np.save(tmp_path / "2012.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert _problems(MagnetogramReader(tmp_path).scan()) == [("unreadable_file", "2012.npy")]


def test_a_folder_s_columns_are_found_by_name_or_by_position(tmp_path):
    for number, table in enumerate(
        [
            "file,time_utc,flag_0123\na,2012-03-06,2\n",
            "when,label,image\n1,M,a.png\n",
            "label,path\n2,a\n",
            "path,kind\na,M\n",
            "a.png,2\n",
            "\ufefffile,flare_class\r\na,M\r\n",
        ]
    ):
        scan = _write_folder(tmp_path / str(number), table, ["a.png"]).scan()
        assert set(_problems(scan)) <= {RANDOM}, table
        assert [(r.name, r.grade, r.label) for r in scan.records] == [("a.png", 2, 1)], table


def test_every_defect_of_a_folder_is_reported(tmp_path):
    table = "file,class\na,0\nb,7\nc,1\na.png,1\n,1\n"
    scan = _write_folder(tmp_path, table, ["a.png", "b.PNG", "d.png"]).scan()
    assert [r.name for r in scan.records] == ["a.png"]
    assert _problems(scan) == [
        ("label_out_of_range", "b.PNG"),
        ("missing_file", "c"),
        ("duplicate_row", "a.png"),
        ("bad_table", ""),
        RANDOM,
        ("unlisted_file", "d.png"),
    ]


def test_images_may_lie_in_folders_and_keep_an_order_of_kinds(tmp_path):
    reader = _write_folder(tmp_path, "file,class\n2012/a,0\nb.v1,1\n", ["2012/a.png", "b.v1.png"])
    np.savez(tmp_path / "2012" / "a.npz", gauss=np.zeros((4, 5), dtype=np.int16))
    scan = reader.scan()
    assert _problems(scan) == [RANDOM]
    assert [r.name for r in scan.records] == ["2012/a.png", "b.v1.png"]
    assert list(scan.unused) == [tmp_path / "2012" / "a.npz"]


def test_a_column_names_the_subset(tmp_path):
    table = "file,class,split\na,0,Train\nb,0,val\nc,0,test\nd,0,other\ne,0,\n"
    scan = _write_folder(tmp_path, table, [f"{name}.png" for name in "abcde"]).scan()
    assert [r.subset for r in scan.records] == ["train", "validation", "test"]
    assert _problems(scan) == [("bad_table", "d"), ("bad_table", "e")]


def test_the_year_of_a_time_column_or_of_the_name_decides_the_subset(tmp_path):
    table = "file,class,time\na,0,2010-01-01\nb,0,2016.03.07_14:24\nc,0,2017\n"
    scan = _write_folder(tmp_path / "time", table, ["a.png", "b.png", "c.png"]).scan()
    assert [r.subset for r in scan.records] == ["train", "validation", "test"]
    names = ["harp12345_20150307_1424.png", "20160101.png", "hmi20170630_00.png"]
    table = "".join(f"{name},0\n" for name in names)
    scan = _write_folder(tmp_path / "name", table, names).scan()
    assert [r.subset for r in scan.records] == ["train", "validation", "test"]


def test_an_image_of_another_year_beside_the_known_ones_is_a_defect_never_a_random_split(tmp_path):
    names = ["20150307.png", "20180101.png", "20160101.png", "20170101.png"]
    scan = _write_folder(tmp_path, "".join(f"{name},0\n" for name in names), names).scan()
    assert [r.subset for r in scan.records] == ["train", "validation", "test"]
    assert _problems(scan) == [("bad_table", "20180101.png")]
    assert "line 2 of labels.csv is of 2018" in scan.problems[0].detail
    assert "column split" in scan.problems[0].detail


def test_years_that_do_not_assign_all_subsets_assign_none_and_that_is_said(tmp_path):
    names = ["20150307.png", "20180101.png"]
    scan = _write_folder(tmp_path, "".join(f"{name},0\n" for name in names), names).scan()
    assert [r.subset for r in scan.records] == [None, None]
    assert _problems(scan) == [RANDOM]
    assert "line 2 is of 2018" in scan.problems[0].detail


def test_pictures_beside_fits_images_are_reported_since_their_rows_run_the_other_way(tmp_path):
    table = "file,class,split\na.fits,0,train\nb.png,0,train\n"
    reader = _write_folder(tmp_path, table, ["b.png"])
    _write_fits(tmp_path / "a.fits", np.zeros((6, 8), "f4"))

    (problem,) = reader.scan().problems

    assert (problem.kind, problem.is_fatal) == ("mixed_orientation", False)
    assert problem.detail.startswith("1 FITS images are read south first, as stored, beside 1 pict")


@pytest.mark.parametrize(
    "time",
    [
        *(
            "2012-03-06T14:24:00",
            "2012-03-06 14:24:00.000Z",
            "2012-03-06T14:24+00:00",
            "2012/03/06",
        ),
        *("2012.03.06_14:24:00_TAI", "2012.03.06_14:24", "20120306", "20120306_142400_TAI"),
        *("06/03/2012 14:24", "6.3.2012", "13/03/2012", "3/13/2012 0:00", "06-Mar-2012 14:24"),
        *("1331043840", "1331043840.0", "1331043840000", "2012", "20120306142400", "2012-03"),
    ],
)
def test_a_time_is_read_in_the_forms_of_the_field(tmp_path, time):
    table = f"file,class,time\na,0,{time}\nb,0,2016-01-01\nc,2,2017-01-01\n"
    scan = _write_folder(tmp_path, table, ["a.png", "b.png", "c.png"]).scan()
    assert [r.subset for r in scan.records] == ["train", "validation", "test"]
    assert scan.problems == []


@pytest.mark.parametrize("column", ["DATE-OBS", "date_obs", "T_REC", "T_OBS", "year", "Obs_Time"])
def test_a_time_is_found_under_the_names_of_the_field(tmp_path, column):
    table = f"file,class,{column}\na,0,2010\nb,0,2016\nc,2,2017\n"
    scan = _write_folder(tmp_path, table, ["a.png", "b.png", "c.png"]).scan()
    assert [r.subset for r in scan.records] == ["train", "validation", "test"]
    assert scan.problems == []


@pytest.mark.parametrize(
    "time",
    [
        *("06/03/12", "31/31/2012", "2012-02-30", "40974.6", "2455992.5", "1.331E+09", "today"),
        *("2012-066", "12", "2012-03-06 and later"),
    ],
)
def test_a_time_that_cannot_be_read_is_a_defect_never_a_random_split(tmp_path, time):
    table = f"file,class,time\na_20120306,0,{time}\nb,0,2016-01-01\n"
    scan = _write_folder(tmp_path, table, ["a_20120306.png", "b.png"]).scan()
    assert _problems(scan) == [("bad_table", "a_20120306")]
    assert time in scan.problems[0].detail and scan.problems[0].is_fatal
    assert [r.subset for r in scan.records] == ["validation"]


@pytest.mark.parametrize(
    "name",
    [
        *(
            "hmi.M_720s.20120306_000000_TAI",
            "2012.03.06_00:00:00_TAI",
            "m-2012-03-06",
            "2012_03_06",
        ),
        *("hmi.sharp_cea_720s.377.20120306_000000_TAI.magnetogram", "20120306142400", "06-03-2012"),
        "2012/03/06",
    ],
)
def test_a_date_in_a_name_is_read_in_the_forms_of_the_field(tmp_path, name):
    names = [f"{name}.png", "20160101.png", "20170101.png"]
    scan = _write_folder(tmp_path, "".join(f"{n},0\n" for n in names), names).scan()
    assert [r.subset for r in scan.records] == ["train", "validation", "test"]
    assert scan.problems == []


def test_an_image_without_a_date_among_dated_ones_is_a_defect(tmp_path):
    names = ["20150307.png", "undated.png", "20160101.png"]
    scan = _write_folder(tmp_path, "".join(f"{name},0\n" for name in names), names).scan()
    assert _problems(scan) == [("bad_table", "undated.png")]
    assert scan.problems[0].is_fatal
    assert [r.subset for r in scan.records] == ["train", "validation"]


def test_a_column_that_names_the_subset_makes_times_unnecessary(tmp_path):
    table = "file,class,time,split\na,0,someday,train\nb,0,,test\n"
    scan = _write_folder(tmp_path, table, ["a.png", "b.png"]).scan()
    assert scan.problems == []
    assert [r.subset for r in scan.records] == ["train", "test"]


@pytest.mark.parametrize(
    ("flare_class", "grade"),
    [("M1.5", 2), ("x9", 3), ("C5.1", 1), ("B2.2", 0), ("A", 0), ("o", 0), ("2.0", 2), ("3", 3)],
)
def test_flare_classes_with_magnitudes_and_decimals_are_read(tmp_path, flare_class, grade):
    scan = _write_folder(tmp_path, f"file,class\na,{flare_class}\nb,0\n", ["a.png", "b.png"]).scan()
    assert [r.grade for r in scan.records] == [grade, 0]


@pytest.mark.parametrize("flare_class", ["9", "", "M-", "nan", "2.5", "?"])
def test_a_first_row_of_no_known_class_is_a_defect_not_a_header(tmp_path, flare_class):
    scan = _write_folder(tmp_path, f"a.png,{flare_class}\nb.png,2\n", ["a.png", "b.png"]).scan()
    assert _problems(scan)[0] == ("label_out_of_range", "a.png")
    assert [r.name for r in scan.records] == ["b.png"]


def _write_fits(path, field, **header):
    unit = fits.PrimaryHDU(np.ascontiguousarray(field))
    unit.header.update(header)
    unit.writeto(path)
    return read_magnetogram(path)


ROOT_HALF = 0.5**0.5


@pytest.mark.parametrize(
    ("turn", "header"),
    [
        (lambda field: field, {}),
        (lambda field: field[::-1, ::-1], {"CROTA2": 180.0}),
        (lambda field: field[::-1, ::-1], {"CROTA2": -179.93, "CDELT1": 0.5, "CDELT2": 0.5}),
        (lambda field: field[::-1, ::-1], {"PC1_1": -1.0, "PC2_2": -1.0}),
        (lambda field: field[::-1, ::-1], {"CDELT1": -0.5, "CDELT2": -0.5}),
        (lambda field: field[:, ::-1], {"CDELT1": -0.5, "CDELT2": 0.5}),
        (lambda field: field[::-1], {"CD1_1": 0.5, "CD2_2": -0.5}),
    ],
)
def test_fits_are_turned_as_their_headers_say(tmp_path, turn, header):
    field = np.random.default_rng(0).normal(0, 200, (6, 8)).astype("f4")
    upright = _write_fits(tmp_path / "up.fits", field, CROTA2=0.0)
    np.testing.assert_array_equal(_write_fits(tmp_path / "a.fits", turn(field), **header), upright)


@pytest.mark.parametrize("angle", [0, 90, 180, 270, -90])
def test_a_pixel_s_world_position_decides_where_it_goes(tmp_path, angle):
    """By astropy's own transform: a bright pixel lies west and north of the centre."""
    field = np.zeros((9, 9), dtype="f4")
    header = fits.Header({"CTYPE1": "HPLN-TAN", "CTYPE2": "HPLT-TAN", "CRPIX1": 5.0, "CRPIX2": 5.0})
    header.update({"CUNIT1": "arcsec", "CUNIT2": "arcsec", "CDELT1": 1.0, "CDELT2": 1.0})
    header["CROTA2"] = float(angle)
    column, row = np.rint(WCS(header).all_world2pix([[3 / 3600, 2 / 3600]], 0)[0]).astype(int)
    field[row, column] = 500
    shown = _write_fits(tmp_path / "a.fits", field, **dict(header))
    assert np.argwhere(shown[..., 0] == 255).tolist() == [[4 + 2, 4 + 3]]


def test_fits_turned_by_another_angle_are_refused(tmp_path):
    for number, header in enumerate(
        [{"CROTA2": 30.0}, {"PC1_1": ROOT_HALF, "PC1_2": -ROOT_HALF, "PC2_1": ROOT_HALF}]
    ):
        with pytest.raises(ValueError, match="no multiple of 90"):
            _write_fits(tmp_path / f"{number}.fits", np.zeros((4, 4), "f4"), **header)


def test_a_link_to_another_folder_is_followed_and_one_that_leads_back_is_reported(tmp_path):
    root = tmp_path / "root"
    _write_png(tmp_path / "archive" / "20120101.png")
    root.mkdir()
    (root / "2012").symlink_to(tmp_path / "archive")
    (root / "loop").symlink_to(tmp_path)
    scan = _write_folder(root, "2012/20120101.png,0\n", []).scan()
    assert [r.name for r in scan.records] == ["2012/20120101.png"]
    assert _problems(scan) == [("unread_file", "loop")]


def test_a_file_of_an_unread_format_is_not_called_missing(tmp_path):
    reader = _write_folder(tmp_path, "20120101.fits.gz,0\n", [])
    (tmp_path / "20120101.fits.gz").write_bytes(b"")
    scan = reader.scan()
    assert _problems(scan)[0] == ("unreadable_file", "20120101.fits.gz")
    assert ".gz is not a format that is read" in scan.problems[0].detail


def test_gauss_of_fits_files_are_scaled_to_8_bits(tmp_path):
    field = np.array([[-900.0, -500.0, 0.0], [250.0, 500.0, np.nan]], dtype=np.float32)
    units = [fits.PrimaryHDU(), fits.ImageHDU(field)]
    fits.HDUList(units).writeto(tmp_path / "a.FITS")
    reader = _write_folder(tmp_path, "a,0\n", [])
    scan = reader.scan()
    assert _problems(scan) == [RANDOM]
    # 127.5 + 0 rounds down, as in a cast to uint8; 127.5 + 63.75 = 191.25.
    expected = np.array([[0, 0, 127], [191, 255, 0]], dtype=np.uint8)
    np.testing.assert_array_equal(reader.read(scan.records[0])[..., 0], expected)


def test_compressed_fits_and_npz_are_read_alike(tmp_path):
    field = np.random.default_rng(0).integers(-600, 600, (40, 30)).astype(np.int16)
    units = [fits.PrimaryHDU(), fits.CompImageHDU(field, compression_type="RICE_1")]
    fits.HDUList(units).writeto(tmp_path / "a.fits")
    np.savez(tmp_path / "b.npz", gauss=field)
    reader = _write_folder(tmp_path, "a,0\nb,1\n", [])
    first, second = (reader.read(record) for record in reader.scan().records)
    replica = [[min(max(127.5 + b * 127.5 / 500, 0), 255) for b in row] for row in field.tolist()]
    assert first.dtype == np.uint8 and first.shape == (40, 30, 1)
    np.testing.assert_array_equal(first[..., 0], np.array(replica).astype(np.uint8))
    np.testing.assert_array_equal(first, second)


@pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyUserWarning")
def test_files_that_cannot_be_decoded_raise_oserror_or_valueerror(tmp_path):
    fits.PrimaryHDU(np.zeros((40, 30), dtype=np.float32)).writeto(tmp_path / "cut.fits")
    whole = (tmp_path / "cut.fits").read_bytes()
    (tmp_path / "cut.fits").write_bytes(whole[: len(whole) // 2])
    fits.PrimaryHDU().writeto(tmp_path / "empty.fits")
    (tmp_path / "text.fits").write_text("not a FITS file")
    (tmp_path / "prose.npz").write_text("not a zip file")
    np.savez(tmp_path / "other.npz", field=np.zeros((4, 5)))
    np.savez(tmp_path / "flat.npz", gauss=np.zeros(5))
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive:
        archive.writestr("gauss.npy", b"\x93NUMPY")
    names = ["cut.fits", "empty.fits", "text.fits"]
    names += ["prose.npz", "other.npz", "flat.npz", "short.npz"]
    reader = _write_folder(tmp_path, "".join(f"{name},0\n" for name in names), [])
    records = reader.scan().records
    assert len(records) == len(names)
    for record in records:
        with pytest.raises((OSError, ValueError)):
            reader.read(record)


def test_another_layout_is_refused_in_one_line_that_names_what_was_expected(tmp_path):
    with pytest.raises(UserError, match=r"expected magnetograms .*labels\.csv") as caught:
        MagnetogramReader(tmp_path)
    assert "\n" not in str(caught.value)


@real_data
@needs_data
def test_the_real_active_regions_are_complete():
    reader = MagnetogramReader(Path(os.environ["LABN_TEST_DATA"]) / "hmi_magnetograms" / "sharp")
    scan = reader.scan()
    assert scan.problems == []
    assert Counter(r.label for r in scan.records) == {0: 32, 1: 3}
    assert {r.subset for r in scan.records} == {"train"}
    for record in scan.records[::6]:
        assert record.path.suffix == ".png"
        shown = reader.read(record)[..., 0]
        gauss = np.load(record.path.with_suffix(".npz"))["gauss"].astype(np.float64)
        replica = np.clip(127.5 + gauss * 127.5 / 500, 0, 255)
        # The npz files round to whole gauss, 0.255 grey levels, before the PNGs' cast.
        assert np.abs(shown.astype(np.float64) - replica).max() < 1.26


@real_data
@needs_data
def test_the_real_full_disks_have_no_subset_because_one_is_of_2019():
    reader = MagnetogramReader(Path(os.environ["LABN_TEST_DATA"]) / "hmi_magnetograms" / "fulldisk")
    scan = reader.scan()
    assert [(r.grade, r.label, r.subset) for r in scan.records] == [
        (1, 0, None),
        (0, 0, None),
        (1, 0, None),
    ]
    assert _problems(scan)[0] == RANDOM
    assert "line 3 is of 2019" in scan.problems[0].detail
    assert {p.kind for p in scan.problems[1:]} == {"unlisted_file"}
    assert all(p.name.endswith(".npz") for p in scan.problems[1:])
    assert reader.read(scan.records[0]).shape == (512, 512, 1)


def test_strong_fields_that_are_stored_as_0_are_no_background():
    pixels = np.full((12, 12), 127, dtype=np.uint8)
    pixels[:2, :5] = 0  # off the disk
    pixels[8, 8] = 0  # -500 gauss or less
    pixels[9, 9] = 255
    strength = field_strength(pixels)
    assert np.isnan(strength[:2, :7]).all()
    assert np.isfinite(strength[4:]).all()
    assert strength[8, 8] == pytest.approx(500, abs=2)
    assert strength[9, 9] == 500
    assert strength[6, 2] == 0


@real_data
@needs_data
@pytest.mark.parametrize("kind", ["sharp", "fulldisk"])
def test_the_real_fields_are_read_back_to_a_few_gauss_and_the_sky_is_unknown(kind):
    folder = Path(os.environ["LABN_TEST_DATA"]) / "hmi_magnetograms" / kind
    reader = MagnetogramReader(folder)
    for record in reader.scan().records[::6]:
        strength = field_strength(reader.read(record)[..., 0])
        if kind == "sharp":
            gauss = np.load(record.path.with_suffix(".npz"))["gauss"].astype(np.float64)
            known = np.isfinite(strength)
            expected = np.minimum(np.abs(gauss), 500)
            # Half a level, and the rounding of test_the_real_active_regions_are_complete.
            assert np.abs(strength - expected)[known].max() < 5
            assert known.mean() > 0.99
        else:
            rows, columns = np.indices(strength.shape) - 255.5
            radius = np.hypot(rows, columns)
            assert np.isnan(strength[radius > 250]).all()
            assert np.isfinite(strength[radius < 225]).all()
        assert (strength >= 150).any()
