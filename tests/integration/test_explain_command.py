"""Explaining images with a trained run, and checking that its maps are of what it learnt."""

from __future__ import annotations

import io
import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from astropy.io import fits
from command_line import assert_mistake, write_config
from PIL import Image

from labn.config import load_config
from labn.data.decode import resize
from labn.data.readers import idrid
from labn.data.readers.magnetograms import field_strength, read_magnetogram
from labn.data.readers.synthetic import write_synthetic
from labn.explain.controls import CentredGaussian
from labn.explain.gradients import GradCam
from labn.metrics.localisation import field_distance
from labn.model.network import build_model, upsample_attention
from labn.report import overlay
from labn.runs import explain_images as explaining
from labn.runs.loaded import load
from labn.runs.reporter import Reporter
from labn.runs.train import train_run
from labn.runs.trained import TrainedRun, without_data
from labn.tracking import save_servable
from labn.training import checkpoint

CAMERA_SIZE, FUNDUS_BOX = (60, 40), (6, 0, 50, 40)
"""Width and height; left, top, right, bottom. A hundredth of the real ones' pixels."""
KINDS = ("folder", "idrid", "magnetograms")


def paint(number, is_positive, size):
    """Noise with a bright square in every positive; ``size`` is (width, height)."""
    rng = np.random.default_rng(number)
    image = rng.integers(0, 120, (size[1], size[0], 3), dtype=np.uint8)
    row, column = rng.integers(8, 24, 2)
    image[row : row + 10, column : column + 10] += np.uint8(120 * is_positive)
    return image


def write_folder(root):
    write_synthetic(root, num_images=24, positive_fraction=0.5, seed=0, image_size=48)
    for path in root.glob("*/*.png"):
        with Image.open(path) as image:
            image.resize((50, 36)).save(path)
    for path in (root / "masks" / "positive").iterdir():
        Image.new("1", (50, 36)).save(path)
    return root


def write_idrid(root):
    images, tables = (
        root / "B. Disease Grading" / name for name in ("1. Original Images", "2. Groundtruths")
    )
    tables.mkdir(parents=True)
    for part, count in zip(idrid.SUBSET_FILES, (20, 6), strict=True):
        (images / part.images).mkdir(parents=True)
        lines = ["Image name,Retinopathy grade"]
        for number in range(count):
            # One training image is already cropped, as some copies of the set are.
            size = (44, 40) if number == 0 else CAMERA_SIZE
            image = paint(100 * count + number, number % 2, size)
            name = f"IDRiD_{number:03d}"
            Image.fromarray(image).save(images / part.images / f"{name}.jpg")
            lines.append(f"{name},{3 * (number % 2)}")
        (tables / part.table).write_text("\n".join(lines))
    return root


def write_magnetograms(root):
    root.mkdir()
    lines = ["file,class,partition"]
    for number in range(26):
        gauss = paint(number, number % 2, (48, 40))[..., 0].astype(np.float32) * 8 - 700
        gauss[0, :5] = np.nan
        name = f"{number:02d}.{'png' if number == 25 else 'fits'}"
        if name.endswith("png"):
            Image.fromarray(paint(number, 1, (48, 40))[..., 0]).save(root / name)
        else:
            fits.PrimaryHDU(gauss).writeto(root / name)
        part = "train" if number < 14 else "validation" if number < 20 else "test"
        lines.append(f"{name},{'OM'[number % 2]},{part}")
    (root / "labels.csv").write_text("\n".join(lines))
    return root


WRITERS = {"folder": write_folder, "idrid": write_idrid, "magnetograms": write_magnetograms}


@pytest.fixture(autouse=True)
def small_camera(monkeypatch):
    monkeypatch.setattr(idrid, "CAMERA_SIZE", CAMERA_SIZE)
    monkeypatch.setattr(idrid, "FUNDUS_BOX", FUNDUS_BOX)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train a run of each kind of data once; give the run and the data's folder."""
    done = {}

    def call(kind):
        if kind not in done:
            folder = tmp_path_factory.mktemp(kind)
            root = WRITERS[kind](folder / "data")
            changes = {"data__name": kind, "data__root": root, "train__batch_size": 6}
            # Large enough a step that the images' probabilities differ.
            changes |= {"train__learning_rate_head": 0.02, "train__learning_rate_backbone": 0.02}
            config = load_config(write_config(folder, **changes))
            train_run(config, Reporter())
            done[kind] = folder / "run", root
        return done[kind]

    return call


