"""The command line as users run it: real processes, small runs."""

from __future__ import annotations

import copy
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from bitwise import assert_same

from labn.cli import main
from labn.runs.folder import RunFolder
from labn.tracking import Spool
from labn.tracking.quiet import quiet

COMMAND = (sys.executable, "-m", "labn")
TIMEOUT_S = 500
# One thread: sums in another order round differently.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}
ENVIRONMENT.pop("FORCE_COLOR", None)

SMALL: dict[str, Any] = {
    "data": {"name": "synthetic", "image_size": 32, "synthetic": {"num_images": 40}},
    "model": {"backbone": "lambda_cnn", "split": 0, "theta_alpha": 0.25},
    "train": {"epochs": 2, "batch_size": 8, "warmup_epochs": 1},
    "validation": {"pid_patch_size": 8, "pid_num_points": 3},
    "tracking": {"uri": "none"},
}
"""Four steps per epoch, two epochs."""


def write_config(folder: Path, name: str = "config.yaml", **changes: Any) -> Path:
    """Write the small configuration, whose cache and run are in the same folder."""
    tree = copy.deepcopy(SMALL)
    tree["data"]["cache_dir"] = str(folder / "cache")
    tree["output_dir"] = str(folder / "run")
    for key, value in changes.items():
        place = tree
        *parents, leaf = key.split("__")
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = str(value) if hasattr(value, "joinpath") else value
    path = folder / name
    path.write_text(yaml.safe_dump(tree))
    return path


def run(
    *arguments: object, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT | environment,
        cwd=cwd,
        timeout=TIMEOUT_S,
    )


def run_here(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, which saves the import of torch."""
    words = ["labn", *map(str, arguments)]
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="") for _ in range(2))
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", words)
        patch.setenv("COLUMNS", "100")
        with pytest.raises(SystemExit) as ended:
            main()
    printed, messages = (_text_of(stream) for stream in (out, err))
    return subprocess.CompletedProcess(words, int(ended.value.code or 0), printed, messages)


def _text_of(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


def start(*arguments: object) -> subprocess.Popen[str]:
    """Start a command; its standard error is a pipe."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


def succeed(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command that must exit with 0."""
    done = run(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done


def wait_for(condition: Callable[[], object], process: subprocess.Popen[Any] | None = None) -> None:
    """Wait until a condition holds, while the process that should fulfil it is running."""
    while not condition():
        if process is not None and process.poll() is not None:
            printed = process.communicate()[1]
            pytest.fail(f"the process ended too early, with {process.returncode}: {printed}")
        time.sleep(0.002)


def assert_mistake(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Check that a command exited with 2 and one line, which contains all the parts."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line, line


def lose_end(folder: Path) -> Callable[[], tuple[str, bool]]:
    """Make a run's entry what it is after an outage of its tracker at the run's end.

    The status is missing, and a record, here of a tag, which is kept in the folder. The function
    returned reads from the tracker the status, and whether the record is there.
    """
    from mlflow import MlflowClient

    entry = json.loads((folder / "tracker.json").read_text())
    with quiet():
        client = MlflowClient(entry["uri"])
        client.update_run(entry["run_id"], status="RUNNING")
    kept, mark = Spool(RunFolder(folder).spool), str(time.time_ns())
    kept.append(entry["run_id"], "set_tags", {"tags": {"kept": mark}})
    kept.append(entry["run_id"], "finish", {"status": "FINISHED"})

    def read() -> tuple[str, bool]:
        run = client.get_run(entry["run_id"])
        return run.info.status, run.data.tags.get("kept") == mark

    assert read() == ("RUNNING", False)
    return read


def assert_same_run(one: Path, other: Path) -> None:
    """Compare the folders of two runs, except for times and paths, bit by bit."""
    for name in ("history.csv", "data.csv", "evaluation/validation/images.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    name = "evaluation/validation/metrics.json"
    assert json.loads((one / name).read_text()) == json.loads((other / name).read_text())
    names = sorted(path.name for path in (other / "checkpoints").iterdir())
    assert sorted(path.name for path in (one / "checkpoints").iterdir()) == names
    for name in names:
        mine, theirs = (torch.load(run / "checkpoints" / name) for run in (one, other))
        for content in (mine, theirs):
            content["config"].pop("output_dir")
            content["config"]["data"].pop("cache_dir")
        assert_same(mine, theirs, name)
