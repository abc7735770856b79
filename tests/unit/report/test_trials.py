from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text

from labn.report.trial_parameters import (
    contour_figure,
    importances_figure,
    parallel_figure,
    slices_figure,
)
from labn.report.trials import (
    TrialRecord,
    epochs_figure,
    pareto_figure,
    timeline_figure,
    trial_history_figure,
)

IS_LOG = {"model.theta_alpha": False, "train.learning_rate_head": True, "model.branch": False}
START = datetime(2026, 1, 1, 12)


def make_trials(number=6):
    """Every third trial is finished, one violates the constraint, the others are pruned."""
    rng = np.random.default_rng(number)
    trials = []
    for n in range(number):
        is_finished = n % 3 == 0
        scores = {epoch: float(rng.uniform(0, 1)) for epoch in range(1, 9 if is_finished else 3)}
        trials.append(
            TrialRecord(
                number=n,
                state="finished" if is_finished else "pruned",
                parameters={
                    "model.theta_alpha": float(rng.uniform(0, 1)),
                    "train.learning_rate_head": float(10 ** rng.uniform(-4, -2)),
                    "model.branch": ["attention", "none"][n % 2],
                },
                score=scores[max(scores)],
                second_score=float(rng.uniform(0, 1)),
                epochs=scores,
                counted=5 if is_finished else None,
                is_feasible=n != 3,
                start=START + timedelta(minutes=n),
                end=START + timedelta(minutes=n + 2),
            )
        )
    return trials


FIGURES = {
    "history": lambda trials: trial_history_figure(trials, "val_pid"),
    "epochs": lambda trials: epochs_figure(trials, "val_pid"),
    "slices": lambda trials: slices_figure(trials, "val_pid", IS_LOG),
    "parallel": lambda trials: parallel_figure(trials, "val_pid", IS_LOG),
    "contour": lambda trials: contour_figure(
        trials, "val_pid", {"model.theta_alpha": False, "train.learning_rate_head": True}
    ),
    "importances": lambda trials: importances_figure(
        {name: 0.3 for name in IS_LOG}, "val_pid", len(trials)
    ),
    "timeline": timeline_figure,
    "pareto": lambda trials: pareto_figure(trials, ["val_pid", "val_auroc"], {0}),
}


@pytest.mark.parametrize("number", [1, 40])
@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_any_number_of_trials_is_drawn_with_no_text_over_another(draw, number):
    figure = draw(make_trials(number))
    figure.canvas.draw()
    boxes = {
        text: text.get_window_extent()
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and text.get_window_extent().width
    }
    # Ticks outside an axis' limits are made, and not shown.
    inside = [box for box in boxes.values() if figure.bbox.contains(*box.min)]
    assert len(inside) > 3
    shown = [text for axes in figure.axes for text in axes.texts]
    for place, one in enumerate(shown):
        assert not any(boxes[one].overlaps(boxes[other]) for other in shown[place + 1 :])


def test_the_epoch_that_counts_has_a_ring_and_pruned_trials_a_line():
    trials = make_trials()
    (axes,) = epochs_figure(trials, "val_pid").axes
    rings = [line for line in axes.lines if line.get_label() == "counted epoch"]
    assert [tuple(ring.get_xydata()[0]) for ring in rings] == [
        (5, trials[n].epochs[5]) for n in (0, 3)
    ]
    labels = [line.get_label() for line in axes.lines if line not in rings]
    assert labels[:2] == ["trial 0", "trial 1 (pruned)"]
    assert len(labels) == 6


def test_many_trials_have_each_its_own_colour():
    figure = epochs_figure(make_trials(40), "val_pid")
    lines = [line for line in figure.axes[0].lines if line.get_label().startswith("trial")]
    assert len({to_hex(line.get_color()) for line in lines}) == len(lines) == 40
    assert figure.axes[1].get_ylabel() == "trial"


@pytest.mark.parametrize(
    ("number", "words"),
    [(6, "too few to interpolate between: 2 finished"), (40, "between 14 finished")],
)
def test_the_contour_says_how_few_trials_it_is_drawn_from(number, words):
    figure = FIGURES["contour"](make_trials(number))
    assert words in figure.get_suptitle().replace("\n", " ")


def test_pruned_and_violating_trials_are_marked_and_raise_no_best_score():
    trials = make_trials()
    (axes,) = trial_history_figure(trials, "val_pid").axes
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines["pruned (last score)"].get_xdata()) == [1, 2, 4, 5]
    assert list(lines["constraint violated"].get_xdata()) == [3]
    assert set(lines["best so far"].get_ydata()) == {trials[0].score}


def test_the_values_of_a_parameter_are_named_at_the_ends_of_its_axis():
    trials = make_trials()
    axes = parallel_figure(trials, "val_pid", IS_LOG).axes[0]
    rates = [trial.parameters["train.learning_rate_head"] for trial in trials]
    texts = [text.get_text() for text in axes.texts]
    assert f"{min(rates):.3g}" in texts
    assert f"train.\nlearning_rate_head\n{max(rates):.3g}" in texts
    assert "model.\nbranch\nnone" in texts
