from __future__ import annotations

import io

import pytest
from rich.console import Console

from labn.cli.search_display import progress_table
from labn.errors import UserError
from labn.sweeps.search.status import SearchStatus, TrialStatus

PARAMETERS = {
    "model.theta_alpha": 0.2534,
    "loss.theta_b": 0.5,
    "loss.lambda_lab": 1.234567,
    "loss.lambda_kl": 0.1,
    "train.learning_rate_head": 0.00123,
}


def make_status(num_ended, num_running=2, best=0):
    status = SearchStatus(num_trials=50)
    for number in range(num_ended + num_running):
        trial = TrialStatus(number, PARAMETERS, 30, epoch=8)
        trial.metrics = {"val_pid": 0.5 - number / 100, "val_auroc": 0.912}
        if number < num_ended:
            trial.state = "pruned" if number % 2 else "finished"
            status.past[number] = trial
        else:
            status.running[number] = trial
    status.best = (best, {"val_pid": 0.5, "val_auroc": 0.912})
    return status


def lines_of(status, width=80, height=24):
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True,
                      color_system=None, soft_wrap=True)  # fmt: skip
    console.print(progress_table(status, width, height))
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_every_trial_has_one_line_with_its_scores_and_settings_are_cut_off_first(width):
    lines = lines_of(make_status(4), width)
    assert max(map(len, lines)) <= width
    for number, state in enumerate(["best so far", "pruned", "finished", "pruned", "running"]):
        (line,) = [line for line in lines if line.startswith(f"│ {number:>5} │")]
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        assert cells[:5] == [str(number), state, "8/30", f"{0.5 - number / 100:.3f}", "0.912"]
        whole = "theta_alpha=0.253 theta_b=0.5 lambda_lab=1.23 lambda_kl=0.1"
        shown = cells[5].rstrip("…")
        assert shown
        assert f"{whole} learning_rate_head=0.00123".startswith(shown)


def test_ended_trials_stay_and_of_many_the_latest_and_the_best():
    lines = lines_of(make_status(40), height=24)
    assert len(lines) <= 24
    numbers = [int(line.split("│")[1]) for line in lines if line.startswith("│")]
    assert numbers[0] == 0  # the best
    assert numbers[-3:] == [39, 40, 41]
    assert any("more have ended" in line for line in lines)


def test_several_nodes_and_the_most_important_settings_are_shown():
    status = make_status(4)
    status.running[4].node, status.running[5].node = "gpu-a", "gpu-b"
    status.importances = {f"loss.{name}": 0.4 - i / 20 for i, name in enumerate("abcdefg")}

    lines = lines_of(status, 80)

    assert max(map(len, lines)) <= 80
    assert sum("gpu-a" in line for line in lines) == 1
    assert any(
        line.strip() == "importance: a 0.40, b 0.35, c 0.30, d 0.25, e 0.20" for line in lines
    )


def test_a_status_is_read_by_another_process_as_it_was_written(tmp_path):
    status = make_status(12)
    status.num_ended_here = 12
    status.start_s -= 120

    status.write(tmp_path)
    read, age_s = SearchStatus.read(tmp_path)

    assert 0 <= age_s < 60
    assert read.left_s == pytest.approx(status.left_s, abs=60)
    assert read.best == status.best
    assert read.past == status.past
    assert read.running == status.running


def test_a_folder_without_a_status_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no status\.json"):
        SearchStatus.read(tmp_path)
    (tmp_path / "status.json").write_text('{"num_trials": 3}')
    with pytest.raises(UserError, match="holds no search that can be watched"):
        SearchStatus.read(tmp_path)
