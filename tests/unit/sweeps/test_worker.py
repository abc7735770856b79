"""One run of a sweep: how it may end, and what is kept of that. Real runs: tests/integration."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
from filelock import FileLock

from labn.config import Config
from labn.config.ablation import EvaluateConfig
from labn.config.workers import Workers
from labn.errors import RunFailed, UserError
from labn.runs.reporter import Reporter
from labn.sweeps import worker
from labn.sweeps.worker import Outcome, Worker, describe_error
from labn.tracking import environment_tags

SCORING = EvaluateConfig(methods=("LABN",), patch_sizes=(4, 8))


@pytest.fixture
def config(tmp_path):
    return Config.model_validate(
        {"data": {"name": "synthetic"}, "tracking": {"uri": "none"}, "output_dir": tmp_path / "run"}
    )


@pytest.fixture
def calls(monkeypatch):
    """Replace training and scoring by records of their calls."""
    made = []

    def train_run(config, reporter, should_stop, *, take_over_s):
        made.append("train")
        return SimpleNamespace(metrics={"val_pid": 0.25})

    def evaluate_run(run, subset, overrides, reporter, choices):
        made.append((subset, choices["patch_sizes"]))
        reporter.advance("scoring", 1, 2)
        made.append("scored")
        return SimpleNamespace(metrics={"test_pid": 0.5})

    monkeypatch.setattr(worker, "train_run", train_run)
    monkeypatch.setattr(worker, "evaluate_run", evaluate_run)
    return made


def complete(config, evaluate=None, should_stop=lambda: False):
    return Worker(processes=Workers(num=1), evaluate=evaluate).complete(
        config, Reporter(), should_stop
    )


def test_a_run_that_is_not_scored_has_the_metrics_of_its_training(config, calls):
    outcome = complete(config)

    assert (outcome.state, outcome.metrics, outcome.terms) == ("finished", {"val_pid": 0.25}, {})
    assert calls == ["train"]


def test_a_run_that_is_scored_has_those_metrics_and_the_terms_they_were_taken_by(config, calls):
    outcome = complete(config, SCORING)

    assert (outcome.state, outcome.metrics) == ("finished", {"test_pid": 0.5})
    assert outcome.terms == SCORING.model_dump(mode="json")
    assert calls == ["train", ("test", (4, 8)), "scored"]


def test_a_run_is_tracked_under_the_command_of_its_sweep(config, calls, monkeypatch):
    """Ray's processes have command lines of their own."""
    command = ["labn", "search", "mine.yaml"]
    monkeypatch.setattr(sys, "argv", command)
    made = Worker(processes=Workers(num=1))
    monkeypatch.setattr(sys, "argv", ["default_worker.py", "--node-ip"])

    made.complete(config, Reporter(), lambda: False)

    assert environment_tags()["command"] == "labn search mine.yaml"


def test_scoring_ends_where_a_stop_is_asked_for(config, calls):
    outcome = complete(config, SCORING, should_stop=lambda: len(calls) > 1)

    assert outcome == Outcome(state="interrupted")
    assert calls == ["train", ("test", (4, 8))]


def test_a_run_that_is_to_stop_before_it_starts_trains_nothing(config, calls):
    assert complete(config, should_stop=lambda: True) == Outcome(state="interrupted")
    assert calls == []


def test_what_happens_to_a_run_is_its_outcome(config, calls, monkeypatch):
    def fail(*given, **settings):
        raise UserError("loss.class_weights = [1]: must have one weight\nper class")

    monkeypatch.setattr(worker, "train_run", fail)

    outcome = complete(config, SCORING)

    assert (outcome.state, outcome.kind, outcome.metrics) == ("failed", "UserError", {})
    assert outcome.reason == "loss.class_weights = [1]: must have one weight per class"


def test_two_processes_do_not_work_on_one_run(config, calls, monkeypatch):
    monkeypatch.setattr(worker, "TAKE_OVER_S", 0)
    config.output_dir.mkdir()

    with FileLock(config.output_dir / ".worker.lock"):
        outcome = complete(config)

    assert outcome.state == "failed"
    assert "another process works on this run" in outcome.reason
    assert calls == []


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RunFailed("two\nlines"), "two lines"),
        (ValueError("a  defect"), "ValueError: a defect"),
        (KeyError(), "KeyError: KeyError"),
        (OSError("http://me:secret@host/x: refused"), "OSError: http://host/x: refused"),
    ],
)
def test_an_error_is_one_line_without_passwords(error, text):
    assert describe_error(error) == text


def test_an_outcome_is_read_as_it_was_written(tmp_path):
    outcome = Outcome(state="failed", reason="why", kind="RunFailed", time_s=3.5)

    outcome.write(tmp_path)

    assert Outcome.read(tmp_path) == outcome
    assert Outcome.read(tmp_path / "elsewhere") is None


def test_an_outcome_of_the_first_release_is_read(tmp_path):
    content = {
        "state": "finished",
        "metrics": {"test_pid": 0.5},
        "reason": "",
        "time_s": 12.5,
        "terms": {"split": "test"},
    }
    (tmp_path / "outcome.json").write_text(json.dumps(content))

    outcome = Outcome.read(tmp_path)

    assert (outcome.state, outcome.time_s, outcome.kind) == ("finished", 12.5, "")
    assert outcome.terms == {"split": "test"}
