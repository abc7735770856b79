"""A cluster of two machines, by cluster/onprem.yaml and Ray's launcher; one is lost in mid-search.

The machines are namespaces of this one: see ``machines``. Of the cluster's file only the hosts and
the key are changed.
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import yaml
from command_line import SMALL
from machines import give_python, network, why_not

ROOT = Path(__file__).parents[2]
FILE = "cluster/onprem.yaml"
NUM_TRIALS, NUM_EPOCHS = 3, 6
PATIENCE_S = 300

_obstacle = why_not()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(_obstacle is not None, reason=f"a cluster of namespaces {_obstacle}"),
]


def lay_out_project(folder):
    """Copy what a user commands a cluster from, with the project's wheel."""
    for name in ("cluster", "configs", "tune"):
        shutil.copytree(ROOT / name, folder / name)
    source = folder / "source"
    shutil.copytree(ROOT / "labn", source / "labn", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--disable-pip-version-check", "--wheel-dir", folder / "dist", source],
        check=True,
    )  # fmt: skip


def write_search(folder):
    """Write a search of trials that are two processes each, on a node each where there are two."""
    data = {key: value for key, value in SMALL["data"].items() if key != "cache_dir"}
    tree = {
        "base": {
            key: value for key, value in SMALL.items() if key not in ("data", "train", "tracking")
        }
        | {"data": data}
        | {"train": SMALL["train"] | {"epochs": NUM_EPOCHS, "early_stopping_patience": None}},
        "space": {"model.theta_alpha": {"type": "float", "low": 0.1, "high": 0.9}},
        "trials": NUM_TRIALS,
        "sampler": {"name": "random"},
        "pruning": None,
        "trial": {"workers": 2, "cpus": 1, "placement": "spread"},
        "output_dir": "/mnt/labn/runs/search",
    }
    (folder / "configs/search/small.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))


def fill_in(folder, head, worker, key):
    """Set what the file says must be set: the hosts and the key."""
    place = folder / FILE
    text = place.read_text()
    for placeholder, value in (
        ("CHANGE_ME_HEAD", head.address),
        ("CHANGE_ME_WORKER", worker.address),
        ("CHANGE_ME_USER", "root"),
        ("CHANGE_ME_KEY", str(key)),
    ):
        assert text.count(placeholder) == 1
        text = text.replace(placeholder, value)
    place.write_text(text)


def epochs_done(shared):
    """Count the epochs on disk of each trial."""
    counts = {}
    for place in (shared / "runs/search/trials").glob("*/history.csv"):
        with place.open() as file:
            counts[int(place.parent.name)] = len(list(csv.DictReader(file)))
    return counts


def workers_on(machine):
    """List the processes that train on a machine."""
    found = []
    for process in machine.processes():
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process.pid)
        except psutil.NoSuchProcess:
            continue
    return found


def wait_for(condition, what, process=None, log=None, patience_s=PATIENCE_S):
    end_s = time.monotonic() + patience_s
    while not (found := condition()):
        said = Path(log).read_text()[-4000:] if log else ""
        assert process is None or process.poll() is None, f"ended before {what}: {said}"
        assert time.monotonic() < end_s, f"waited in vain for {what}: {said}"
        time.sleep(0.2)
    return found


@dataclass
class Play:
    """What was seen."""

    shared: Path
    up: subprocess.CompletedProcess = None
    spread: dict = field(default_factory=dict)
    epochs_at_loss: dict = field(default_factory=dict)
    code: int = None
    said: str = ""
    tracked: dict = field(default_factory=dict)
    down: subprocess.CompletedProcess = None
    left: list = field(default_factory=list)
    times_s: dict = field(default_factory=dict)


