from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from command_line import ENVIRONMENT, TIMEOUT_S, assert_mistake, run, succeed, write_config
from PIL import Image

from labn.model.kernels import compiled

PICTURES = ("attention.png", "confusion.png", "curves.png", "reliability.png", "spread.png")
METRICS = {
    "val_loss",
    "val_loss_lpb",
    "val_loss_lab",
    "val_loss_kl",
    "val_bias_probability",
    "val_pid",
    "val_pid_matched",
    "val_pid_over_centre",
    "val_accuracy",
    "val_auroc",
    "val_tss",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run, and what its command printed."""
    folder = tmp_path_factory.mktemp("trained")
    config = write_config(folder, validation__pid_centre=True)
    return SimpleNamespace(
        config=config, folder=folder / "run", printed=succeed("train", config, "--json")
    )


def only_object(text):
    """Read standard output that must be one JSON object and nothing else."""
    (line,) = text.splitlines()
    tree = json.loads(line)
    assert isinstance(tree, dict)
    return tree


def test_a_run_leaves_its_settings_history_scores_and_network(trained):
    history = pd.read_csv(trained.folder / "history.csv")
    summary = json.loads((trained.folder / "summary.json").read_text())
    config = yaml.safe_load((trained.folder / "config.yaml").read_text())
    images = pd.read_csv(trained.folder / "evaluation/validation/images.csv")
    manifest = pd.read_csv(trained.folder / "data.csv")

    assert history["epoch"].tolist() == [1, 2]
    assert set(history.columns) > METRICS | {"train_loss", "learning_rate_head"}
    assert summary["num_epochs"] == 2
    assert summary["best_epoch"] == history["val_loss"].idxmin() + 1
    assert summary["metrics"].keys() > METRICS | {"val_pid_random", "val_id_LABN"}
    assert config["data"]["name"] == "synthetic"
    assert config["train"]["seed"] == 0
    parts = manifest["partition"].value_counts().to_dict()
    assert parts == {"train": 25, "validation": 7, "test": 8}
    assert images["name"].tolist() == manifest.query("partition == 'validation'")["name"].tolist()
    scores = pd.read_parquet(trained.folder / "evaluation/validation/scores.parquet")
    scored = scores.query("method == 'LABN' and score == 'PID m=8'")
    assert set(scored["name"]) == set(images.query("label > 0")["name"])
    assert scored["value"].mean() == pytest.approx(summary["metrics"]["val_pid"])
    names = sorted(path.name for path in (trained.folder / "checkpoints").iterdir())
    assert names == ["best.pt", "step-00000004.pt", "step-00000008.pt"]


def test_the_best_epochs_scores_are_those_that_training_measured(trained):
    history = pd.read_csv(trained.folder / "history.csv").set_index("epoch")
    summary = json.loads((trained.folder / "summary.json").read_text())

    best = history.loc[summary["best_epoch"]]
    for name in METRICS:
        # Maps are scored one image at a time in the end, by batches in training.
        assert summary["metrics"][name] == pytest.approx(best[name], rel=1e-6, abs=1e-7), name


def test_every_picture_is_a_whole_png(trained):
    summary = json.loads((trained.folder / "summary.json").read_text())
    expected = {trained.folder / "evaluation/validation" / name for name in PICTURES}

    assert set(summary["pictures"]) == {
        str(path) for path in expected | {trained.folder / "history.png"}
    }
    for picture in summary["pictures"]:
        with Image.open(picture) as image:
            assert image.format == "PNG"
            image.load()
            assert min(image.size) > 100
            assert len(image.convert("RGB").getcolors(image.width * image.height)) > 5


def test_json_is_all_there_is_on_standard_output(trained):
    tree = only_object(trained.printed.stdout)

    assert tree == json.loads((trained.folder / "summary.json").read_text())
    assert tree["run"] == str(trained.folder)
    lines = trained.printed.stderr.splitlines()
    assert [line for line in lines if line.startswith("epoch ")] == lines[-2:]
    assert max(map(len, lines[-2:])) <= 80
    assert re.fullmatch(
        r"epoch   2/2 loss \d.* val \d.* acc \d.* AUROC \d.* PID .* 0 s left", lines[-1]
    )


def test_the_same_command_again_reports_that_nothing_is_left(trained, labn):
    before = {path: path.stat().st_mtime_ns for path in trained.folder.rglob("*.p*")}

    again = labn("train", trained.config, "--json")

    assert again.returncode == 0
    assert only_object(again.stdout) == only_object(trained.printed.stdout)
    assert again.stderr == f"{trained.folder} is finished already; nothing left to train\n"
    assert {path: path.stat().st_mtime_ns for path in trained.folder.rglob("*.p*")} == before


def test_evaluate_scores_the_test_part(trained, labn):
    scored = only_object(labn("evaluate", trained.folder, "--json").stdout)

    assert scored["split"] == "test"
    assert {"test_pid", "test_loss", "test_accuracy", "test_pid_random"} <= scored["metrics"].keys()
    folder = trained.folder / "evaluation/test"
    assert {str(folder / name) for name in (*PICTURES, "examples.png")} <= set(scored["pictures"])
    assert len(pd.read_csv(folder / "images.csv")) == 8


def test_evaluate_scores_the_validation_subset_as_training_did(trained, labn):
    again = only_object(labn("evaluate", trained.folder, "--split", "validation", "--json").stdout)

    summary = json.loads((trained.folder / "summary.json").read_text())
    assert again["metrics"].keys() > summary["metrics"].keys()
    for name, value in summary["metrics"].items():
        # This process may sum in another order than the one that trained.
        assert again["metrics"][name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_a_run_that_was_moved_is_still_the_run_of_its_folder(trained, labn, tmp_path, monkeypatch):
    moved = tmp_path / "moved"
    shutil.copytree(trained.folder, moved)
    (moved / "summary.json").unlink()

    monkeypatch.chdir(tmp_path)
    done = labn("train", "--resume", "moved")

    assert done.returncode == 0
    assert "resuming from moved/checkpoints/step-00000008.pt" in done.stderr
    assert (moved / "summary.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]


def test_a_run_that_is_resumed_with_other_arithmetic_reports_it(trained, labn, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(trained.folder, moved)
    (moved / "summary.json").unlink()
    if compiled.compiler() is None:
        pytest.skip("without a C++ compiler there are torch's kernels only")

    assert "last digits" not in labn("train", "--resume", moved).stderr
    (moved / "summary.json").unlink()
    changed = run("train", "--resume", moved, LABN_COMPILE="0")

    assert changed.returncode == 0, changed.stderr
    assert "computed with kernels = compiled, and the rest will be with torch" in changed.stderr


def test_a_dry_run_shows_the_plan_and_trains_nothing(labn, tmp_path):
    config = write_config(tmp_path)

    plan = only_object(labn("train", config, "train.epochs=7", "--dry-run", "--json").stdout)

    assert not (tmp_path / "run").exists()
    assert plan["config"]["train"]["epochs"] == 7
    parameters = plan["parameters"]
    assert parameters["total"] == parameters["lfe"] + parameters["lab"] + parameters["lpb"]
    assert plan["attention_size"] == [8, 8]
    assert plan["data"]["subsets"]["train"] == {"negative": 12, "positive": 13}
    assert plan["schedule"]["num_steps"] == 7 * plan["schedule"]["steps_per_epoch"] == 28

    text = labn("train", config, "--dry-run").stdout
    assert "nothing was trained" in text
    assert yaml.safe_load(text.split("\n\n")[0])["output_dir"] == str(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_settings_after_resume_take_effect(trained, labn):
    done = labn("train", "--resume", trained.folder, "train.seed=1")

    assert_mistake(done, f"output_dir = {trained.folder}", "train.seed is 0 there, 1 now")


def test_a_folder_is_not_given_to_a_run_with_other_settings(trained, labn):
    done = labn("train", trained.config, "loss.lambda_kl=2", "model.theta_alpha=0.5")

    assert_mistake(
        done,
        "holds a run with other settings",
        "loss.lambda_kl is 1.0 there, 2.0 now",
        "model.theta_alpha is 0.25 there, 0.5 now",
        "give another output_dir",
    )


def test_where_a_run_computes_and_reports_may_change(trained, labn, tmp_path):
    done = labn("train", trained.config, "train.device=cpu", f"data.cache_dir={tmp_path}")

    assert done.returncode == 0


def test_a_network_is_not_scored_as_another_one(trained, labn):
    done = labn("evaluate", trained.folder, "model.split=1")

    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: model = ")
    assert "split=0" in last


COMPILE_WITHOUT_CODE = """
import sys
from functools import partialmethod
import torch
import labn.cli
torch.nn.Module.compile = partialmethod(torch.nn.Module.compile, backend="eager")
try:
    labn.cli.main()
finally:
    from torch._dynamo.utils import counters
    print("graphs:", counters["stats"]["unique_graphs"], file=sys.stderr)
"""
"""Machine code for each shape of a batch would take two minutes to build."""


@pytest.mark.slow
def test_a_compiled_network_trains_closely_alike(trained, tmp_path):
    config = write_config(tmp_path, train__compile=True)

    done = subprocess.run(
        [sys.executable, "-c", COMPILE_WITHOUT_CODE, "train", config],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=TIMEOUT_S,
    )

    assert done.returncode == 0, done.stderr
    assert int(re.search(r"graphs: (\d+)", done.stderr)[1]) >= 2
    assert re.search(r"compiling the network took [1-9]\d* s of this epoch", done.stderr)
    compiled, plain = (
        pd.read_csv(folder / "history.csv") for folder in (tmp_path / "run", trained.folder)
    )
    for name in ("train_loss", "val_loss"):
        # The same operations, but perhaps in another memory layout, for eight steps.
        assert compiled[name].tolist() == pytest.approx(plain[name].tolist(), rel=1e-3)
