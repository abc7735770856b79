"""A cluster of two machines, by cluster/onprem.yaml and Ray's launcher; one is lost in mid-search.

The machines are namespaces of this one: see ``machines``. Of the cluster's file only the hosts and
the key are changed.
"""

from __future__ import annotations

import contextlib
import csv
import json
import re
import shutil
import sqlite3
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
SEARCH = ("--config", "labn/configs/search/small.yaml", "--address", "auto")
LAUNCHER = re.compile(r"\d{4}-\d\d-\d\d |sending |sent |total size|Shared connection")
"""What Ray's launcher says itself, in an order that its buffers decide."""
BARE = "runs/search-cluster-embedded"
PATIENCE_S = 400

_obstacle = why_not()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
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
        "trial": {"workers": 2, "cpus": 1, "placement": "SPREAD"},
        "output_dir": "/mnt/labn/runs/search",
    }
    (folder / "configs/search/small.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    # What the default search builds on where there is no data.
    base = tree["base"] | {"output_dir": "runs/demo"}
    (folder / "configs/demo.yaml").write_text(yaml.safe_dump(base))


def fill_in(folder, head, worker, key):
    """Set the placeholders of the file: the hosts and the key."""
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


def wait_for(condition, what, process=None, log=None):
    while not (found := condition()):
        messages = Path(log).read_text()[-4000:] if log else ""
        assert process is None or process.poll() is None, f"ended before {what}: {messages}"
        time.sleep(0.2)
    return found


@dataclass
class Play:
    """What was seen."""

    shared: Path
    checked: subprocess.CompletedProcess = None
    refused: subprocess.CompletedProcess = None
    spread: dict = field(default_factory=dict)
    epochs_at_loss: dict = field(default_factory=dict)
    messages: dict = field(default_factory=dict)
    codes: dict = field(default_factory=dict)
    summaries: dict = field(default_factory=dict)
    epochs: dict = field(default_factory=dict)
    tracked: dict = field(default_factory=dict)
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


class Stage:
    """Plays the parts of the play on one network."""

    def __init__(self, net, seen):
        self.net, self.seen = net, seen
        self.start_s = time.monotonic()

    def mark(self, name):
        self.seen.times_s[name] = round(time.monotonic() - self.start_s)

    def labn(self, *arguments):
        command = (sys.executable, "-m", "labn", "cluster", *arguments)
        return self.net.run(*command, PYTHONPATH=str(ROOT))

    def submit(self, name, *arguments):
        log = self.net.folder / f"{name}.log"
        command = ("ray", "submit", FILE, "tune/search.py", *arguments)
        return self.net.start(*command, log=log), log

    def submit_bare(self):
        """Submit the script without a word, on both nodes."""
        search, log = self.submit("bare")
        wait_for(lambda: search.poll() is not None, "the bare search's end", None, log)
        self.seen.codes["bare"], self.seen.messages["bare"] = search.returncode, log.read_text()
        summary = self.seen.shared / BARE / "summary.json"
        self.seen.summaries["bare"] = json.loads(summary.read_text()) if summary.is_file() else {}
        self.mark("bare search done")

    def up(self):
        done = self.net.run("ray", "up", "--yes", FILE)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        self.mark("up")

    def refuse(self, head, worker):
        """Give data that one node alone has."""
        wait_for(lambda: has_joined(head, worker), "the worker to join")
        (head.folder / "ray/here-only").mkdir()
        self.seen.refused = self.labn(
            "submit", FILE, "tune/search.py", "--", *SEARCH, "data.root=/tmp/ray/here-only"
        )
        self.mark("refused")

    def lose_worker(self, head, worker):
        """Search on both nodes, and switch one off amid a trial."""
        search, log = self.submit("first", "--", *SEARCH)
        wait_for(lambda: workers_on(head) and workers_on(worker), "a trial on both", search, log)
        wait_for(lambda: self.amid() is not None, "a trial's midst", search, log)
        self.seen.spread = {one.name: len(workers_on(one)) for one in (head, worker)}
        self.seen.epochs_at_loss = epochs_done(self.seen.shared)
        worker.kill()
        self.mark("worker lost")
        self.end(search, log, "first")

    def lose_head(self, head):
        """Search on with one trial more, switch the head off amid it, and on again."""
        more = f"trials={NUM_TRIALS + 1}"
        search, log = self.submit("second", "--", *SEARCH, more)
        wait_for(lambda: self.amid() is not None, "a trial's midst", search, log)
        head.kill()
        self.mark("head lost")
        search.kill()
        search.wait(PATIENCE_S)
        head = self.net.boot("head", head.address)
        self.up()
        search, log = self.submit("third", "--", *SEARCH, more)
        self.end(search, log, "third")
        self.seen.tracked = runs_of(self.net, head)
        return head

    def down(self, head):
        done = self.labn("down", FILE)
        assert done.returncode == 0, done.stderr
        self.mark("down")
        wait_for(lambda: not names_on(head), "the head's processes to end")
        self.seen.left = names_on(head)
        self.mark("empty")

    def amid(self):
        """Name a trial that has epochs behind it and before it."""
        done = epochs_done(self.seen.shared)
        return next((n for n, count in done.items() if 1 <= count < NUM_EPOCHS - 1), None)

    def end(self, search, log, name):
        wait_for(lambda: search.poll() is not None, f"the {name} search's end", None, log)
        self.seen.codes[name] = search.returncode
        self.seen.messages[name] = log.read_text()
        summary = self.seen.shared / "runs/search/summary.json"
        self.seen.summaries[name] = json.loads(summary.read_text())
        self.seen.epochs[name] = epochs_done(self.seen.shared)
        self.mark(f"{name} search done")


def has_joined(head, worker):
    """Return whether the cluster counts the worker among its nodes; it has started before."""
    logs = (head.folder / "ray").glob("session_2*/logs/gcs_server.out")
    lines = [line for log in logs for line in log.read_text().splitlines()]
    return any("Registering new node" in one and worker.address in one for one in lines)


def names_on(machine):
    """List what runs on a machine, but for its ssh server."""
    names = []
    for process in machine.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            names.append(process.name())
    return names


@pytest.fixture(scope="module")
def play(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    seen = Play(folder / "mnt/labn")
    seen.shared.mkdir(parents=True)
    lay_out_project(folder)
    write_search(folder)
    with network(folder, seen.shared.parent, ("head", "worker")) as net:
        head, worker = net.machines["head"], net.machines["worker"]
        for machine in (head, worker):
            give_python(machine)
        fill_in(folder, head, worker, net.key)
        net.run("ray", "get-auth-token", "--generate")
        (net.client.home / ".ray/auth_token").chmod(0o600)
        stage = Stage(net, seen)
        seen.checked = stage.labn("check", FILE)
        stage.up()
        stage.refuse(head, worker)
        stage.submit_bare()
        stage.lose_worker(head, worker)
        head = stage.lose_head(head)
        stage.down(head)
    print(f"seconds since the start: {seen.times_s}")
    return seen


def test_the_file_passes_its_check(play):
    assert play.checked.returncode == 0, play.checked.stdout + play.checked.stderr
    assert "FAIL" not in play.checked.stdout


def test_a_search_does_not_start_where_a_node_lacks_the_data(play):
    assert play.refused.returncode != 0
    messages = play.refused.stdout + play.refused.stderr
    assert "error: data.root = /tmp/ray/here-only: node 10.213.77.3 does not see it" in messages
    assert "Traceback" not in messages


def test_the_bare_script_says_what_it_searches_on_which_data_and_where_results_go(play):
    assert play.codes["bare"] == 0, play.messages["bare"]
    every = [line.rstrip() for line in play.messages["bare"].splitlines()]
    lines = [line for line in every if line and not LAUNCHER.match(line)]
    print("\n".join([*lines[:10], "...", lines[-1]]))
    first = lines[:7]
    file = "/home/labn/configs/search/cluster.yaml, the default, since no --config is given"
    assert first[0].endswith(file)
    assert first[1:3] == [
        "data: the embedded set, since neither LABN_DATA nor data.root names a folder",
        f"results: /mnt/labn/{BARE}, with best.yaml, summary.md and figures",
    ]
    assert first[3].startswith("your own data: add data.root=FOLDER to the command")
    assert first[4:] == [
        "starting Ray: auto",
        "trial.gpus = 0: the cluster has no GPUs, so trials run on CPUs",
        "checking 2 nodes",
    ]
    counts = play.summaries["bare"]["counts"]
    assert sum(counts.values()) == 6
    assert counts["finished"] >= 1
    assert lines[-1] == f"browse: optuna-dashboard /mnt/labn/{BARE}/study.journal"


def test_the_workers_of_a_trial_are_on_a_node_each(play):
    assert play.spread["head"] >= 1
    assert play.spread["worker"] >= 1


def test_the_search_continues_to_its_end_after_a_node_is_lost(play):
    assert play.codes["first"] == 0, play.messages["first"]
    assert play.epochs_at_loss != play.epochs["first"]
    assert play.summaries["first"]["counts"] == {"finished": NUM_TRIALS}
    assert play.epochs["first"] == dict.fromkeys(range(NUM_TRIALS), NUM_EPOCHS)


def test_the_same_command_resumes_after_the_head_was_off(play):
    assert play.codes["third"] == 0, play.messages["third"]
    assert (
        f"{NUM_TRIALS} of {NUM_TRIALS + 1} trials are done already, 1 to resume"
        in (play.messages["third"])
    )
    assert play.summaries["third"]["counts"] == {"finished": NUM_TRIALS + 1}
    rows = play.summaries["third"]["trials"]
    assert rows[:NUM_TRIALS] == play.summaries["first"]["trials"]


def test_the_tracker_on_the_head_holds_the_search_and_its_trials(play):
    names = [f"search-{n}" for n in range(NUM_TRIALS + 1)]
    bare = [f"search-cluster-embedded{end}" for end in ("", *(f"-{n}" for n in range(6)))]
    assert sorted(play.tracked) == sorted(["search", *names, *bare])
    parent = play.tracked["search"]["id"]
    statuses = {name: play.tracked[name]["status"] for name in names}
    assert statuses == dict.fromkeys(names, "FINISHED"), (
        play.messages["first"] + play.messages["third"]
    )
    for name in names:
        run = play.tracked[name]
        assert run["tags"]["mlflow.parentRunId"] == parent
        assert {"val_pid", "val_loss"} <= run["metrics"]


def test_shared_storage_keeps_the_tracker_when_the_cluster_is_down(play):
    store = play.shared / "mlflow/mlflow.db"
    with contextlib.closing(sqlite3.connect(store)) as database:
        names = {name for (name,) in database.execute("select name from runs")}
    assert names == set(play.tracked)
    # Every trial has one of its training, the search one of its trials.
    figures = (play.shared / "mlflow/artifacts").rglob("history.png")
    assert any(play.tracked["search"]["id"] in figure.parts for figure in figures)


def test_down_leaves_no_process(play):
    assert play.left == []
