"""What a trial reports of its runs, whose training is replaced. Real ones: tests/integration."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest

from labn.config.ablation import EvaluateConfig
from labn.config.workers import Workers
from labn.errors import Interrupted, OutOfMemory
from labn.storage.files import write_json
from labn.sweeps import worker
from labn.sweeps.search import trial
from labn.sweeps.search.trial import NODE, OUTCOME, prune, run_trial
from labn.sweeps.worker import Outcome, Worker


@pytest.fixture
def report(tmp_path, monkeypatch):
    """Run a trial, given the scores of its runs' epochs; return what it reports of them."""

    def call(
        *runs,
        on_report=lambda number: None,
        evaluate=None,
        scored=None,
        train=None,
        num_processes=1,
    ):
        left, reports = list(runs), []

        def train_run(config, reporter, should_stop, *, take_over_s):
            for epoch, score in enumerate(left.pop(0), start=1):
                metrics = {"val_pid": score, "seed": float(config.train.seed)}
                reporter.epoch({"epoch": float(epoch), **metrics}, 9, 1.0)
                if should_stop():
                    raise Interrupted
            write_json(config.output_dir / "summary.json", {"metrics": metrics})
            return SimpleNamespace(metrics=metrics)

        def receive(metrics):
            if metrics == {NODE: "a node"}:
                return
            reports.append(metrics)
            on_report(len(reports))

        monkeypatch.setattr(worker, "train_run", train or train_run)
        monkeypatch.setattr(worker, "evaluate_run", lambda *_: SimpleNamespace(metrics=scored))
        monkeypatch.setattr(trial.tune, "report", receive)
        context = SimpleNamespace(get_node_id=lambda: "a node")
        monkeypatch.setattr(trial.ray, "get_runtime_context", lambda: context)
        configs = [
            {"data": {"name": "synthetic"}, "train": {"seed": seed}}
            | {"output_dir": str(tmp_path / f"seed-{seed}")}
            for seed in range(len(runs))
        ]
        given = {"folder": str(tmp_path), "configs": json.dumps(configs)}
        run_trial(
            given, Worker(processes=Workers(num=num_processes), evaluate=evaluate), ("val_pid",)
        )
        return [row["val_pid"] for row in reports[:-1]], Outcome(**reports[-1][OUTCOME])

    return call


def test_a_trial_reports_every_epoch_and_then_its_outcome(report):
    epochs, outcome = report([0.1, 0.3])

    assert epochs == [0.1, 0.3]
    assert outcome == Outcome(state="finished", metrics={"val_pid": 0.3, "seed": 0.0})


def test_a_trial_of_several_seeds_is_their_mean_of_which_the_first_is_reported(report):
    epochs, outcome = report([0.1, 0.2], [0.3, 0.4])

    assert epochs == [0.1, 0.2]
    assert outcome.metrics == pytest.approx({"val_pid": 0.3, "seed": 0.5})
    assert outcome.spread == pytest.approx({"val_pid": 0.02**0.5, "seed": 0.5**0.5})


def test_a_pruned_trial_ends_with_its_last_epoch_and_the_reason(report, tmp_path):
    def decide(number):
        if number == 2:
            prune(tmp_path, "not among the best")

    epochs, outcome = report([0.1, 0.2, 0.3], on_report=decide)

    assert epochs == [0.1, 0.2]
    assert (outcome.state, outcome.reason) == ("pruned", "not among the best")
    assert outcome.metrics["val_pid"] == 0.2


def test_a_trial_that_was_pruned_before_a_kill_trains_no_more(report, tmp_path):
    prune(tmp_path, "not among the best")

    assert report([0.1]) == ([], Outcome(state="pruned", reason="not among the best"))


def test_a_score_that_is_not_finite_fails_the_trial_at_once(report):
    epochs, outcome = report([0.1, math.nan, 0.3])

    assert epochs == [0.1]
    assert (outcome.state, outcome.kind) == ("failed", "RunFailed")
    assert outcome.reason == "val_pid of epoch 2 is nan"


def test_a_trial_that_fails_reports_why_without_passwords(report):
    def refuse(*given, **settings):
        raise OSError("https://me:secret@host/mlflow\nrefused it")

    _, outcome = report([0.1], train=refuse)

    assert (outcome.state, outcome.kind) == ("failed", "OSError")
    assert outcome.reason == "OSError: https://host/mlflow refused it"


def test_a_process_out_of_memory_ends_and_the_next_one_reports_why(report):
    def exhaust(*given, **settings):
        raise OutOfMemory("train.batch_size = 32 at data.image_size = 224: out of memory")

    with pytest.raises(OutOfMemory, match=r"train.batch_size = 32"):
        report([0.1], train=exhaust)

    epochs, outcome = report([0.1])

    assert epochs == []
    assert (outcome.state, outcome.kind) == ("failed", "OutOfMemory")
    assert outcome.reason == "train.batch_size = 32 at data.image_size = 224: out of memory"


def test_a_driver_whose_workers_ran_out_of_memory_need_not_end(report, monkeypatch):
    def exhaust(*given, **settings):
        raise OutOfMemory("train.batch_size = 32: out of memory")

    monkeypatch.setattr("labn.distributed.train_driver.train_distributed", exhaust)

    _, outcome = report([0.1], num_processes=2)

    assert outcome.is_out_of_memory


def test_pid_is_the_mean_over_the_patch_sizes_asked_for(report):
    evaluate = EvaluateConfig(split="validation", methods=("LABN",), patch_sizes=(4, 8))
    scored = {"val_pid_m4_LABN": 0.2, "val_pid_m8_LABN": 0.4, "val_pid": 0.2}

    _, outcome = report([0.1], evaluate=evaluate, scored=scored)

    assert outcome.metrics == {
        "val_pid_m4": 0.2, "val_pid_m8": 0.4, "val_pid": pytest.approx(0.3), "seed": 0.0
    }  # fmt: skip


def test_the_gain_over_the_centre_is_the_mean_over_the_patch_sizes(report):
    evaluate = EvaluateConfig(split="validation", methods=("LABN", "centre"), patch_sizes=(4, 8))
    scored = {"val_pid_m4_LABN": 0.2, "val_pid_m8_LABN": 0.4}
    scored |= {"val_pid_m4_matched_LABN": 0.3, "val_pid_m8_matched_LABN": 0.5}
    scored |= {"val_pid_m4_matched_centre": 0.2, "val_pid_m8_matched_centre": 0.1}

    _, outcome = report([0.1], evaluate=evaluate, scored=scored)

    assert outcome.metrics["val_pid_matched"] == pytest.approx(0.4)
    assert outcome.metrics["val_pid_over_centre"] == pytest.approx(0.25)
