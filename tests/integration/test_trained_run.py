"""A trained run sees data as in training, wherever the data lies and whatever became of it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from command_line import write_config
from PIL import Image

from labn.config import load_config
from labn.data.readers.synthetic import write_synthetic
from labn.model.network import build_model, upsample_attention
from labn.report import conditions
from labn.runs.comparison.compare import compare_runs
from labn.runs.comparison.read_runs import read_runs
from labn.runs.evaluation import sanity_check as sanity
from labn.runs.evaluation.evaluate_run import evaluate_run
from labn.runs.reporter import Reporter
from labn.runs.train import train_run
from labn.runs.trained import TrainedRun
from labn.sweeps.ablation.ablation_figures import draw_study
from labn.training import checkpoint

SIZE = 32


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A run on a tree of images, beside that tree, and scored on its test subset."""
    folder = tmp_path_factory.mktemp("original")
    root = folder / "data"
    write_synthetic(root, num_images=20, positive_fraction=0.5, seed=0, image_size=SIZE)
    config = load_config(
        write_config(folder, data__name="folder", data__root=root, train__epochs=1)
    )
    train_run(config, Reporter())
    choices = {"methods": ("LABN",), "patch_sizes": (8,)}
    evaluate_run(config.output_dir, "test", [], Reporter(), choices)
    return folder


@pytest.fixture
def trained(original, tmp_path):
    """A run of one's own, whose data lies beside it."""
    folder = shutil.copytree(original, tmp_path / "own")
    config = folder / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(original), str(folder)))
    return folder


def repaint(root, change):
    """Change the pixels of every image of a tree."""
    for path in sorted(root.glob("*/*.png")):
        pixels = np.array(Image.open(path))
        Image.fromarray(change(pixels)).save(path)


def accept_changes(trained):
    """Record in the run the images as they are now."""
    file = trained / "run" / "data.csv"
    rows = pd.read_csv(file)
    digests = [
        hashlib.sha256((trained / "data" / name).read_bytes()).hexdigest() for name in rows["name"]
    ]
    rows.assign(sha256=digests).to_csv(file, index=False)


