"""No power loss leaves half a file under its name: whole commands, with their system calls."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from command_line import ENVIRONMENT, SMALL
from PIL import Image

pytestmark = pytest.mark.slow

RECORDER = Path(__file__).parents[1] / "power_loss.py"
STUDY = {
    "base": SMALL
    | {
        "train": SMALL["train"] | {"epochs": 1, "checkpoint_steps": 2},
        "data": SMALL["data"] | {"cache_dir": "cache"},
    },
    "conditions": {"full": {}, "no-kl": {"loss.lambda_kl": 0}},
    "seeds": [0],
    "evaluate": {"methods": ["labn", "random"]},
    "output_dir": "study",
}
RUN = "study/full/seed-0"
WRITTEN = [
    f"{RUN}/config.yaml", f"{RUN}/data.csv", f"{RUN}/history.csv", f"{RUN}/history.png",
    f"{RUN}/starts.json", f"{RUN}/summary.json", f"{RUN}/outcome.json",
    f"{RUN}/checkpoints/best.pt", f"{RUN}/checkpoints/step-00000002.pt",
    *(
        f"{RUN}/evaluation/test/{name}"
        for name in (
            "metrics.json", "images.csv", "scores.parquet", "curves.npz", "curves.png",
            "table2.md", "table2.tex", "table3.json", "table5.md", "confusion.png",
            "attention.png", "examples.png", "sanity.json", "sanity.png",
        )
    ),
    *(f"study/{name}" for name in ("study.yaml", "summary.json")),
    *(f"study/report/report.{kind}" for kind in ("html", "md", "tex", "json", "png")),
    *(f"out/x.png{kind}" for kind in (".attention.npy", ".attention.png", ".overlay.png")),
    "out/explanations.csv",
]  # fmt: skip
OTHERS = r"given/.*|.*\.lock"
"""What the test itself wrote, and locks, which hold nothing."""


def record(folder, *arguments):
    """Run a command that must succeed in a folder; give what was seen of it."""
    place = folder.with_suffix(".json")
    command = [sys.executable, RECORDER, place, folder, *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=ENVIRONMENT, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return json.loads(place.read_text())


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """A study of two runs with its report, a sanity check and explanations, as the disk saw it."""
    folder = tmp_path_factory.mktemp("power") / "work"
    (folder / "given/images").mkdir(parents=True)
    Image.fromarray(np.arange(48 * 48 * 3, dtype=np.uint8).reshape(48, 48, 3)).save(
        folder / "given/images/x.png"
    )
    (folder / "given/study.yaml").write_text(yaml.safe_dump(STUDY))
    records = [
        record(folder, "ablate", "given/study.yaml", "--serial"),
        record(folder, "sanity", RUN),
        record(folder, "explain", RUN, "given/images", "--out", "out"),
    ]
    whole = {key: [line for one in records for line in one[key]] for key in records[0]}
    placed = {Path(name) for name in whole["placed"]}
    in_place = [
        one for one in records[-1]["in_place"] if not placed & {Path(one), *Path(one).parents}
    ]
    return SimpleNamespace(**(whole | {"in_place": in_place}))


def test_whatever_takes_its_name_is_on_the_disk_in_full(seen):
    assert seen.faults == []


def test_every_rename_is_on_the_disk_too(seen):
    assert seen.placed
    assert seen.unkept == []


def test_no_file_is_written_under_its_own_name(seen):
    assert [name for name in seen.in_place if not re.fullmatch(OTHERS, name)] == []


@pytest.mark.parametrize("name", WRITTEN)
def test_each_file_of_a_run_and_a_study_takes_its_name_when_it_is_whole(seen, name):
    assert name in seen.placed
    assert not [line for line in seen.faults if line.startswith(f"{name} took")]
    assert name not in seen.unkept


@pytest.mark.parametrize("pattern", [r"cache/[0-9a-f]+", r"cache/[0-9a-f]+/statistics-\w+\.npz"])
def test_a_cache_and_its_statistics_take_their_names_when_they_are_whole(seen, pattern):
    assert [name for name in seen.placed if re.fullmatch(pattern, name)]
