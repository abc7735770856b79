"""What a run leaves in its tracker, although it was killed on the way."""

from __future__ import annotations

import json
import signal
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import lose_end, start, succeed, write_config

from labn.config import load_config
from labn.runs.build import restore_network
from labn.runs.folder import RunFolder
from labn.runs.tracked import deliver_kept, reopened_entry, tag_entry
from labn.runs.trained import TrainedRun, without_data
from labn.tracking import environment_tags
from labn.tracking.quiet import quiet
from labn.training import checkpoint

METRICS = ("train_loss", "val_loss", "val_pid", "val_accuracy", "val_auroc")
PICTURES = ("attention.png", "confusion.png", "curves.png", "reliability.png", "spread.png")


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A run that was killed in its second epoch, given again, and scored on the test subset."""
    folder = tmp_path_factory.mktemp("tracked")
    uri = f"sqlite:///{folder}/mlflow.db"
    config = write_config(
        folder, train__epochs=3, train__checkpoint_steps=1, tracking={"uri": uri, "run_name": "x"}
    )
    with start("train", config) as process:
        for line in process.stderr:
            if line.startswith("epoch   1/3"):
                break
        process.kill()
    assert process.returncode == -signal.SIGKILL
    run_id = json.loads((folder / "run" / "tracker.json").read_text())["run_id"]
    printed = succeed("train", config).stderr
    with quiet():
        from mlflow import MlflowClient

        client = MlflowClient(uri)
    return SimpleNamespace(
        folder=folder / "run",
        uri=uri,
        run_id=run_id,
        client=client,
        run=client.get_run(run_id),
        printed=printed,
    )


def test_a_killed_run_resumes_in_the_tracker_as_the_same_run(tracked):
    summary = json.loads((tracked.folder / "summary.json").read_text())
    experiment = tracked.client.get_experiment_by_name("labn/synthetic")

    runs = tracked.client.search_runs([experiment.experiment_id])

    assert [run.info.run_id for run in runs] == [tracked.run_id]
    assert summary["tracker"] == {"uri": tracked.uri, "run_id": tracked.run_id}
    assert tracked.run.info.status == "FINISHED"
    assert tracked.run.info.run_name == "x"


def test_a_tracked_run_prints_no_more_than_another(tracked):
    beginnings = (
        "drew ", "resuming from ", "epoch ", "network: ", "data: ", "output: ", "training at ",
    )  # fmt: skip

    assert [line for line in tracked.printed.splitlines() if not line.startswith(beginnings)] == []


def test_the_settings_are_parameters_by_their_dotted_names(tracked):
    params = tracked.run.data.params

    assert params["data.name"] == "synthetic"
    assert params["data.synthetic.num_images"] == "40"
    assert params["model.backbone"] == "lambda_cnn"
    assert params["train.epochs"] == "3"
    assert params["train.seed"] == "0"
    assert params["loss.lambda_kl"] == "1.0"


def test_places_are_tags_since_they_tell_no_two_settings_apart(tracked):
    data = tracked.run.data

    assert data.tags["output_dir"] == str(tracked.folder)
    assert {"output_dir", "tracking.uri", "data.cache_dir"} <= data.tags.keys()
    assert not [name for name in data.params if name in data.tags]


def test_the_epoch_is_the_step_and_no_metric(tracked):
    assert "epoch" not in tracked.run.data.metrics


def test_the_entry_describes_the_run_with_its_scores(tracked):
    text = tracked.run.data.tags["mlflow.note.content"]

    summary = json.loads((tracked.folder / "summary.json").read_text())
    assert "lambda_cnn" in text
    assert "is the negative class" in text
    for name in ("val_auroc", "val_pid"):
        assert f"| {name} | {summary['metrics'][name]:.4f} |" in text
    assert str(tracked.folder) in text


@pytest.mark.parametrize("name", METRICS)
def test_every_epoch_has_its_metrics(tracked, name):
    history = pd.read_csv(tracked.folder / "history.csv").set_index("epoch")

    logged = {}
    for metric in tracked.client.get_metric_history(tracked.run_id, name):
        logged.setdefault(metric.step, set()).add(metric.value)

    # An epoch that was killed as it ended is logged twice, and the same.
    assert logged == {epoch: {value} for epoch, value in history[name].items()}


def test_the_best_epochs_scores_are_metrics_too(tracked):
    summary = json.loads((tracked.folder / "summary.json").read_text())

    metrics = tracked.run.data.metrics
    assert metrics["best_epoch"] == summary["best_epoch"]
    for name, value in summary["metrics"].items():
        assert metrics[f"best_{name}"] == pytest.approx(value)


def test_code_data_and_command_are_tags(tracked):
    tags = tracked.run.data.tags

    assert len(tags["data_digest"]) == 64
    expected = environment_tags()
    assert "version.torch" in expected
    for name in expected.keys() - {"command"}:
        assert tags[name] == expected[name]
    assert " train " in tags["command"]


def test_the_data_set_is_an_input(tracked):
    (used,) = tracked.run.inputs.dataset_inputs

    assert used.dataset.name == "synthetic"
    assert tracked.run.data.tags["data_digest"].startswith(used.dataset.digest)
    columns = {column["name"] for column in json.loads(used.dataset.schema)["mlflow_colspec"]}
    assert {"name", "label", "partition", "sha256"} <= columns


def test_tables_and_pictures_are_artifacts(tracked):
    def names(folder=None):
        return {file.path for file in tracked.client.list_artifacts(tracked.run_id, folder)}

    assert {"config.yaml", "history.csv", "history.png"} <= names()
    part = "evaluation/validation"
    tables = ("images.csv", "metrics.json", "scores.parquet", "curves.npz", "table2.md")
    assert names(part) >= {f"{part}/{name}" for name in (*PICTURES, *tables)}


def test_the_page_of_the_run_joins_it_with_maps_that_the_evaluation_kept(tracked, labn):
    done = labn("report", tracked.folder, "--subset", "validation", "--json")

    assert done.returncode == 0, done.stderr
    files = tracked.client.list_artifacts(tracked.run_id, "report")
    assert [file.path for file in files] == ["report/report.html"]
    assert tracked.client.get_run(tracked.run_id).info.status == "FINISHED"
    page = (tracked.folder / "report" / "report.html").read_text()
    num_maps = len(np.load(tracked.folder / "evaluation/validation/attention.npz")["titles"])
    assert page.count('<figure class="map"') == min(num_maps, 8) > 1
    assert "Flips and small shifts of an image move its attention by 0." in page
    assert ">Spread of the attention over flips and shifts</h2>" in page
    for name in (
        "Training",
        "Confusion matrix",
        "Skill by threshold",
        "Failures by kind",
        "Training settings",
    ):
        assert f">{name}</h2>" in page


def test_the_spread_of_attention_is_over_flips_and_small_shifts(tracked):
    with np.load(tracked.folder / "evaluation/validation/attention.npz") as kept:
        images, attention, spread = (kept[name] for name in ("images", "attention", "spread"))
    trained = TrainedRun.open(tracked.folder, without_data())
    flips = [partial(np.flip, axis=axes) for axes in ((), (2,), (1,), (1, 2))]
    # A 28th of 32 pixels is 1.
    rolls = [partial(np.roll, shift=step, axis=axis) for axis in (1, 2) for step in (1, -1)]
    pairs = [*zip(flips, flips, strict=True)]
    pairs += [(rolls[place], rolls[place ^ 1]) for place in range(4)]

    views = [
        undo(trained.attention(np.ascontiguousarray(move(images)), images.shape[1:3]))
        for move, undo in pairs
    ]

    # Kept in half precision.
    np.testing.assert_allclose(attention, views[0], rtol=0, atol=1e-3)
    np.testing.assert_allclose(spread, np.std(views, axis=0), rtol=0, atol=1e-3)
    assert spread.any()


def test_the_network_loads_back_and_predicts_with_its_attention(tracked, monkeypatch):
    # The environment, not `set_tracking_uri`: that would outlive this test.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracked.uri)
    with quiet():
        import mlflow.pyfunc

        served = mlflow.pyfunc.load_model(f"runs:/{tracked.run_id}/model")
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)

    answer = served.predict(images)

    config = load_config(tracked.folder / "config.yaml")
    best = checkpoint.load(tracked.folder / "checkpoints" / "best.pt")
    scaled = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    prepared = (scaled - best["mean"].view(3, 1, 1)) / best["std"].view(3, 1, 1)
    with torch.inference_mode():
        expected = restore_network(best, config.model).eval()(prepared.float())
    assert answer.keys() == {"probabilities", "attention"}
    # The exported program may fuse operations, which round differently.
    for name, value in {
        "probabilities": expected.logits.softmax(dim=1),
        "attention": expected.attention,
    }.items():
        np.testing.assert_allclose(answer[name], value.numpy(), rtol=0, atol=1e-5)


def test_scores_of_another_subset_join_the_run_even_after_one_that_was_not_tracked(tracked, labn):
    silent = labn("evaluate", tracked.folder, "tracking.uri=none", "--json")
    assert silent.returncode == 0

    done = labn("evaluate", tracked.folder, "--json")

    assert done.returncode == 0, done.stderr
    metrics = tracked.client.get_run(tracked.run_id).data.metrics
    for name, value in json.loads(done.stdout)["metrics"].items():
        assert metrics[name] == pytest.approx(value)
    files = tracked.client.list_artifacts(tracked.run_id, "evaluation/test")
    assert {file.path for file in files} > {f"evaluation/test/{name}" for name in PICTURES}


def test_a_finished_run_given_again_delivers_what_its_tracker_has_not_received(tracked, labn):
    read = lose_end(tracked.folder)

    again = labn("train", tracked.folder.parent / "config.yaml")

    assert again.returncode == 0, again.stderr
    assert "is finished already" in again.stderr
    assert read() == ("FINISHED", True)


def test_an_entry_that_is_only_extended_never_runs_again(tracked):
    folder = RunFolder(tracked.folder)
    config = folder.load_config(without_data())
    with reopened_entry(config, folder):
        assert tracked.client.get_run(tracked.run_id).info.status == "FINISHED"
    tag_entry(config, folder, {"extended": "yes"})
    assert tracked.client.get_run(tracked.run_id).data.tags["extended"] == "yes"
    for status in ("KILLED", "FINISHED"):
        tag_entry(config, folder, {}, status)
        with reopened_entry(config, folder):
            pass
        assert tracked.client.get_run(tracked.run_id).info.status == status


def test_a_status_that_was_kept_is_delivered_by_whatever_opens_the_entry(tracked):
    read = lose_end(tracked.folder)
    folder = RunFolder(tracked.folder)
    tag_entry(folder.load_config(without_data()), folder, {"opened": "yes"})
    assert read() == ("FINISHED", True)


def test_kept_records_stay_while_the_tracker_is_away(tracked, caplog):
    read = lose_end(tracked.folder)
    folder = RunFolder(tracked.folder)
    config = folder.load_config(without_data())
    away = config.tracking.model_copy(update={"uri": f"sqlite:///{tracked.folder}/away.db"})
    runs = [(config.model_copy(update={"tracking": away}), folder, "FINISHED")] * 2
    deliver_kept(runs)
    assert len(caplog.records) == 1, "the second run is left as it is"
    assert read()[0] == "RUNNING"
    deliver_kept([(config, folder, "FINISHED")])
    assert read()[0] == "FINISHED"