def brighten(pixels):
    return (128 + pixels // 2).astype(np.uint8)


def make_others(root):
    """Make the data of other classes, of the same images."""
    (root / "positive").rename(root / "sick")
    (root / "masks" / "positive").rename(root / "masks" / "sick")


def make_grey(root):
    repaint(root, lambda pixels: pixels.mean(axis=2).astype(np.uint8))


def prepare(root, names, best):
    """Standardise images by the checkpoint's figures, in float64, by nothing of labn's."""
    pixels = np.stack([np.array(Image.open(root / name)) for name in names]) / 255
    mean, std = (best[key].numpy().astype(np.float64) for key in ("mean", "std"))
    return torch.from_numpy((pixels - mean) / std).permute(0, 3, 1, 2)


class RecordingMethod:
    """A method of explanation that keeps the images that it is given."""

    name = "edges"

    def __init__(self):
        self.seen = {}

    def explain(self, images, labels, names):
        self.seen |= dict(zip(names, images.clone(), strict=True))
        return images.mean(dim=1)


class Listener(Reporter):
    """A reporter that keeps its messages."""

    def __init__(self):
        self.lines = []

    def message(self, text):
        self.lines.append(text)


def test_sanity_standardises_as_in_training_wherever_the_data_lies(labn, trained, monkeypatch):
    other = Path(shutil.copytree(trained / "data", trained / "other"))
    repaint(other, brighten)
    method = RecordingMethod()
    monkeypatch.setattr(sanity, "quick_methods", lambda *_: [method])

    done = labn("sanity", trained / "run", f"data.root={other}", "--allow-changed-data")

    assert done.returncode == 0, done.stderr
    assert "20 changed (" in done.stderr
    assert len(method.seen) > 1
    best = checkpoint.load(trained / "run/checkpoints/best.pt")
    expected = prepare(other, method.seen, best)
    for image, wanted in zip(method.seen.values(), expected, strict=True):
        torch.testing.assert_close(image.double(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "override", "parts"),
    [
        (make_others, "", ["classes negative, sick, the network negative, positive"]),
        (None, "data.image_size=16", ["data.image_size = 16", "trained at, 32 pixels"]),
        (make_grey, "", ["1 channels: must be", "32 pixels and 3 channels"]),
    ],
    ids=["classes", "size", "channels"],
)
@pytest.mark.parametrize("command", ["sanity", "evaluate"])
def test_data_unlike_that_of_training_is_refused(labn, trained, command, change, override, parts):
    other = Path(shutil.copytree(trained / "data", trained / "other"))
    if change is not None:
        change(other)

    done = labn(command, trained / "run", f"data.root={other}", *filter(None, [override]))

    assert done.returncode == 2
    assert done.stdout == ""
    (error,) = [line for line in done.stderr.splitlines() if not line.startswith("drew ")]
    assert error.startswith("error: ")
    for part in parts:
        assert part in error


def draw(trained, out):
    """Draw a study of one run as `labn ablate` does; return the pictures and the messages."""
    out.mkdir()
    comparison = compare_runs(read_runs([trained / "run"], "test"), "test", "LABN", ["only"])
    listener = Listener()
    drawn = draw_study(comparison, "PID m=8", out, listener)
    return {path.name for path in drawn.values()}, listener.lines


def resize_run(trained):
    file = trained / "run" / "config.yaml"
    tree = yaml.safe_load(file.read_text())
    tree["data"]["image_size"] = 16
    file.write_text(yaml.safe_dump(tree))


def lose_images(trained):
    for path in sorted((trained / "data" / "positive").iterdir()):
        path.rename(path.with_name(f"x{path.name}"))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda trained: make_others(trained / "data"), "classes negative, sick, the network"),
        (resize_run, "data.image_size = 16"),
        (lose_images, "data.csv, 10 missing ("),
    ],
    ids=["classes", "size", "images"],
)
def test_a_study_whose_data_changed_is_drawn_without_maps_and_with_the_reason(
    trained, tmp_path, change, part
):
    change(trained)

    drawn, lines = draw(trained, tmp_path / "out")

    assert drawn >= {"scores.png", "training.png"}
    assert "maps.png" not in drawn
    (line,) = lines
    assert line.startswith("no picture of attention to the same images under each condition: ")
    assert part in line


def test_a_studys_maps_are_of_images_standardised_as_in_training(trained, tmp_path, monkeypatch):
    repaint(trained / "data", brighten)
    accept_changes(trained)
    best = checkpoint.load(trained / "run/checkpoints/best.pt")
    drawn = {}

    def keep(images, maps, texts, titles, *rest):
        drawn.update(maps=maps, names=[title.splitlines()[0] for title in titles])
        return conditions.training_figure({"val_loss": {"only": [[1.0]]}})

    monkeypatch.setattr("labn.sweeps.ablation.ablation_figures.examples_figure", keep)

    assert draw(trained, tmp_path / "out")[1] == []

    settings = best["config"]["model"]
    model = build_model("lambda_cnn", split=0, theta_alpha=settings["theta_alpha"]).double().eval()
    model.load_state_dict(best["model"])
    images = prepare(trained / "data", drawn["names"], best)
    with torch.inference_mode():
        expected = upsample_attention(model(images).attention, (SIZE, SIZE)).numpy()
    assert len(expected) > 1
    # Float32 against float64 after the network.
    np.testing.assert_allclose(drawn["maps"]["only"], expected, rtol=0, atol=1e-4)


def test_a_run_opens_without_its_data_and_speaks_of_its_checkpoint(trained):
    shutil.rmtree(trained / "data")
    best = checkpoint.load(trained / "run/checkpoints/best.pt")

    run = TrainedRun.open(trained / "run", ["data.root=.", "train.device=cpu"])

    assert not run.model.training
    assert run.class_names == ("negative", "positive")
    for name in ("mean", "std", "bias_image"):
        assert torch.equal(getattr(run.statistics, name), best[name])
    assert json.loads(run.folder.summary_file.read_text())["best_epoch"] == best["epoch"]
