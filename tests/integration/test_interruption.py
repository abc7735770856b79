"""A run that is killed, however and whenever, and given again ends as if nothing had happened."""

from __future__ import annotations

import json
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from command_line import (
    ENVIRONMENT,
    TIMEOUT_S,
    assert_same_run,
    start,
    succeed,
    wait_for,
    write_config,
)

pytestmark = pytest.mark.slow

SETTINGS = {
    "data__synthetic": {"num_images": 60},
    "data__split_seed": 5,
    "data__augment": {"rotation_deg": 10, "brightness": 0.1},
    "train__epochs": 4,
    "train__seed": 3,
    "train__batch_size": 4,
    "train__checkpoint_steps": 1,
    "train__learning_rate_backbone": 1e-3,
    "train__ema_decay": 0.9,
    "train__early_stopping_patience": None,
    "validation__pid_num_points": 9,
}
"""Ten steps an epoch, each with a checkpoint; every epoch is better than the one before.

This seed's network starts far from the data (loss 2.4), so that the loss falls by 0.05 and more an
epoch, whatever a processor's rounding is.
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    succeed("train", write_config(folder, **SETTINGS))
    assert pd.read_csv(folder / "run/history.csv")["val_loss"].is_monotonic_decreasing
    return folder / "run"


KILL_POINTS = [
    ("labn.data.cache:_write_manifest", "before", 1),  # the cache is half built
    ("labn.data.dataset:_statistics", "before", 1),  # it is whole
    ("labn.runs.folder:RunFolder.adopt", "before", 1),
    ("labn.runs.folder:RunFolder.adopt", "after", 1),  # no checkpoint yet
    ("torch:save", "within", 1),
    ("torch:save", "within", 4),
    ("labn.training.checkpoint:keep_newest", "before", 3),  # a checkpoint too many
    ("labn.training.loop:Trainer._validate", "before", 1),  # the epoch's last step is nowhere
    ("labn.training.evaluate:_PositiveScorer.score", "after", 1),  # within the validation
    ("torch:save", "within", 1),  # the best network, half written
    (
        "labn.runs.hooks:TrainingHooks.on_best",
        "after",
        1,
    ),  # it is of an epoch that is yet to end
    ("labn.runs.hooks:TrainingHooks.on_epoch", "after", 1),  # so is the history
    ("labn.runs.hooks:TrainingHooks.save", "after", 10),
    ("labn.runs.hooks:TrainingHooks.on_best", "after", 2),
    ("labn.runs.hooks:TrainingHooks.on_epoch", "after", 2),  # the last epoch
    ("labn.runs.hooks:SubsetEvaluation.complete", "before", 1),  # trained, not scored
    ("labn.runs.evaluation.evaluate_run:score_explanations", "after", 1),
    ("labn.runs.evaluation.evaluate_run:draw_confusion", "after", 1),
    ("labn.runs.hooks:write_json", "before", 1),  # all but the summary
]
"""Each attempt resumes where the one before it was killed."""


def test_a_kill_at_any_place_is_made_good_by_the_same_command(tmp_path, undisturbed):
    driver = Path(__file__).with_name("kill_points.py")
    config = write_config(tmp_path, **SETTINGS)

    done = subprocess.run(
        [sys.executable, driver, json.dumps(KILL_POINTS), "train", config],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=TIMEOUT_S,
    )

    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "run", undisturbed)


def line_of(process, beginning):
    """Read a command's lines up to one that begins so."""
    for line in process.stderr:
        if line.startswith(beginning):
            return line
    raise AssertionError(f"the process ended before it printed {beginning!r}")


def test_kills_at_any_time_are_made_good_by_the_same_command(tmp_path, undisturbed):
    config = write_config(tmp_path, **SETTINGS)
    folder = tmp_path / "run"
    checkpoints = folder / "checkpoints"
    random.seed(11)
    moments = [
        lambda process: wait_for((tmp_path / "cache").exists, process),
        lambda process: wait_for((checkpoints / "step-00000003.pt").exists, process),
        lambda process: line_of(process, "epoch   3/4"),
        lambda process: wait_for((folder / "evaluation").exists, process),
    ]
    for wait in moments:
        with start("train", config) as process:
            wait(process)
            time.sleep(random.uniform(0, 0.1))
            process.kill()
        assert process.returncode == -signal.SIGKILL
        assert not (folder / "summary.json").exists()

    succeed("train", config)

    assert_same_run(folder, undisturbed)


def test_a_stopped_run_prints_how_to_resume_and_ends_as_if_it_had_not_been(tmp_path, undisturbed):
    command = ["train", write_config(tmp_path, **SETTINGS)]
    folder = tmp_path / "run"
    for number, beginning in ((signal.SIGINT, "epoch   1/4"), (signal.SIGTERM, "epoch   2/4")):
        with start(*command) as process:
            line_of(process, beginning)
            process.send_signal(number)
            lines = process.stderr.read().splitlines()
        assert process.returncode == 1
        assert lines[0].startswith("stopping: this step is finished and saved first")
        assert lines[-1].startswith("error: stopped as asked; everything is saved: ")
        assert not [line for line in lines[1:-1] if not line.startswith("epoch ")]
        command = shlex.split(re.search("`labn (.*)`", lines[-1])[1])
        assert command == ["train", "--resume", str(folder)]
        assert not (folder / "summary.json").exists()

    succeed(*command)

    assert_same_run(folder, undisturbed)


def test_a_run_that_is_stopped_while_it_is_scored_keeps_the_scored_images(tmp_path):
    config = write_config(
        tmp_path, data__synthetic={"num_images": 100}, train__epochs=1,
        validation__pid_patch_size=2, validation__pid_num_points=257,
    )  # fmt: skip
    place = tmp_path / "run/evaluation/validation"
    with start("train", config) as process:
        wait_for(lambda: list(place.glob("parts-*/image-*.json")), process)
        process.send_signal(signal.SIGTERM)
        lines = process.stderr.read().splitlines()
    assert process.returncode == 1
    assert lines[-1].startswith("error: stopped as asked; everything is saved: ")
    assert not (place / "metrics.json").exists()
    num_kept = len(list(place.glob("parts-*/image-*.json")))
    assert num_kept >= 1

    done = succeed("train", config)

    assert f"resuming: {num_kept} of 8 images are scored already" in done.stderr


def test_a_second_signal_stops_at_once_and_a_kill_leaves_no_half_cache(tmp_path, labn):
    config = write_config(
        tmp_path, data__image_size=128, data__synthetic={"num_images": 150}, train__epochs=1
    )
    cache = tmp_path / "cache"

    def half_built():
        """Return when the cache in the making was last written to, if there is one."""
        try:
            return next(cache.glob("*.building/images.npy")).stat().st_mtime_ns
        except (StopIteration, FileNotFoundError):
            return None

    with start("train", config) as process:
        wait_for(half_built, process)
        process.kill()
    left_behind = half_built()
    assert left_behind

    with start("train", config) as process:
        wait_for(lambda: half_built() not in (None, left_behind), process)
        process.send_signal(signal.SIGINT)
        line_of(process, "stopping: ")
        process.send_signal(signal.SIGINT)
        lines = process.stderr.read().splitlines()
    assert process.returncode == 1
    assert lines == ["error: interrupted"]
    assert not any(path.is_dir() for path in cache.iterdir())

    assert labn("train", config, "--dry-run").returncode == 0
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1
