"""`labn search`: real Ray, real trials, real kills; nothing lost, nothing done twice."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import optuna
import psutil
import pytest
import yaml
from command_line import ENVIRONMENT, SMALL, wait_for
from optuna.trial import TrialState

from labn.config import load_config, load_search
from labn.errors import UserError
from labn.search.driver import run_search
from labn.search.space import Space
from labn.search.study import Outcome, Study

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PATIENCE_S = 180
NUM_EPOCHS = 4


def write_search(folder, **changes):
    """Write a search of small trials; its file, store, cache and folders lie in one place."""
    base = SMALL | {
        "data": SMALL["data"] | {"cache_dir": str(folder / "cache")},
        "train": SMALL["train"] | {"epochs": NUM_EPOCHS, "early_stopping_patience": None},
        "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}"},
    }
    tree = {
        "base": base,
        "space": {
            "model.theta_alpha": {"type": "float", "low": 0.1, "high": 0.9},
            "loss.theta_b": {"type": "float", "low": 0.1, "high": 0.9},
        },
        "trials": 4,
        "sampler": {"name": "random"},
        # Halves of a CPU, so that two trials run at once wherever the tests run.
        "trial": {"cpus": 0.5, "max_concurrent": 2},
        "pruning": {"grace_epochs": 2, "reduction": 2},
        "output_dir": str(folder / "search"),
    }
    for key, value in changes.items():
        section, _, leaf = key.partition("__")
        if leaf:
            tree[section] = tree.get(section, {}) | {leaf.replace("__", "."): value}
        else:
            tree[section] = value
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


class Silent:
    def say(self, text):
        pass

    def show(self, board):
        pass


def start_search(path, *overrides, script=None, cwd=None):
    command = [sys.executable, "-m", "labn", "search", str(path)]
    if script is not None:
        command = [sys.executable, str(script), "--config", str(path)]
    return subprocess.Popen(
        [*command, *overrides], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=ENVIRONMENT, cwd=cwd,
    )  # fmt: skip


def end(process, code=0):
    printed, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, said
    return printed, said


def trials_of(folder):
    url = f"sqlite:///{folder}/search/study.db"
    return optuna.load_study(study_name="search", storage=url).trials


def epochs_done(folder, number):
    """Read how many epochs a trial has on disk."""
    place = folder / "search" / "trials" / str(number) / "history.csv"
    if not place.is_file():
        return 0
    with place.open() as file:
        return len(list(csv.DictReader(file)))


def trial_processes(process):
    """List the processes that train a trial, by the lock on its folder."""
    found = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            for file in child.open_files():
                place = Path(file.path)
                if place.name == ".lock" and place.parent.parent.name == "trials":
                    found[int(place.parent.name)] = child
        except psutil.NoSuchProcess:
            continue
    return found


def runs_in(folder):
    """Read the tracker's runs: by name, the status, tags and epochs logged."""
    with sqlite3.connect(folder / "mlflow.db") as store:
        runs = store.execute("select run_uuid, name, status from runs").fetchall()
        tags = store.execute("select run_uuid, key, value from tags").fetchall()
    return {
        name: {"status": status, "id": run_id} | {k: v for i, k, v in tags if i == run_id}
        for run_id, name, status in runs
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A search by a copy of search.py alone, started in a folder where nothing else is."""
    folder, elsewhere = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("elsewhere")
    script = Path(shutil.copy(ROOT / "tune" / "search.py", elsewhere / "search.py"))
    # One at a time, so that it is always the same trials that are pruned.
    path = write_search(
        folder, trial={"max_concurrent": 1}, pruning={"grace_epochs": 2, "reduction": 4}
    )
    process = start_search(path, script=script, cwd=elsewhere)
    printed, said = end(process)
    return folder, printed, said


def test_a_copied_script_searches_to_the_end(whole):
    folder, printed, said = whole
    trials = trials_of(folder)

    assert len(trials) == 4
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert trials[0].params == {"model.theta_alpha": 0.25, "loss.theta_b": 0.2}
    best = max((t for t in trials if t.state == TrialState.COMPLETE), key=lambda t: t.value)
    assert f"best: trial {best.number}, val_pid {best.value:.4f}" in printed
    for trial in trials:
        assert f"trial {trial.number} started: model.theta_alpha=" in said
        finished = trial.state == TrialState.COMPLETE
        assert epochs_done(folder, trial.number) == max(trial.intermediate_values)
        assert (max(trial.intermediate_values) == NUM_EPOCHS) == finished
        summary = folder / "search/trials" / str(trial.number) / "summary.json"
        assert summary.is_file() == finished
        if finished:
            assert json.loads(summary.read_text())["metrics"]["val_pid"] == trial.value


def test_the_tracker_has_the_search_and_a_child_a_trial(whole):
    folder, _, _ = whole
    runs = runs_in(folder)

    assert len(runs) == 5
    assert runs["search"]["status"] == "FINISHED"
    for trial in trials_of(folder):
        run = runs[f"search-{trial.number}"]
        assert run["mlflow.parentRunId"] == runs["search"]["id"]
        pruned = trial.state == TrialState.PRUNED
        assert run["trial_state"] == ("pruned" if pruned else "finished")
        assert run["status"] == ("KILLED" if pruned else "FINISHED")
        assert Path(run["checkpoint"]).is_file()


def test_what_a_search_leaves_behind(whole, labn):
    folder, _, _ = whole
    place = folder / "search"
    figures = {path.stem for path in (place / "figures").iterdir()}
    assert {"history", "parallel", "slice", "contour", "timeline", "epochs"} <= figures
    with sqlite3.connect(folder / "mlflow.db") as store:
        ((root,),) = store.execute("select artifact_uri from runs where name = 'search'").fetchall()
    logged = {path.stem for path in Path(root.removeprefix("file://"), "figures").iterdir()}
    assert logged == figures
    exported = json.loads(labn("search", "export", place).stdout)
    assert exported == json.loads((place / "summary.json").read_text())
    assert [row["number"] for row in exported["trials"]] == [0, 1, 2, 3]
    table = labn("search", "export", place, "--to", "markdown").stdout
    assert table.rstrip() == (place / "summary.md").read_text().rstrip()
    best = load_config(place / "best.yaml")
    row = exported["trials"][exported["best"]]
    assert best.model.theta_alpha == row["point"]["model.theta_alpha"]
    assert labn("train", place / "best.yaml", "--dry-run").returncode == 0


def test_a_finished_search_does_nothing_more_unless_it_is_given_more(whole):
    folder, printed, _ = whole
    before = trials_of(folder)

    again, said = end(start_search(folder / "search.yaml"))

    assert "4 of 4 trials are done already" in said
    assert again == printed
    assert trials_of(folder) == before


def test_a_killed_search_goes_on_where_it_was(tmp_path):
    """Without pruning, so that it must end as an undisturbed one."""
    path = write_search(tmp_path, pruning=None)
    process = start_search(path)
    # One trial is done, another amid its epochs.
    wait_for(
        lambda: (
            (tmp_path / "search/trials/0/summary.json").is_file()
            and any(0 < epochs_done(tmp_path, n) < NUM_EPOCHS for n in (1, 2, 3))
        ),
        process,
    )
    with pytest.raises(UserError, match="another process runs this search"):
        run_search(load_search(path), path, Silent())
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    before = trials_of(tmp_path)
    amid = [t.number for t in before if t.state == TrialState.RUNNING]
    assert amid
    done_before = {n: epochs_done(tmp_path, n) for n in amid}

    _, said = end(start_search(path))

    after = trials_of(tmp_path)
    assert [t.state for t in after] == [TrialState.COMPLETE] * 4
    assert len({tuple(t.params.items()) for t in after}) == 4
    for old, new in zip(before, after, strict=False):
        assert new.params == old.params
        if old.state == TrialState.COMPLETE:
            assert new == old
            assert f"trial {old.number} " not in said
    for number in amid:
        assert f"trial {number} goes on" in said
        assert done_before[number] <= epochs_done(tmp_path, number) == NUM_EPOCHS
        assert sorted(after[number].intermediate_values) == list(range(1, NUM_EPOCHS + 1))
    runs = runs_in(tmp_path)
    assert sorted(runs) == ["search", *(f"search-{n}" for n in range(4))]
    assert {run["status"] for run in runs.values()} == {"FINISHED"}


def test_a_search_that_is_asked_to_stop_saves_and_says_so(tmp_path):
    path = write_search(tmp_path, pruning=None, trials=2)
    process = start_search(path, "train.epochs=60")
    wait_for(lambda: epochs_done(tmp_path, 0) >= 1, process)

    process.send_signal(signal.SIGTERM)

    _, said = end(process, code=1)
    assert "stopping: trials go on from their last checkpoints" in said
    assert "error: stopped as asked; the same command goes on from here" in said
    assert trials_of(tmp_path)[0].state == TrialState.RUNNING
    assert runs_in(tmp_path)["search-0"]["trial_state"] == "interrupted"


def test_a_trial_whose_process_is_killed_goes_on_in_another(tmp_path):
    path = write_search(tmp_path, pruning=None, trials=2)
    process = start_search(path)
    wait_for(lambda: epochs_done(tmp_path, 0) >= 1, process)
    killed = trial_processes(process)[0]

    killed.kill()

    _, said = end(process)
    assert "trial 0 lost its process; it goes on in another" in said
    trials = trials_of(tmp_path)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
    assert epochs_done(tmp_path, 0) == NUM_EPOCHS


def test_a_search_whose_cluster_is_killed_goes_on_in_another(tmp_path, monkeypatch):
    """What Ray keeps of a cluster on its head goes with it; the search does not."""
    monkeypatch.setitem(ENVIRONMENT, "RAY_gcs_rpc_server_reconnect_timeout_s", "5")
    path = write_search(tmp_path, pruning=None, trials=2)
    process = start_search(path, "train.epochs=20")
    wait_for(lambda: epochs_done(tmp_path, 0) >= 1, process)
    trainers = list(trial_processes(process).values())
    head = [
        child
        for child in psutil.Process(process.pid).children()
        if Path(child.exe()).name in ("gcs_server", "raylet")
    ]
    assert len(head) == 2

    for part in head:
        part.kill()

    process.communicate(timeout=PATIENCE_S)
    assert process.returncode
    assert not psutil.wait_procs(trainers, timeout=PATIENCE_S)[1]
    assert trials_of(tmp_path)[0].state == TrialState.RUNNING
    _, said = end(start_search(path, "train.epochs=20"))
    assert "trial 0 goes on" in said
    assert [trial.state for trial in trials_of(tmp_path)] == [TrialState.COMPLETE] * 2
    assert epochs_done(tmp_path, 0) == 20


def test_trials_that_fail_are_recorded_and_three_alike_end_the_search(tmp_path):
    """A learning rate of 1e30 leaves no number finite."""
    rates = {"type": "categorical", "choices": [1e-3, 1e30]}
    space = {"train.learning_rate_head": rates, "model.theta_alpha": {
        "type": "float", "low": 0.1, "high": 0.9}}  # fmt: skip
    first = [{"train.learning_rate_head": rate} for rate in (1e30, 1e-3)]
    wrong = [{"train.learning_rate_head": 1e30, "model.theta_alpha": x} for x in (0.3, 0.4, 0.5)]
    path = write_search(
        tmp_path, space=space, first=[*first, *wrong], trials=9, trial={"cpus": 0.5,
        "max_concurrent": 1},
    )  # fmt: skip

    _, said = end(start_search(path), code=1)

    assert "error: 3 trials in a row failed alike" in said
    trials = trials_of(tmp_path)
    states = [trial.state for trial in trials if trial.state != TrialState.WAITING]
    assert states == [TrialState.FAIL, TrialState.COMPLETE, *[TrialState.FAIL] * 3]
    assert "finite" in trials[0].user_attrs["reason"] or "nan" in trials[0].user_attrs["reason"]
    runs = runs_in(tmp_path)
    assert runs["search-0"]["trial_state"] == "failed"
    assert runs["search-0"]["status"] == runs["search"]["status"] == "FAILED"
    assert runs["search-1"]["status"] == "FINISHED"
    assert json.loads((tmp_path / "search/summary.json").read_text())["best"] == 1


def test_a_trial_may_be_several_seeds_patch_sizes_and_objectives(tmp_path):
    objective = {"maximise": ["val_pid", "val_auroc"], "patch_sizes": [4, 8]}
    trial = {"cpus": 0.5, "max_concurrent": 2, "seeds": 2}
    path = write_search(tmp_path, trials=2, pruning=None, objective=objective, trial=trial)

    end(start_search(path, "train.epochs=2"))

    summary = json.loads((tmp_path / "search/summary.json").read_text())
    assert summary["front"]
    assert (tmp_path / "search/figures/pareto.png").is_file()
    for row in summary["trials"]:
        metrics = row["metrics"]
        means = (metrics["val_pid_m4"] + metrics["val_pid_m8"]) / 2
        assert metrics["val_pid"] == pytest.approx(means, abs=1e-12)
        seeds = [json.loads((Path(row["folder"]) / f"seed-{n}/summary.json").read_text())
                 for n in (0, 1)]  # fmt: skip
        aurocs = [seed["metrics"]["val_auroc"] for seed in seeds]
        assert metrics["val_auroc"] == pytest.approx(sum(aurocs) / 2)
        assert row["spread"]["val_auroc"] == pytest.approx(abs(aurocs[0] - aurocs[1]) / 2**0.5)


def test_the_best_is_trained_again_and_tested_against_the_base(tmp_path, labn):
    """The search itself is over: its one trial is written by hand."""
    path = write_search(tmp_path, trials=1, first=[{"model.theta_alpha": 0.6}], trial__cpus=0.5)
    search = load_search(path)
    study = Study(search, Space(search, path))
    number, _ = study.next()
    study.conclude(number, Outcome(state="finished", metrics={"val_pid": 0.99}))
    command = ("search", path, "--retrain-best", 1, "--seeds", 2, "--json")

    done = labn(*command)

    assert done.returncode == 0, done.stderr
    retrained = json.loads(done.stdout)["retrained"]
    assert retrained["winner"] == "trial-0"
    pid, configs = {}, {}
    for name in ("base", "trial-0"):
        # Seed 0 is the search's.
        for seed in (1, 2):
            folder = tmp_path / f"search/retrained/{name}/seed-{seed}"
            config = configs[name] = load_config(folder / "config.yaml")
            assert config.train.seed == seed
            ended = json.loads((folder / "outcome.json").read_text())
            pid[name, seed] = ended["metrics"]["test_pid"]
    assert configs["base"].model.theta_alpha == search.base["model"].get("theta_alpha", 0.75)
    assert configs["trial-0"].model.theta_alpha == 0.6
    difference = sum(pid["trial-0", n] - pid["base", n] for n in (1, 2)) / 2
    assert retrained["test"]["difference"] == pytest.approx(difference, abs=1e-9)
    assert f"{difference:+.3f}" in retrained["verdict"]
    again = labn(*command)
    assert "4 of 4 runs are finished already" in again.stderr
    assert json.loads(again.stdout)["retrained"]["test"] == retrained["test"]


def test_trials_of_several_workers_share_what_room_there_is(tmp_path):
    """Five workers fit, three trials want six; each is stopped, and leaves its room to the next.

    What stops them is a trial of an earlier process that scored better than any can. Workers train
    on while that is decided, so there are many more epochs than fit in between.
    """
    num_epochs = 60
    longer = f"train.epochs={num_epochs}"
    path = write_search(
        tmp_path, trials=4, trial={"cpus": os.cpu_count() / 5, "workers": 2},
        pruning={"grace_epochs": 1, "reduction": 2},
    )  # fmt: skip
    search = load_search(path, [longer])
    study = Study(search, Space(search, path))
    number, _ = study.next()
    for epoch in range(1, num_epochs + 1):
        study.record_epoch(number, {"epoch": epoch, "val_pid": 0.99})
    study.conclude(number, Outcome(state="finished", metrics={"val_pid": 0.99}))

    _, said = end(start_search(path, longer))

    trials = trials_of(tmp_path)
    assert [t.state for t in trials] == [TrialState.COMPLETE, *[TrialState.PRUNED] * 3], said
    assert all(max(t.intermediate_values) < num_epochs for t in trials[1:])
    assert "lost" not in said