def runs_of(net, head):
    """Ask the tracker on the head, from another machine, for all runs of the experiment."""
    script = (
        "import json, sys, urllib.request\n"
        "base = sys.argv[1] + '/api/2.0/mlflow/'\n"
        "def ask(path, body):\n"
        "    request = urllib.request.Request(base + path, json.dumps(body).encode(),"
        " {'Content-Type': 'application/json'})\n"
        "    return json.load(urllib.request.urlopen(request, timeout=30))\n"
        "found = ask('experiments/search', {'max_results': 10})['experiments']\n"
        "ids = [one['experiment_id'] for one in found]\n"
        "print(json.dumps(ask('runs/search', {'experiment_ids': ids, 'max_results': 100})))\n"
    )
    done = net.run(sys.executable, "-c", script, f"http://{head.address}:5000")
    assert done.returncode == 0, done.stderr
    runs = json.loads(done.stdout)["runs"]
    return {
        run["info"]["run_name"]: {
            "id": run["info"]["run_id"],
            "status": run["info"]["status"],
            "tags": {tag["key"]: tag["value"] for tag in run["data"]["tags"]},
            "metrics": {metric["key"] for metric in run["data"].get("metrics", [])},
        }
        for run in runs
    }


@pytest.fixture(scope="module")
def play(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    shared = folder / "mnt/labn"
    shared.mkdir(parents=True)
    lay_out_project(folder)
    write_search(folder)
    seen = Play(shared)
    with network(folder, shared.parent, ("head", "worker")) as net:
        head, worker = net.machines["head"], net.machines["worker"]
        for machine in (head, worker):
            give_python(machine)
        fill_in(folder, head, worker, net.key)
        net.run("ray", "get-auth-token", "--generate")
        start_s = time.monotonic()

        def mark(name):
            seen.times_s[name] = round(time.monotonic() - start_s)

        seen.up = net.run("ray", "up", "--yes", FILE)
        mark("up")
        assert seen.up.returncode == 0, seen.up.stdout[-4000:] + seen.up.stderr[-4000:]
        log = folder / "submit.log"
        submit = net.start(
            "ray", "submit", FILE, "tune/search.py", "--",
            "--config", "labn/configs/search/small.yaml", "--address", "auto",
            log=log,
        )  # fmt: skip
        wait_for(
            lambda: workers_on(head) and workers_on(worker), "a trial on both nodes", submit, log
        )
        mark("spread")
        wait_for(
            lambda: any(2 <= n < NUM_EPOCHS for n in epochs_done(shared).values()),
            "a trial in its midst", submit, log,
        )  # fmt: skip
        seen.spread = {one.name: len(workers_on(one)) for one in (head, worker)}
        seen.epochs_at_loss = epochs_done(shared)
        worker.kill()
        mark("loss")
        wait_for(lambda: submit.poll() is not None, "the search's end", None, log)
        seen.code = submit.returncode
        mark("searched")
        seen.said = log.read_text()
        seen.tracked = runs_of(net, head)
        seen.down = net.run("ray", "down", "--yes", FILE)
        mark("down")
        end_s = time.monotonic() + 90
        while (left := head.processes()) and time.monotonic() < end_s:
            time.sleep(1)
        seen.left = [(one.pid, one.name()) for one in left]
        mark("empty")
    print(seen.times_s)
    return seen


def test_trials_spread_over_both_nodes(play):
    assert play.spread == {"head": 1, "worker": 1}


def test_the_search_finishes_after_a_node_is_lost(play):
    assert play.code == 0, play.said
    print(play.said)
    summary = json.loads((play.shared / "runs/search/summary.json").read_text())
    assert summary["counts"] == {"finished": NUM_TRIALS}
    assert epochs_done(play.shared) == dict.fromkeys(range(NUM_TRIALS), NUM_EPOCHS)


def test_the_tracker_on_the_head_holds_the_search_and_its_trials(play):
    assert sorted(play.tracked) == ["search", *(f"search-{n}" for n in range(NUM_TRIALS))]
    print(play.tracked)


def test_down_leaves_no_process(play):
    assert play.down.returncode == 0
    assert play.left == []
