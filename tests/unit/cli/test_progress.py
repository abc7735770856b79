from __future__ import annotations

import pytest

from labn.cli.progress import ConsoleReporter, starting

METRICS = {
    "train_loss": 2.3456, "val_loss": 2.3456, "val_accuracy": 0.5, "val_auroc": 0.5,
    "val_pid": -0.1234, "images_per_s": 29.13, "world_size": 2.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("time_s", "left"), [(0.4, "36 s"), (30.0, "45 min"), (300.0, "7.5 h"), (4000.0, "100.0 h")]
)
def test_an_epochs_line_fits_80_columns_and_has_the_time_left(capsys, time_s, left):
    with ConsoleReporter() as reporter:
        reporter.epoch(METRICS | {"epoch": 110}, 200, time_s)
        reporter.epoch(METRICS | {"epoch": 111}, 200, time_s)

    speed, first, second = capsys.readouterr().err.splitlines()
    assert speed.startswith("2 workers, training at 29.1 images/s, ")
    assert first.startswith("epoch 110/200 loss 2.346 val 2.346 acc 0.500 AUROC 0.500 PID -0.123")
    assert first.endswith(f" {left} left")
    assert second.startswith("epoch 111/200 ")
    assert max(len(speed), len(first), len(second)) <= 80


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_shows_that_a_command_has_begun_and_keeps_nothing_of_it(
    capsys, monkeypatch, is_terminal
):
    monkeypatch.setenv("FORCE_COLOR" if is_terminal else "NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")

    with starting():
        pass

    shown = capsys.readouterr().err
    assert ("starting" in shown) == is_terminal
    erase_line = "\x1b[2K"
    assert not is_terminal or shown.rstrip().endswith(erase_line)
