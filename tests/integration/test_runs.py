"""Whole runs in this process: what each setting changes, and what it must not."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest
import torch
from bitwise import assert_same
from command_line import write_config
from studies import write_study

from labn.config import load_config
from labn.errors import Interrupted, RunFailed, UserError
from labn.runs.evaluation.evaluate_run import evaluate_run
from labn.runs.plan import plan_run
from labn.runs.reporter import Reporter
from labn.runs.train import train_run
from labn.sweeps.ablation.ablation_driver import run_study
from labn.sweeps.ablation.ablation_study import read_study
from labn.training import checkpoint

ABLATIONS = {
    "neither": {"data__bias_copies": 0, "loss__lambda_kl": 0},
    "bias image only": {"data__bias_copies": 1, "loss__lambda_kl": 0},
    "divergence only": {"data__bias_copies": 0, "loss__lambda_kl": 1},
    "both": {"data__bias_copies": 1, "loss__lambda_kl": 1},
}
"""Table 4 of the paper."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def train(tmp_path, cache):
    """Train the small configuration with changes; give the run's folder."""
    number = 0

    def call(*, should_stop=lambda: False, reporter=None, **changes):
        nonlocal number
        number += 1
        output = {"output_dir": tmp_path / f"run-{number}", "data__cache_dir": cache}
        config = load_config(write_config(tmp_path, **(output | changes)))
        train_run(config, reporter or Reporter(), should_stop)
        return config.output_dir

    return call


def history(folder):
    return pd.read_csv(folder / "history.csv")


def best(folder):
    return checkpoint.load(folder / "checkpoints" / "best.pt")


def test_the_four_ablations_train_and_differ(train):
    runs = {name: train(**changes) for name, changes in ABLATIONS.items()}

    losses = {name: tuple(history(folder)["train_loss"]) for name, folder in runs.items()}
    assert len(set(losses.values())) == 4
    for name, folder in runs.items():
        table = history(folder)
        assert table["val_pid"].notna().all()
        divergences = table[["train_loss_kl", "val_loss_kl"]]
        has_divergence = ABLATIONS[name]["loss__lambda_kl"] > 0
        assert ((divergences > 0) == has_divergence).all(axis=None), name


class Messages(Reporter):
    """A reporter that keeps the messages."""

    def __init__(self):
        self.texts = []

    def message(self, text):
        self.texts.append(text)


@pytest.mark.parametrize(("theta_b", "num_messages"), [(0.3, 0), (1.0, 1)])
def test_a_mask_that_keeps_everything_is_reported_once(train, theta_b, num_messages):
    messages = Messages()
    folder = train(loss__theta_b=theta_b, reporter=messages)

    kept = history(folder)[["train_kept_share", "val_kept_share"]]
    assert len(kept) > 1
    assert kept.to_numpy() == pytest.approx(theta_b, abs=1e-3)
    found = [text for text in messages.texts if "L_KL teaches hardly anything" in text]
    assert len(found) == num_messages
    assert best(folder)["config"]["loss"]["mask_rule"] == "share"


def test_a_plain_network_is_trained_and_scored_without_a_branch(train):
    folder = train(model__branch="none", model__backbone="resnet26", train__monitor="val_auroc")

    table = history(folder)
    assert (table["val_loss"] == table["val_loss_lpb"]).all()
    assert "val_pid" not in table and "val_kept_share" not in table
    scores = evaluate_run(folder, "test", [], Reporter(), {"patch_sizes": (8,)})
    assert {"test_pid_m8_RISE", "test_pid_m8_matched_Grad_CAM"} <= scores.metrics.keys()
    assert not [name for name in scores.metrics if name.endswith(("_LABN", "lambda_attention"))]
    with pytest.raises(UserError, match=r"--methods LABN: the network has none"):
        evaluate_run(folder, "test", [], Reporter(), {"methods": ("LABN",)})
    assert not any(name.startswith("attention_branch") for name in best(folder)["model"])


def test_a_run_starts_from_another_one_and_keeps_what_is_frozen(train):
    first = train(train__epochs=1)
    folder = train(model__pretrained=first, train__freeze=["lfe", "lpb"], train__epochs=1)

    before, after = best(first)["model"], best(folder)["model"]
    for name, tensor in after.items():
        is_trained = name.startswith("attention_branch.")
        if not is_trained:
            assert torch.equal(tensor, before[name]), name
    name = "attention_branch.conv1.weight"
    assert not torch.equal(after[name], before[name])


def test_masking_and_scoring_use_the_same_bias_image_whether_it_is_trained_on_or_not(train):
    with_it, without = (best(train(data__bias_copies=copies)) for copies in (1, 0))

    assert torch.equal(with_it["bias_image"], without["bias_image"])
    assert with_it["bias_image"].abs().max() > 0.1


def test_settings_of_precision_run_to_the_end(train):
    folder = train(train__precision="bf16", train__channels_last=False, train__epochs=1)

    assert history(folder)["val_loss"].notna().all()


