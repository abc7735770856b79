"""Make what release 0.1.0 leaves on disk: `python make.py`, with its checkout installed.

Everything is made below one folder, whose name stands in configurations and stores.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import yaml

import labn

PLACE = Path("/tmp/labn-0.1.0")
ARCHIVE = Path(__file__).with_name("made.tar.xz")
# As the installed `labn` does, whatever the path of this Python.
COMMAND = "import sys; sys.argv[0] = 'labn'; from labn.cli import main; main()"
LEFT_OUT = {".html", ".lock", ".png"}
"""Locks are empty, and nothing reads pictures and pages back."""
LAST_STEP = "step-00000012.pt"

BASE = {
    "data": {
        "name": "synthetic",
        "image_size": 24,
        "synthetic": {"num_images": 40},
        "cache_dir": str(PLACE / "cache"),
    },
    "model": {"backbone": "lambda_cnn", "split": 0, "theta_alpha": 0.25, "branch_width": 8},
    "train": {
        "epochs": 3,
        "batch_size": 8,
        "warmup_epochs": 1,
        "learning_rate_head": 3e-3,
        "learning_rate_backbone": 3e-3,
        "checkpoint_steps": 1,
        "keep_checkpoints": 1,
        "early_stopping_patience": None,
    },
    "validation": {"pid_patch_size": 8, "pid_num_points": 3},
    "tracking": {"uri": f"sqlite:///{PLACE}/mlflow.db", "log_model": False},
}
SEARCH = {
    "base": BASE,
    "space": {"model.theta_alpha": {"type": "float", "low": 0.1, "high": 0.9}},
    "trials": 2,
    "sampler": {"startup_trials": 2},
    "pruning": {"grace_epochs": 2, "reduction": 2},
    "trial": {"cpus": 0.5, "max_concurrent": 1},
}
STUDY = {
    "base": BASE,
    "conditions": {"full": {}, "no-kl": {"loss.lambda_kl": 0}},
    "seeds": [0],
    "evaluate": {"methods": ["LABN", "random"], "patch_sizes": [8]},
}


def write(name: str, tree: dict[str, object]) -> Path:
    """Write a configuration, whose output goes to the folder of the same name."""
    path = PLACE / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree | {"output_dir": str(PLACE / name)}, sort_keys=False))
    return path


def start(*words: object) -> subprocess.Popen[bytes]:
    """Start a command of the release."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, words)], env=environment, cwd=PLACE
    )


def finish(*words: object) -> None:
    """Run a command of the release to its end."""
    if code := start(*words).wait():
        sys.exit(f"{words} ended with {code}")


def kill_when(is_time: Callable[[], bool], *words: object) -> None:
    """Start a command of the release, and kill it in the middle."""
    process = start(*words)
    while not is_time():
        if process.poll() is not None:
            sys.exit(f"{words} ended too early")
        time.sleep(0.001)
    others = psutil.Process(process.pid).children(recursive=True)
    for one in (process, *others):
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    psutil.wait_procs(others)


def has_step(folder: Path, first: int, last: int) -> Callable[[], bool]:
    """Return a function that reports whether a run has a checkpoint of one of these steps."""
    names = [f"step-{step:08d}.pt" for step in range(first, last + 1)]
    return lambda: any((folder / "checkpoints" / name).is_file() for name in names)


def is_kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out what can be made again, and the owner's names."""
    path = Path(member.name)
    if {path.suffix, path.name} & LEFT_OUT or {"cache", "ray"} & set(path.parts):
        return None
    # A run that is finished is not trained on; one whole folder will do.
    if path.name == LAST_STEP and path.parts[0] != "run-finished":
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def main() -> None:
    """Make runs, studies, searches and their store; pack them."""
    PLACE.mkdir()
    shutil.copytree(Path(labn.__file__).parents[1] / "configs", PLACE / "configs")
    finish("train", write("run-finished", BASE))
    finish("evaluate", PLACE / "run-finished", "--methods", "LABN,random", "--patch-sizes", "8")
    in_mid_training = has_step(PLACE / "run-interrupted", 6, 7)
    kill_when(in_mid_training, "train", write("run-interrupted", BASE))

    finish("ablate", write("study-finished", STUDY), "--serial")
    in_mid_training = has_step(PLACE / "study-interrupted/no-kl/seed-0", 2, 3)
    kill_when(in_mid_training, "ablate", write("study-interrupted", STUDY), "--serial")

    finish("search", write("search-finished", SEARCH))
    in_mid_training = has_step(PLACE / "search-interrupted/trials/1", 2, 3)
    longer = SEARCH | {"trials": 3}
    kill_when(in_mid_training, "search", write("search-interrupted", longer))

    with tarfile.open(ARCHIVE, "w:xz", preset=9) as archive:
        for path in sorted(PLACE.rglob("*")):
            archive.add(path, path.relative_to(PLACE), recursive=False, filter=is_kept)


if __name__ == "__main__":
    main()