@pytest.fixture
def explained(labn, trained, tmp_path):
    """Explain images with a run, in JSON."""

    def call(images, *more, kind="folder", out=tmp_path / "out", exit_code=0):
        done = labn("explain", trained(kind)[0], images, "--out", out, "--json", *more)
        assert done.returncode == exit_code, done.stderr
        return json.loads(done.stdout)

    return call


@pytest.fixture
def pictures(trained, tmp_path):
    """A folder of nine images of no data set, one of another kind and size than the others."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(8):
        Image.fromarray(paint(number, number % 2, (50, 36))).save(folder / f"{number}.png")
    Image.fromarray(paint(9, 1, (70, 64))[..., 0]).save(folder / "grey.jpg")
    return folder


def table_of(folder):
    return pd.read_csv(folder / "explanations.csv")


def files_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_are_those_of_evaluate(labn, trained, explained, tmp_path, kind):
    run, root = trained(kind)
    done = labn("evaluate", run, "--split", "test")
    assert done.returncode == 0, done.stderr
    scored = pd.read_csv(run / "evaluation" / "test" / "images.csv")
    images = root
    if kind == "idrid":
        images = root / "B. Disease Grading" / "1. Original Images" / "b. Testing Set"

    explained(images, kind=kind)

    class_names = checkpoint.load(run / "checkpoints" / "best.pt")["class_names"]
    scored.index = scored["name"].str.removeprefix("test/" if kind == "idrid" else "")
    table = table_of(tmp_path / "out").set_index("file").loc[scored.index]
    for number, name in enumerate(class_names):
        expected = scored[f"probability_{number}"]
        assert expected.std() > 1e-4
        # The batches are of other sizes: sums in another order, in float32.
        np.testing.assert_allclose(table[f"probability_{name}"], expected, rtol=0, atol=1e-6)
    assert list(table["predicted"]) == [class_names[index] for index in scored["predicted"]]


def replica(run, pixels):
    """Classify and attend without the code under test: pixels (h, w, c) to alpha (h, w)."""
    best = checkpoint.load(run / "checkpoints" / "best.pt")
    settings = best["config"]["model"]
    model = build_model(
        settings["backbone"], 2, best["num_channels"], settings["split"], settings["theta_alpha"]
    )
    model.load_state_dict(best["model"])
    small = Image.fromarray(pixels.squeeze()).resize((32, 32), Image.Resampling.BICUBIC)
    x = np.asarray(small).reshape(32, 32, -1) / 255
    x = (x - best["mean"].numpy()) / best["std"].numpy()
    with torch.inference_mode():
        output = model.eval()(torch.tensor(x.transpose(2, 0, 1)[None], dtype=torch.float32))
    attention = output.attention[0, 0].double().numpy()
    for axis, length in enumerate(pixels.shape[:2]):
        size = attention.shape[axis]
        places = (np.arange(length) + 0.5) * size / length - 0.5
        attention = np.apply_along_axis(
            lambda line, places=places: np.interp(places, np.arange(len(line)), line),
            axis,
            attention,
        )
    return output.logits[0].double().softmax(0).numpy(), attention


def test_maps_are_at_the_images_own_size_and_the_table_describes_them(
    trained, explained, pictures, tmp_path
):
    run, _ = trained("folder")

    rows = explained(pictures)["images"]

    assert [row["file"] for row in rows] == [*(f"{number}.png" for number in range(8)), "grey.jpg"]
    for row in rows:
        with Image.open(pictures / row["file"]) as image:
            pixels = np.array(image.convert("RGB"))
        probabilities, expected = replica(run, pixels)
        alpha = np.load(tmp_path / "out" / row["map_npy"])
        assert alpha.dtype == np.float32
        # Float32 against float64 after the network.
        np.testing.assert_allclose(alpha, expected, rtol=0, atol=1e-5)
        found = [row["probability_negative"], row["probability_positive"]]
        np.testing.assert_allclose(found, probabilities, rtol=0, atol=1e-5)
        with Image.open(tmp_path / "out" / row["map_png"]) as image:
            assert image.mode == "I;16"
            # Rounded to the nearest of 65536 levels.
            np.testing.assert_allclose(np.asarray(image) / 65535, alpha, rtol=0, atol=0.51 / 65535)
        with Image.open(tmp_path / "out" / row["overlay_png"]) as image:
            np.testing.assert_array_equal(np.asarray(image), overlay(pixels, alpha))
        assert alpha[row["peak_y"], row["peak_x"]] == alpha.max()
        assert row["mean_attention"] == pytest.approx(alpha.mean(), abs=1e-6)
        assert row["share_above_theta_alpha"] == pytest.approx((alpha > 0.25).mean(), abs=1e-12)


def test_a_photograph_of_idrid_is_cropped_and_its_map_put_back(trained, explained, tmp_path):
    run, root = trained("idrid")
    folder = root / "B. Disease Grading" / "1. Original Images" / "b. Testing Set"

    rows = explained(folder, kind="idrid")["images"]

    left, top, right, bottom = FUNDUS_BOX
    for row in rows[1:]:
        with Image.open(folder / row["file"]) as image:
            pixels = np.array(image)
        alpha = np.load(tmp_path / "out" / row["map_npy"])
        assert alpha.shape == (CAMERA_SIZE[1], CAMERA_SIZE[0])
        seen = np.zeros(alpha.shape, dtype=bool)
        seen[top:bottom, left:right] = True
        assert (alpha[~seen] == 0).all()
        assert (alpha[seen] > 0).all()
        _, expected = replica(run, pixels[top:bottom, left:right])
        np.testing.assert_allclose(alpha[top:bottom, left:right], expected, rtol=0, atol=1e-5)
        assert row["mean_attention"] == pytest.approx(alpha[seen].mean(), abs=1e-6)
        assert row["share_above_theta_alpha"] == pytest.approx((alpha[seen] > 0.25).mean())
        assert seen[row["peak_y"], row["peak_x"]]
        with Image.open(tmp_path / "out" / row["overlay_png"]) as image:
            assert image.size == CAMERA_SIZE
    assert np.load(tmp_path / "out" / rows[0]["map_npy"]).shape == (40, 44)
    assert np.load(tmp_path / "out" / rows[0]["map_npy"]).min() > 0


def test_one_image_can_be_explained_where_the_data_set_is_gone(
    labn, trained, pictures, tmp_path, monkeypatch
):
    run = tmp_path / "elsewhere"
    shutil.copytree(trained("folder")[0], run)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(trained("folder")[1]), "/gone"))
    monkeypatch.chdir(tmp_path)

    done = labn("explain", run, pictures / "grey.jpg", "data.root=also-gone")

    assert done.returncode == 0, done.stderr
    assert "grey.jpg" in done.stdout
    assert "1 explained: explanations/explanations.csv" in done.stdout
    assert files_of(tmp_path / "explanations") == [
        "explanations.csv",
        "grey.jpg.attention.npy",
        "grey.jpg.attention.png",
        "grey.jpg.overlay.png",
    ]


def test_images_of_one_name_in_several_folders_or_formats_do_not_clash(explained, tmp_path):
    names = ["a/x.jpg", "a/x.png", "b/c/x.png", "x.png"]
    for number, name in enumerate(names):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(paint(number, 1, (50, 36 + number))).save(tmp_path / "in" / name)

    rows = explained(tmp_path / "in")["images"]

    assert [row["file"] for row in rows] == names
    heights = [len(np.load(tmp_path / "out" / row["map_npy"])) for row in rows]
    assert heights == [36, 37, 38, 39]


def test_what_was_explained_is_kept_and_what_changed_is_explained_again(
    explained, pictures, tmp_path
):
    out = tmp_path / "out"
    first = explained(pictures)
    before = {name: (out / name).stat().st_mtime_ns for name in files_of(out)}
    assert first["num_kept"] == 0

    again = explained(pictures)
    assert again["num_kept"] == 9
    assert again["images"] == first["images"]
    assert {name: (out / name).stat().st_mtime_ns for name in files_of(out)} == before

    Image.fromarray(paint(77, 1, (50, 36))).save(pictures / "3.png")
    (out / "5.png.overlay.png").unlink()
    changed = explained(pictures)
    assert changed["num_kept"] == 7
    assert (out / "5.png.overlay.png").is_file()
    differ = [a["file"] for a, b in zip(first["images"], changed["images"], strict=True) if a != b]
    assert differ == ["3.png"]
    assert len(table_of(out)) == 9


def test_a_stopped_explanation_resumes_where_it_was(labn, explained, trained, pictures, tmp_path):
    expected = explained(pictures, out=tmp_path / "whole")["images"]
    write = explaining.write_maps

    def stop_at_the_last(out, name, *rest):
        if name == "grey.jpg":
            raise KeyboardInterrupt
        return write(out, name, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explaining, "write_maps", stop_at_the_last)
        stopped = labn("explain", trained("folder")[0], pictures, "--out", tmp_path / "out")
    assert stopped.returncode == 1
    assert stopped.stderr.splitlines()[-1] == "error: interrupted"
    assert len(table_of(tmp_path / "out")) == 8
    assert not list((tmp_path / "out").rglob("*.tmp"))

    rest = explained(pictures)
    assert rest["num_kept"] == 8
    for row, other in zip(rest["images"], expected, strict=True):
        assert row == other


def test_unreadable_images_are_named_and_the_others_explained(labn, trained, pictures, tmp_path):
    (pictures / "broken.png").write_bytes(b"not a picture")
    (pictures / "half.png").write_bytes((pictures / "0.png").read_bytes()[:500])
    (pictures / "notes.txt").write_text("left eye")

    done = labn("explain", trained("folder")[0], pictures, "--out", tmp_path / "out")

    assert done.returncode == 2
    assert "9 explained" in done.stdout
    assert "1 skipped, not images: notes.txt" in done.stdout
    *_, count, broken, half = done.stdout.splitlines()
    assert count == "2 cannot be read:"
    assert broken.startswith("  broken.png: ")
    assert half.startswith("  half.png: ")
    assert len(table_of(tmp_path / "out")) == 9


def test_a_name_too_long_for_the_names_of_its_maps_leaves_the_others(explained, pictures, tmp_path):
    name = f"{'n' * 246}.png"
    shutil.copy(pictures / "0.png", pictures / name)
    found = explained(pictures, exit_code=2)
    assert found["unreadable"] == {name: "its name is too long for the names of its maps"}
    assert len(table_of(tmp_path / "out")) == len(found["images"]) == 9


def test_a_name_that_is_not_utf_8_and_a_link_to_nowhere_are_taken_as_they_are(
    labn, trained, pictures, tmp_path
):
    (pictures / "0.png").rename(pictures / os.fsdecode(b"ol\xe9.png"))
    (pictures / "linked").symlink_to(pictures / "absent")
    (pictures / "absent.png").symlink_to("nowhere/1.png")
    (pictures / "loop").symlink_to(".")

    done = labn("explain", trained("folder")[0], pictures, "--out", tmp_path / "out")

    assert done.returncode == 2
    assert "absent.png: links to nowhere/1.png, which does not exist" in done.stdout
    table = table_of(tmp_path / "out")
    assert "ol\\xe9.png" in list(table["file"])
    assert (tmp_path / "out" / "ol\\xe9.png.attention.npy").is_file()


def test_an_image_that_broke_since_is_no_longer_in_the_table(explained, pictures, tmp_path):
    explained(pictures)
    (pictures / "3.png").write_bytes(b"not a picture")
    Image.fromarray(paint(70, 1, (50, 36))).save(pictures / "new.png")

    content = explained(pictures, exit_code=2)

    assert list(content["unreadable"]) == ["3.png"]
    assert "3.png" not in [row["file"] for row in content["images"]]
    assert "3.png" not in list(table_of(tmp_path / "out")["file"])


def test_neither_masks_nor_maps_nor_other_files_pass_for_images(trained, explained):
    _, root = trained("folder")
    out = root / "explanations"

    first = explained(root, out=out)
    second = explained(root, out=out)

    assert len(first["images"]) == second["num_kept"] == len(second["images"]) == 24
    assert all(name.startswith("masks/") for name in second["ignored"])
    shutil.rmtree(out)


def test_maps_of_magnetograms_are_measured_by_their_distance_from_strong_field(labn, trained):
    run, root = trained("magnetograms")
    choices = ("--methods", "centre", "--metrics", "field distance", "--max-images", "2")

    done = labn("evaluate", run, *choices, "--patch-sizes", "8")

    assert done.returncode == 0, done.stderr
    rows = pd.read_parquet(run / "evaluation" / "test-first2" / "map_metrics.parquet")
    rows = rows.query("score == 'field distance'")
    assert len(rows) == 2
    centre = CentredGaussian().explain(torch.zeros(1, 1, 32, 32), torch.tensor([1]), ["a"])
    for name, value in zip(rows["name"], rows["value"], strict=True):
        pixels = resize(read_magnetogram(root / name), 32)[..., 0]
        (expected,) = field_distance(centre.double().numpy(), field_strength(pixels))
        assert value == pytest.approx(expected, abs=1e-6)


def test_maps_by_other_methods_lie_beside_the_networks_own(
    labn, trained, explained, pictures, tmp_path
):
    run, _ = trained("folder")
    out, methods = tmp_path / "out", ("--methods", "labn,Grad-CAM,lambda attention,edges")
    own = explained(pictures)
    before = {name: (out / name).read_bytes() for name in files_of(out)}

    found = explained(pictures, *methods)

    assert found["num_kept"] == 0
    for row, plain in zip(found["images"], own["images"], strict=True):
        assert row == plain | {"methods": "Grad-CAM,lambda attention 0,edges"}
    for name in set(before) - {"explanations.csv"}:
        assert (out / name).read_bytes() == before[name]
    model = load(run)
    opened = TrainedRun.open(run, without_data())
    for name in ("3.png", "grey.jpg"):
        with Image.open(pictures / name) as image:
            pixels = np.array(image.convert("RGB"))
        x = opened.prepare(np.array(Image.fromarray(pixels).resize((32, 32), 3))[None])
        predicted = model.class_names.index(model(pictures / name).predicted)
        expected = GradCam(opened.model).explain(x, torch.tensor([predicted]), [name])
        expected = upsample_attention(expected[None], pixels.shape[:2])[0]
        saliency = np.load(out / f"{name}.grad-cam.map.npy")
        np.testing.assert_allclose(saliency, expected, rtol=0, atol=1e-5 * expected.max())
        with Image.open(out / f"{name}.grad-cam.map.png") as image:
            scaled = saliency / saliency.max()
            np.testing.assert_allclose(np.asarray(image) / 65535, scaled, rtol=0, atol=1e-5)
        assert (out / f"{name}.lambda-attention-0.overlay.png").is_file()

    assert explained(pictures, *methods)["num_kept"] == explained(pictures)["num_kept"] == 9
    (out / "1.png.edges.map.png").unlink()
    assert explained(pictures, "--methods", "edges")["num_kept"] == 8
    again = explained(pictures, "--methods", "random")
    assert again["num_kept"] == 0
    names = {row["methods"] for row in again["images"]}
    assert names == {"Grad-CAM,lambda attention 0,edges,random"}
    wrong = labn("explain", run, pictures, "--out", out, "--methods", "grad")
    assert_mistake(wrong, "--methods grad: must be among LABN")


def test_a_network_without_an_attention_branch_is_explained_by_other_methods(
    labn, pictures, tmp_path
):
    config = load_config(write_config(tmp_path, model__branch="none", train__epochs=1))
    train_run(config, Reporter())
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert not [name for name in history.columns if "attended" in name]
    words = ("explain", tmp_path / "run", pictures, "--out", tmp_path / "out")

    assert_mistake(labn(*words), "has no attention branch", "--methods Grad-CAM")
    done = labn(*words, "--methods", "Grad-CAM,edges")

    assert done.returncode == 0, done.stderr
    table = table_of(tmp_path / "out")
    assert list(table["methods"]) == ["Grad-CAM,edges"] * 9
    assert not list((tmp_path / "out").glob("*.attention.*"))
    assert len(list((tmp_path / "out").glob("*.grad-cam.*"))) == 27


def test_a_run_without_colours_takes_coloured_images(trained, explained, tmp_path):
    run, _ = trained("magnetograms")
    pixels = paint(3, 1, (36, 50))
    Image.fromarray(pixels).save(tmp_path / "colour.png")

    (row,) = explained(tmp_path / "colour.png", kind="magnetograms")["images"]

    luma = np.array(Image.fromarray(pixels).convert("L"))[..., None]
    probabilities, alpha = replica(run, luma)
    assert row["probability_>=M"] == pytest.approx(probabilities[1], abs=1e-5)
    np.testing.assert_allclose(np.load(tmp_path / "out" / row["map_npy"]), alpha, rtol=0, atol=1e-5)


def test_a_long_list_is_cut_but_counted(labn, trained, tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(22):
        Image.fromarray(paint(number, 0, (20, 20))).resize((40, 40)).save(
            tmp_path / "in" / f"{number:02d}.png"
        )

    done = labn("explain", trained("folder")[0], tmp_path / "in", "--out", tmp_path / "out")

    lines = done.stdout.splitlines()
    assert lines[19].startswith("19.png")
    assert lines[20] == "and 2 more"
    assert lines[21].startswith("22 explained")


def test_mistakes_are_reported_in_one_line(labn, trained, pictures, tmp_path):
    run, _ = trained("folder")
    empty, broken, file = tmp_path / "empty", tmp_path / "broken", tmp_path / "file"
    empty.mkdir()
    broken.mkdir()
    (broken / "x.png").write_bytes(b"not a picture")
    file.write_text("")
    out = tmp_path / "out"
    for words, parts in (
        ((run, tmp_path / "none", "--out", out), ["none: no such image or folder"]),
        ((run, empty, "--out", out), ["empty: no image", ".png"]),
        ((run, file, "--out", out), ["file: no image"]),
        ((run, broken, "--out", out), ["none of the 1 images can be read", "x.png"]),
        ((run, pictures, "--out", pictures), ["--out", "must not be the folder of the images"]),
        ((run, pictures, "--out", file), ["--out", "is a file"]),
        ((empty, pictures, "--out", out), ["empty: not a run"]),
        ((run, pictures, "train.device=abacus", "--out", out), ["train.device = abacus"]),
    ):
        assert_mistake(labn("explain", *words), *parts)
    assert not out.exists()


def test_explanations_of_another_network_are_not_mixed_with_these(
    labn, explained, trained, pictures, tmp_path
):
    explained(pictures)
    run = trained("folder")[0]

    other = ("explain", run, pictures, "--out", tmp_path / "out", "model.theta_alpha=0.9")
    assert_mistake(labn(*other), "its explanations.csv is of another network", "another folder")
    (tmp_path / "out" / "explanations.csv").write_text("what,else\n1,2\n")
    same = ("explain", run, pictures, "--out", tmp_path / "out")
    assert_mistake(labn(*same), "its explanations.csv is of another network")


def test_the_sanity_check_leaves_a_table_and_a_picture(labn, trained, drawn_figures):
    run, _ = trained("folder")
    words = ("sanity", run, "--num-images", 2, "--json")

    done = labn(*words)

    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    rows, figures = content["rows"], content["figures"]
    means = {(row["method"], row["stage"]): row["mean"] for row in rows}
    assert list(dict.fromkeys(row["stage"] for row in rows)) == ["linear", "LPB 0", "LAB", "stem"]
    for stage in ("linear", "LPB 0"):
        assert means["LABN", stage] == pytest.approx(1, abs=1e-9)
    assert means["LABN", "stem"] < 0.99
    assert all(means["edges", stage] == pytest.approx(1) for _, stage in means)
    folder = run / "evaluation" / "test"
    described = json.loads((folder / "sanity.json").read_text())
    assert described["rows"] == rows
    assert described["figure_rows"] == figures
    found = {(row["method"], row["figure"]): row["mean"] for row in figures}
    assert found["LABN", "random logit"] == pytest.approx(1)
    assert found["edges", "complexity rise"] == 0
    assert found["Grad-CAM", "random logit"] < 0.99
    assert set(described["figures"]) == {"random logit", "complexity rise"}
    assert len(described["images"]) == 2
    with Image.open(folder / "sanity.png") as image:
        assert image.width > 300

    assert json.loads(labn(*words).stdout)["rows"] == rows
    assert json.loads(labn(*words, "--seed", 1).stdout)["rows"] != rows
    text = labn("sanity", run, "--num-images", 1).stdout
    assert "input gradient" in text
    assert "\n  complexity rise" in text
    assert str(folder / "sanity.png") in text


def test_the_sanity_check_takes_methods_by_name(labn, trained):
    run, _ = trained("folder")

    done = labn("sanity", run, "--num-images", 1, "--methods", "Score-CAM,lambda rollout", "--json")

    assert done.returncode == 0, done.stderr
    means = {(r["method"], r["stage"]): r["mean"] for r in json.loads(done.stdout)["rows"]}
    assert {method for method, _ in means} == {"Score-CAM", "lambda rollout"}
    # A rollout does not see the linear layer, and no class.
    assert means["lambda rollout", "linear"] == pytest.approx(1)
    assert means["lambda rollout", "stem"] < 0.99
    assert_mistake(labn("sanity", run, "--methods", "rollouts"), "--methods rollouts: must be")


def test_the_weights_put_in_are_not_those_that_training_started_from(labn, trained, tmp_path):
    # With no step taken the trained weights are the first ones: drawn again, all would be 1.
    run = tmp_path / "run"
    config = write_config(tmp_path, train__epochs=1, train__weight_decay=0)
    still = ("train.learning_rate_head=1e-12", "train.learning_rate_backbone=1e-12")
    assert labn("train", config, *still).returncode == 0

    rows = json.loads(labn("sanity", run, "--num-images", 2, "--json").stdout)["rows"]

    last = {row["method"]: row["mean"] for row in rows if row["stage"] == "stem"}
    assert last["LABN"] < 0.99
    assert last["input gradient"] < 0.99


def test_a_loaded_run_takes_images_of_any_kind_and_agrees_with_the_formulas(trained, tmp_path):
    run, _ = trained("folder")
    pixels = paint(3, 1, (36, 50))
    Image.fromarray(pixels).save(tmp_path / "one.png")
    expected, attention = replica(run, pixels)
    channels_first = torch.from_numpy(pixels).permute(2, 0, 1)
    same = [
        tmp_path / "one.png", str(tmp_path / "one.png"), Image.fromarray(pixels), pixels,
        channels_first, channels_first.double() / 255,
    ]  # fmt: skip

    model = load(run)
    results = [model(same[0]), *model.predict(same)]

    assert len(results) == len(same) + 1
    for result in results:
        assert list(result.probabilities) == list(model.class_names)
        np.testing.assert_allclose(list(result.probabilities.values()), expected, rtol=0, atol=1e-6)
        assert result.predicted == model.class_names[expected.argmax()]
        np.testing.assert_allclose(result.attention, attention, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(result.image, pixels)
        with Image.open(io.BytesIO(result._repr_png_())) as picture:
            assert picture.size == (36, 50)
    grey = model(pixels[..., 0])
    assert grey.image.shape == pixels.shape


def test_the_crop_of_a_reader_holds_for_images_in_memory_too(trained, tmp_path):
    run, root = trained("idrid")
    path = next((root / "B. Disease Grading/1. Original Images").rglob("*.jpg"))
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))

    from_file, from_memory = load(run).predict([path, pixels])

    assert from_file.probabilities == from_memory.probabilities
    left, top, right, bottom = FUNDUS_BOX
    outside = np.ones(pixels.shape[:2], dtype=bool)
    outside[top:bottom, left:right] = False
    assert outside.any()
    assert not from_memory.attention[outside].any()
    assert from_memory.attention[~outside].all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8, 3)), r"shape \(8, 8, 3\) of float64"),
        (np.zeros((8, 8, 4), np.uint8), r"shape \(8, 8, 4\) of uint8"),
        (np.zeros((0, 8, 3), np.uint8), r"shape \(0, 8, 3\)"),
        (torch.full((3, 8, 8), 1.5), r"outside \[0, 1\]"),
        (torch.full((3, 8, 8), torch.nan), r"outside \[0, 1\]"),
        (Image.fromarray(np.zeros((8, 8), np.uint16)), "mode I;16, must have 8 bits"),
    ],
)
def test_an_image_in_memory_that_cannot_be_taken_exactly_is_refused(trained, image, message):
    model = load(trained("folder")[0])

    with pytest.raises(ValueError, match=message):
        model(image)


@pytest.mark.parametrize("kind", ["folder", "idrid"])
def test_an_exported_network_takes_images_as_the_run_itself_does(trained, tmp_path, kind):
    """It crops, resizes and standardises them; an image of the camera's size is cropped."""
    run, _ = trained(kind)
    opened = TrainedRun.open(run, without_data())
    save_servable(opened.model, opened.preparation, tmp_path / "model")
    import mlflow.pyfunc

    images = [Image.fromarray(paint(n, 1, size)) for n, size in enumerate([CAMERA_SIZE, (50, 44)])]

    answer = mlflow.pyfunc.load_model(str(tmp_path / "model")).predict(images)

    expected = [list(one.probabilities.values()) for one in load(run).predict(images)]
    np.testing.assert_allclose(answer["probabilities"], expected, rtol=0, atol=1e-5)