@pytest.mark.parametrize(
    ("num_kept", "steps"), [(1, [8]), (2, [6, 8]), (3, [4, 6, 8]), (9, [2, 4, 6, 8])]
)
def test_as_many_checkpoints_are_kept_as_was_asked(train, num_kept, steps):
    folder = train(train__keep_checkpoints=num_kept, train__checkpoint_steps=2)

    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["best.pt", *(f"step-{step:08d}.pt" for step in steps)]


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(train, caplog):
    expected = train()
    folder = expected.with_name("damaged")
    shutil.copytree(expected, folder)
    (folder / "summary.json").unlink()
    newest = folder / "checkpoints" / "step-00000008.pt"
    newest.write_bytes(newest.read_bytes()[:1000])

    train(output_dir=folder)

    assert "step-00000008.pt: not a whole checkpoint" in caplog.text
    assert_same(best(folder)["model"], best(expected)["model"])
    assert (folder / "history.csv").read_bytes() == (expected / "history.csv").read_bytes()


def test_a_run_that_diverges_fails_in_words_and_can_be_loaded_at_its_last_checkpoint(
    train, tmp_path
):
    with pytest.raises(RunFailed) as failure:
        train(train__learning_rate_head=1e20, train__learning_rate_backbone=1e20)

    folder = tmp_path / "run-1"
    message = str(failure.value)
    assert "step " in message
    assert "synthetic/" in message
    assert "last good checkpoint: " in message
    assert not (folder / "summary.json").exists()
    for path in (folder / "checkpoints").glob("*.pt"):
        for name, value in checkpoint.load(path)["model"].items():
            assert value.isfinite().all(), (path, name)


def test_a_run_stopped_at_once_has_nothing_to_score_but_resumes(train, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(output_dir=folder, should_stop=lambda: True)

    with pytest.raises(UserError, match="has no trained network yet"):
        evaluate_run(folder, "test", [], Reporter())
    train(output_dir=folder)

    expected = train()
    assert_same(best(folder)["model"], best(expected)["model"])


def test_pretrained_weights_are_where_training_starts(train):
    first = train(train__epochs=1)
    path = first / "checkpoints" / "best.pt"
    slow = {"train__learning_rate_head": 1e-12, "train__learning_rate_backbone": 1e-12}

    second = train(model__pretrained=path, train__seed=9, train__weight_decay=0, **slow)

    trained = best(first)["model"]
    for name, value in best(second)["model"].items():
        if name.endswith("weight"):
            torch.testing.assert_close(value, trained[name], rtol=0, atol=1e-9)


def test_scores_say_how_they_were_measured(train):
    folder = train(train__epochs=1, validation__pid_patch_size=16)

    scores = evaluate_run(folder, "test", [], Reporter())

    described = json.loads((folder / "evaluation/test/metrics.json").read_text())
    assert described["metrics"] == scores.metrics
    assert described["num_images"] == sum(map(sum, described["confusion"])) == 8
    assert described["settings"]["patch_sizes"] == [2, 4, 8, 16]
    assert described["settings"]["num_points"] == 3
    assert described["num_positives_scored"] == 4
    scored = pd.read_parquet(folder / "evaluation/test/scores.parquet")
    rows = scored.query("method == 'LABN' and score == 'PID m=16'")
    assert scores.metrics["test_pid"] == pytest.approx(rows["value"].mean(), abs=1e-12)
    assert set(rows["num_points"]) == {3}


def test_a_plan_is_what_training_does(tmp_path, cache, train):
    folder = train()
    config = load_config(folder / "config.yaml")

    plan = plan_run(config, Reporter())

    state = checkpoint.load(folder / "checkpoints" / "step-00000008.pt")
    assert plan.schedule["num_steps"] == state["progress"]["global_step"]
    trainable = sum(
        value.numel()
        for name, value in state["model"].items()
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    )
    assert plan.parameters["total"] == trainable
    rates = history(folder)["learning_rate_head"].tolist()
    # The plan names the rate at an epoch's start, the history that at its end.
    assert plan.schedule["learning_rate_head_by_epoch"][1] == pytest.approx(rates[0])


class Progress(Reporter):
    """A record of what was reported as done, and of how much."""

    def __init__(self):
        self.reported = []

    def advance(self, task, done, total):
        self.reported.append((task, done, total))


def test_a_study_reports_epochs_and_scores_on_terms_of_its_own_say_so(tmp_path):
    path = write_study(
        tmp_path, 2, conditions={"full": {}, "no-kl": {"loss.lambda_kl": 0}}, seeds=[0],
        evaluate={"methods": ["random"], "points": 5, "patch_sizes": [8]},
    )  # fmt: skip
    progress = Progress()

    study = read_study(path, ["tracking.uri=none"])
    summary = run_study(study, progress, is_serial=True)

    epochs = [one for one in progress.reported if one[0].startswith("epochs")]
    assert epochs == [
        ("epochs, 0 of 2 runs ended, full/seed-0 0/2", 0, 4),
        ("epochs, 0 of 2 runs ended, full/seed-0 1/2", 1, 4),
        ("epochs, 0 of 2 runs ended, full/seed-0 2/2", 2, 4),
        ("epochs, 1 of 2 runs ended", 2, 4),
        ("epochs, 1 of 2 runs ended, no-kl/seed-0 0/2", 2, 4),
        ("epochs, 1 of 2 runs ended, no-kl/seed-0 1/2", 3, 4),
        ("epochs, 1 of 2 runs ended, no-kl/seed-0 2/2", 4, 4),
        ("epochs, 2 of 2 runs ended", 4, 4),
    ]
    assert all("test_points5_pid_random" in row for row in summary.means.values())
    assert (tmp_path / "study/full/seed-0/evaluation/test-points5/scores.parquet").is_file()
    assert "in 5 points" in (tmp_path / "study/report/report.md").read_text()
