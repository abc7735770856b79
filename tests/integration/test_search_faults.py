"""`labn search` under faults: real Ray, real kills; nothing lost, nothing done twice."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
from command_line import ENVIRONMENT, wait_for
from optuna.trial import TrialState
from searches import (
    NUM_EPOCHS,
    PATIENCE_S,
    Silent,
    end,
    epochs_done,
    runs_in,
    start_search,
    trial_processes,
    trials_of,
    write_search,
)

from labn.config import load_search
from labn.errors import UserError
from labn.sweeps.search.optuna_study import SearchStudy
from labn.sweeps.search.search_driver import run_search
from labn.sweeps.search.space import Space
from labn.sweeps.worker import Outcome

pytestmark = pytest.mark.slow


def test_a_killed_search_resumes_where_it_was(tmp_path):
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

    _, messages = end(start_search(path))

    after = trials_of(tmp_path)
    assert [t.state for t in after] == [TrialState.COMPLETE] * 4
    assert len({tuple(t.params.items()) for t in after}) == 4
    for old, new in zip(before, after, strict=False):
        assert new.params == old.params
        if old.state == TrialState.COMPLETE:
            assert new == old
            assert f"trial {old.number} " not in messages
    for number in amid:
        assert f"trial {number} resumed" in messages
        assert done_before[number] <= epochs_done(tmp_path, number) == NUM_EPOCHS
        assert sorted(after[number].intermediate_values) == list(range(1, NUM_EPOCHS + 1))
    runs = runs_in(tmp_path)
    assert sorted(runs) == ["search", *(f"search-{n}" for n in range(4))]
    assert {run["status"] for run in runs.values()} == {"FINISHED"}


def test_a_search_that_is_asked_to_stop_saves_and_reports_it(tmp_path):
    path = write_search(tmp_path, pruning=None, trials=2)
    process = start_search(path, "train.epochs=60")
    wait_for(lambda: epochs_done(tmp_path, 0) >= 1, process)

    process.send_signal(signal.SIGTERM)

    _, messages = end(process, code=1)
    assert "stopping: trials resume from their last checkpoints" in messages
    assert "error: stopped as asked; run the same command again to resume" in messages
    assert trials_of(tmp_path)[0].state == TrialState.RUNNING
    assert runs_in(tmp_path)["search-0"]["trial_state"] == "interrupted"


def test_a_trial_whose_process_is_killed_resumes_in_another(tmp_path):
    path = write_search(tmp_path, pruning=None, trials=2)
    process = start_search(path)
    wait_for(lambda: epochs_done(tmp_path, 0) >= 1, process)
    killed = trial_processes(process)[0]

    killed.kill()

    _, messages = end(process)
    assert "trial 0 lost its process; resuming in another" in messages
    trials = trials_of(tmp_path)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
    assert epochs_done(tmp_path, 0) == NUM_EPOCHS


def test_a_search_whose_cluster_is_killed_resumes_in_another(tmp_path, monkeypatch):
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
    _, messages = end(start_search(path, "train.epochs=20"))
    assert "trial 0 resumed" in messages
    assert [trial.state for trial in trials_of(tmp_path)] == [TrialState.COMPLETE] * 2
    assert epochs_done(tmp_path, 0) == 20


def test_trials_of_several_workers_share_the_capacity(tmp_path):
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
    study = SearchStudy(search, Space(search, path))
    number, _ = study.next()
    for epoch in range(1, num_epochs + 1):
        study.record_epoch(number, {"epoch": epoch, "val_pid": 0.99})
    study.conclude(number, Outcome(state="finished", metrics={"val_pid": 0.99}))

    _, messages = end(start_search(path, longer))

    trials = trials_of(tmp_path)
    assert [t.state for t in trials] == [TrialState.COMPLETE, *[TrialState.PRUNED] * 3], messages
    assert all(max(t.intermediate_values) < num_epochs for t in trials[1:])
    assert "lost" not in messages
