"""`labn search`: real Ray, real trials."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from command_line import SMALL, lose_end
from optuna.trial import TrialState
from searches import (
    NUM_EPOCHS,
    end,
    epochs_done,
    runs_in,
    start_search,
    trials_of,
    write_search,
)

from labn.config import load_config, load_search
from labn.sweeps.search.optuna_study import SearchStudy
from labn.sweeps.search.space import Space
from labn.sweeps.worker import Outcome

ROOT = Path(__file__).parents[2]


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
    printed, messages = end(process)
    return folder, printed, messages


def test_a_copied_script_searches_to_the_end(whole):
    folder, printed, messages = whole
    trials = trials_of(folder)

    assert len(trials) == 4
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert trials[0].params == {"model.theta_alpha": 0.25, "loss.theta_b": 0.2}
    best = max((t for t in trials if t.state == TrialState.COMPLETE), key=lambda t: t.value)
    assert f"best: trial {best.number}, val_pid {best.value:.4f}" in printed
    for trial in trials:
        assert f"trial {trial.number} started" in messages
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
    assert "the highest of 4 trials with one seed each, so it is partly luck" in table
    best = load_config(place / "best.yaml")
    row = exported["trials"][exported["best"]]
    assert best.model.theta_alpha == row["point"]["model.theta_alpha"]
    assert labn("train", place / "best.yaml", "--dry-run").returncode == 0


def test_the_printed_command_opens_the_study_in_optunas_dashboard(whole):
    folder, printed, _ = whole
    program, storage = printed.splitlines()[-1].removeprefix("browse: ").split()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    beside_python = Path(sys.executable).with_name(program)
    with subprocess.Popen([beside_python, storage, "--port", str(port)]) as dashboard:
        try:
            studies = answer(f"http://127.0.0.1:{port}/api/studies", dashboard)["study_summaries"]
        finally:
            dashboard.terminate()

    assert [study["study_name"] for study in studies] == [study_name(folder)]


def answer(url, server):
    """Return what a server that is starting answers."""
    while server.poll() is None:
        try:
            with urlopen(url) as answered:
                return json.load(answered)
        except URLError:
            time.sleep(0.1)
    raise AssertionError(f"{server.args} ended")


def study_name(folder):
    return json.loads((folder / "search" / "search.json").read_text())["study"]


def test_a_search_is_watched_by_its_folder(whole, labn):
    folder, _, _ = whole

    done = labn("search", "--watch", folder / "search")
    status = json.loads(labn("search", "--watch", folder / "search", "--json").stdout)

    best = max(
        (t for t in trials_of(folder) if t.state == TrialState.COMPLETE), key=lambda t: t.value
    )
    assert done.returncode == 0
    assert done.stdout.startswith("4 of 4 trials: ")
    assert f"best trial {best.number}: val_pid {best.value:.3f}" in done.stdout
    assert status["has_ended"]
    assert sorted(map(int, status["past"])) == [0, 1, 2, 3]
    assert {trial["node"] for trial in status["past"].values()} == {socket.gethostname()}


def test_a_finished_search_does_nothing_more_unless_it_is_given_more(whole, labn):
    folder, printed, _ = whole
    before, entries = trials_of(folder), runs_in(folder)
    ends = {n: lose_end(folder / "search/trials" / str(n)) for n in range(len(before))}

    again = labn("search", folder / "search.yaml")

    assert again.returncode == 0, again.stderr
    assert "4 of 4 trials are done already" in again.stderr
    assert "starting Ray" not in again.stderr
    assert again.stdout == printed
    assert trials_of(folder) == before
    for number, read in ends.items():
        assert read() == (entries[f"search-{number}"]["status"], True)


def test_trials_that_fail_are_recorded_and_three_alike_end_the_search(tmp_path, labn, shared_ray):
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

    done = labn("search", path)

    assert done.returncode == 1, done.stderr
    assert "error: 3 trials in a row failed alike" in done.stderr
    trials = trials_of(tmp_path)
    states = [trial.state for trial in trials if trial.state != TrialState.WAITING]
    assert states == [TrialState.FAIL, TrialState.COMPLETE, *[TrialState.FAIL] * 3]
    assert "finite" in trials[0].user_attrs["reason"] or "nan" in trials[0].user_attrs["reason"]
    runs = runs_in(tmp_path)
    assert runs["search-0"]["trial_state"] == "failed"
    assert runs["search-0"]["status"] == runs["search"]["status"] == "FAILED"
    assert runs["search-1"]["status"] == "FINISHED"
    assert json.loads((tmp_path / "search/summary.json").read_text())["best"] == 1


def test_a_trial_may_be_several_seeds_patch_sizes_and_objectives(tmp_path, labn, shared_ray):
    objective = {"maximise": ["val_pid_over_centre", "val_auroc"], "patch_sizes": [4, 8]}
    trial = {"cpus": 0.5, "max_concurrent": 2, "seeds": 2}
    path = write_search(tmp_path, trials=2, pruning=None, objective=objective, trial=trial)

    done = labn("search", path, "train.epochs=1", "validation.pid_centre=true")

    assert done.returncode == 0, done.stderr
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


def test_the_best_is_trained_again_and_tested_against_the_base(tmp_path, labn, shared_ray):
    """The search itself is over: its one trial is written by hand."""
    path = write_search(
        tmp_path, trials=1, first=[{"model.theta_alpha": 0.6}], trial__cpus=1, pruning=None,
        base__train=SMALL["train"] | {"epochs": 1},
    )  # fmt: skip
    search = load_search(path)
    study = SearchStudy(search, Space(search, path))
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
