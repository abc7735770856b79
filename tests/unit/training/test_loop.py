"""The training loop on a network that trains in a second.

`PYTHONPATH=tests python tests/unit/training/test_loop.py` prints the golden loss curve again; after
a change that is meant to move the losses, write it to tests/golden/loss_curve.json.
"""

from __future__ import annotations

import copy
import json
import math
from functools import cache
from pathlib import Path

import pytest
import torch
from bitwise import assert_same
from small_run import (
    STEPS_PER_EPOCH,
    FixedBatches,
    Hooks,
    first_batch,
    make_batches,
    make_model,
    make_objective,
    make_settings,
    make_trainer,
)

from labn.errors import Interrupted, RunFailed
from labn.training import checkpoint
from labn.training.monitor import missed_floors

GOLDEN = Path(__file__).parents[2] / "golden" / "loss_curve.json"
NUM_STEPS = 2 * STEPS_PER_EPOCH


class PoisonedBatches:
    """The usual batches, but from one step on an image is not finite."""

    def __init__(self, epoch, step, value=math.nan):
        self.batches = make_batches(make_settings())
        self.epoch_hit, self.step_hit, self.value = epoch, step, value
        self.steps_per_epoch = self.batches.steps_per_epoch

    def epoch(self, epoch, start_step=0):
        for step, batch in enumerate(self.batches.epoch(epoch, start_step), start_step):
            if (epoch, step) >= (self.epoch_hit, self.step_hit):
                batch.images[1, 0, 3, 4] = self.value
            yield batch


def run(**changes):
    trainer = make_trainer(**changes)
    trainer.run()
    return trainer


# Learning.


def test_a_batch_can_be_overfitted():
    batches = FixedBatches(first_batch(8), steps_per_epoch=40)
    settings = {"learning_rate_head": 1e-2, "learning_rate_backbone": 1e-2, "warmup_epochs": 0}
    objective = make_objective()
    hooks = Hooks(objective, losses=[0.0])
    run(batches=batches, objective=objective, hooks=hooks, epochs=1, log_steps=1, **settings)

    assert hooks.step_losses[0] > 1
    assert hooks.step_losses[-1] < 0.05


def test_the_same_seed_gives_the_same_run_bit_by_bit():
    one, other = run(seed=3), run(seed=3)

    assert_same(one.state(), other.state())


def test_another_seed_gives_another_run():
    one, other = run(seed=3), run(seed=4)

    assert one.progress.history != other.progress.history
    assert not torch.equal(one.model.fc.weight, other.model.fc.weight)


def golden_losses():
    """Return the losses of the first 20 steps at modest learning rates, on one thread."""
    settings = {"learning_rate_head": 1e-3, "learning_rate_backbone": 1e-3, "warmup_epochs": 0.5}
    objective = make_objective(class_weights=torch.tensor([2.0, 1.0]))
    hooks = Hooks(objective, losses=[0.0] * 5)
    run(objective=objective, hooks=hooks, epochs=5, log_steps=1, **settings)
    return hooks.step_losses


def test_the_losses_of_twenty_steps_are_the_golden_ones():
    losses = golden_losses()

    assert len(losses) == 20
    # Another order of float32 sums (SSE, AVX2, AVX512, two threads) moves the losses by 4e-7, and
    # lets a pixel cross a threshold of the attention or the mask now and then, which moves one
    # loss by up to 3e-5.
    assert losses == pytest.approx(json.loads(GOLDEN.read_text()), rel=1e-4)


@pytest.mark.parametrize(
    ("least", "num_images", "sizes"),
    [(1, 7, [3, 2, 2]), (1, 2, [1, 1]), (2, 7, [3, 2, 2]), (2, 5, [3, 2]), (2, 3, [3])],
)
def test_a_batch_is_divided_into_pieces_of_the_least_size(least, num_images, sizes):
    trainer = make_trainer(accumulation_steps=3, least_piece=least)

    pieces = trainer._pieces(first_batch(num_images))

    assert [len(piece.images) for piece in pieces] == sizes


# Precision and averages.


def test_bf16_trains_close_to_float32_but_not_the_same():
    single, half = run(), run(precision="bf16")

    for one, other in zip(single.progress.history, half.progress.history, strict=True):
        # bf16 has 8 bits: losses of about 1 agree to a few hundredths.
        assert one["train_loss"] == pytest.approx(other["train_loss"], abs=0.1)
        assert one["train_loss"] != other["train_loss"]
    assert half.model.fc.weight.dtype == torch.float32


def test_the_average_is_an_exponential_one_of_weights_and_statistics():
    decay = 0.8
    trainer = run(ema_decay=decay, checkpoint_steps=1)

    saves = dict(trainer.hooks.saves)
    names = [name for name, value in saves[1]["model"].items() if value.is_floating_point()]
    assert any("running_mean" in name for name in names)
    expected = {name: saves[1]["model"][name].double() for name in names}
    for step in range(2, NUM_STEPS + 1):
        for name in names:
            expected[name] *= decay
            expected[name] += (1 - decay) * saves[step]["model"][name].double()
    for name in names:
        actual = saves[NUM_STEPS]["average"][f"module.{name}"].double()
        # Eight roundings in float32.
        torch.testing.assert_close(actual, expected[name], rtol=1e-5, atol=1e-6)


# What is reported.


def test_an_epochs_loss_is_the_mean_over_its_images():
    hooks = Hooks(make_objective(), losses=[0.0])
    trainer = run(hooks=hooks, epochs=1, log_steps=1)

    sizes = [len(batch) for batch in make_batches(make_settings()).epoch(0)]
    assert sizes == [5, 5, 5, 3]
    mean = sum(n * loss for n, loss in zip(sizes, hooks.step_losses, strict=True)) / sum(sizes)
    assert trainer.progress.history[0]["train_loss"] == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize("log_steps", [1, 3])
def test_how_often_the_loss_is_looked_at_changes_nothing(log_steps):
    trainer = run(log_steps=log_steps)

    assert_same(trainer.progress.history, run().progress.history)
    assert len(trainer.hooks.step_losses) == 2 * math.ceil(STEPS_PER_EPOCH / log_steps)


def test_the_history_grows_by_an_epoch_at_a_time_and_is_reported_before_it_is_saved():
    trainer = run(epochs=3)

    assert [len(history) for history in trainer.hooks.histories] == [1, 2, 3]
    assert [row["epoch"] for row in trainer.progress.history] == [1, 2, 3]
    for history, (_, saved) in zip(trainer.hooks.histories, trainer.hooks.saves, strict=True):
        assert_same(saved["progress"]["history"], history)
    assert trainer.hooks.num_saves_before == [0, 1, 2]


@pytest.mark.parametrize(
    ("checkpoint_steps", "saved"),
    [(None, [4, 8]), (1, [1, 2, 3, 4, 5, 6, 7, 8]), (3, [3, 4, 6, 8]), (4, [4, 8])],
)
def test_checkpoints_are_due_every_so_many_steps_and_at_the_end_of_an_epoch(
    checkpoint_steps, saved
):
    trainer = run(checkpoint_steps=checkpoint_steps)

    assert [step for step, _ in trainer.hooks.saves] == saved


@pytest.mark.parametrize(
    ("log_steps", "saved"),
    [(1, [2, 4, 8]), (10, [4, 8])],
)
def test_a_checkpoint_that_is_asked_for_is_made_when_results_are_looked_at(log_steps, saved):
    trainer = run(hooks=Hooks(make_objective(), save_after=2), log_steps=log_steps)

    assert [step for step, _ in trainer.hooks.saves] == saved


# Resuming.

EVERYTHING = {
    "ema_decay": 0.9,
    "accumulation_steps": 2,
    "gradient_clip": 0.5,
    "checkpoint_steps": 3,
    "log_steps": 3,
}


@cache
def undisturbed(extras):
    hooks = Hooks(make_objective())
    return run(hooks=hooks, **(EVERYTHING if extras else {})), hooks


@pytest.mark.parametrize("extras", [False, True], ids=["plain", "everything"])
@pytest.mark.parametrize("stop_after", range(1, NUM_STEPS + 1))
def test_a_run_stopped_after_any_step_resumes_as_if_it_had_not_been(stop_after, extras):
    settings = EVERYTHING if extras else {}
    stopped = make_trainer(hooks=Hooks(make_objective(), stop_after=stop_after), **settings)
    with pytest.raises(Interrupted):
        stopped.run()
    step, saved = stopped.hooks.saves[-1]
    assert step == stop_after

    resumed = make_trainer(model=make_model(seed=99), **settings)
    torch.manual_seed(99)
    resumed.load_state(saved)
    resumed.run()

    expected, expected_hooks = undisturbed(extras)
    assert_same(resumed.state(), expected.state())
    bests = stopped.hooks.bests + resumed.hooks.bests
    assert_same(bests[-1], expected_hooks.bests[-1])


def test_a_finished_run_that_is_loaded_again_does_nothing():
    finished = run()
    again = make_trainer(model=make_model(seed=99))
    again.load_state(finished.state())

    again.run()

    assert again.hooks.num_steps == 0
    assert again.hooks.saves == []
    assert_same(again.state(), finished.state())


def test_training_on_does_not_change_the_checkpoint_that_was_loaded():
    stopped = make_trainer(hooks=Hooks(make_objective(), stop_after=6))
    with pytest.raises(Interrupted):
        stopped.run()
    saved = stopped.hooks.saves[-1][1]
    before = copy.deepcopy(saved)

    resumed = make_trainer()
    resumed.load_state(saved)
    resumed.run()

    assert_same(saved["progress"], before["progress"])


# The end.

LOSSES = [3.0, 2.0, 2.0, 1.8, 1.9, 1.8, 1.5, 1.6, 1.5, 1.7, 1.4, 1.3]
"""Validation losses with one, then two, then three epochs in a row without gain."""


def run_short(**changes):
    hooks = Hooks(make_objective(), losses=LOSSES)
    return run(batches=FixedBatches(first_batch(2)), hooks=hooks, epochs=len(LOSSES), **changes)


@pytest.mark.parametrize(("patience", "num_epochs"), [(1, 3), (2, 6), (3, 10), (4, 12), (None, 12)])
def test_training_ends_after_so_many_epochs_in_a_row_without_gain(patience, num_epochs):
    trainer = run_short(early_stopping_patience=patience)

    assert [row["val_loss"] for row in trainer.progress.history] == LOSSES[:num_epochs]


def test_epochs_of_the_warm_up_do_not_end_training():
    trainer = run_short(early_stopping_patience=1, warmup_epochs=5)

    assert [row["val_loss"] for row in trainer.progress.history] == LOSSES[:6]


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_the_network_that_is_kept_is_that_of_the_epoch_with_the_lowest_loss(ema_decay):
    trainer = run_short(early_stopping_patience=3, ema_decay=ema_decay)

    assert trainer.progress.best_epoch == 6
    hooks = trainer.hooks
    assert len(hooks.bests) == 4
    assert_same(hooks.bests[-1], hooks.evaluated[6])
    saved = dict(hooks.saves)[7]
    if ema_decay is None:
        assert_same(hooks.bests[-1], saved["model"])
    else:
        assert torch.equal(hooks.bests[-1]["fc.weight"], saved["average"]["module.fc.weight"])
        assert not torch.equal(hooks.bests[-1]["fc.weight"], saved["model"]["fc.weight"])


EPOCHS = [
    {"val_loss": 1.0, "val_pid": 0.30, "val_auroc": 0.6, "val_accuracy": 0.6},
    {"val_loss": 0.8, "val_pid": 0.20, "val_auroc": 0.7, "val_accuracy": 0.7},
    {"val_loss": 0.9, "val_pid": 0.25, "val_auroc": 0.8, "val_accuracy": 0.7},
    {"val_loss": 1.1, "val_pid": 0.25, "val_auroc": 0.8, "val_accuracy": 0.8},
    {"val_loss": 1.2, "val_pid": 0.10, "val_auroc": 0.8, "val_accuracy": 0.7},
]


@pytest.mark.parametrize(
    ("settings", "bests", "num_epochs"),
    [
        ({}, [0, 1], 4),
        ({"monitor": "val_pid"}, [0], 3),
        ({"monitor": "val_auroc"}, [0, 1, 2], 5),
        # The floor is reached at the third epoch; until then the closest one counts.
        ({"monitor": "val_pid", "min_auroc": 0.75}, [0, 1, 2], 5),
        ({"monitor": "val_pid", "min_auroc": 0.75, "min_accuracy": 0.75}, [0, 1, 2, 3], 5),
        # No epoch reaches it.
        ({"monitor": "val_pid", "min_auroc": 0.9}, [0, 1, 2], 5),
    ],
    ids=str,
)
def test_the_monitored_metric_decides_what_is_kept_and_when_to_stop(settings, bests, num_epochs):
    hooks = Hooks(make_objective(), losses=EPOCHS)
    trainer = run(
        batches=FixedBatches(first_batch(2)), hooks=hooks, epochs=len(EPOCHS),
        early_stopping_patience=2, **settings,
    )  # fmt: skip

    assert len(trainer.progress.history) == num_epochs
    assert trainer.progress.best_epoch == bests[-1]
    for kept, epoch in zip(hooks.bests, bests, strict=True):
        assert_same(kept, hooks.evaluated[epoch])


def test_a_metric_that_decides_and_was_not_measured_fails_the_run():
    for settings in ({"monitor": "val_pid"}, {"min_auroc": 0.5}):
        hooks = Hooks(make_objective(), losses=[1.0])
        with pytest.raises(RunFailed, match=r"is not measured, but decides which epoch"):
            run(batches=FixedBatches(first_batch(2)), hooks=hooks, epochs=1, **settings)


# Failing.


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("log_steps", "checkpoint_steps", "last_good"), [(10, None, 4), (1, None, 4), (10, 1, 6)]
)
def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_a_good_checkpoint(
    tmp_path, value, log_steps, checkpoint_steps, last_good
):
    settings = {"log_steps": log_steps, "checkpoint_steps": checkpoint_steps}
    objective = make_objective()
    trainer = make_trainer(
        batches=PoisonedBatches(epoch=1, step=2, value=value),
        hooks=Hooks(objective, folder=tmp_path),
        **settings,
    )

    with pytest.raises(RunFailed) as failure:
        trainer.run()

    path = tmp_path / f"step-{last_good:08d}.pt"
    names = list(make_batches(make_settings()).epoch(1))[2].names
    message = str(failure.value)
    assert message.startswith("step 7 (epoch 2): the loss is nan")
    assert ", ".join(names) in message
    assert message.endswith(f"last good checkpoint: {path}")
    found, content = checkpoint.load_newest(tmp_path)
    assert found == path
    resumed = make_trainer(model=make_model(seed=99), **settings)
    resumed.load_state(content)
    resumed.run()
    assert_same(resumed.state(), undisturbed(extras=False)[0].state())


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("learning_rate", [1e10, 1e30])
def test_an_absurd_learning_rate_stops_the_run_in_words(learning_rate, epochs):
    rates = {"learning_rate_head": learning_rate, "learning_rate_backbone": learning_rate}
    trainer = make_trainer(epochs=epochs, warmup_epochs=0, **rates)

    with pytest.raises(RunFailed, match=r"step [1-4] .*epoch 1.*last good checkpoint: none yet"):
        trainer.run()


def test_a_validation_loss_that_is_not_finite_stops_the_run():
    trainer = make_trainer(hooks=Hooks(make_objective(), losses=[1.0, math.inf]))

    with pytest.raises(
        RunFailed, match=r"after step 8 \(epoch 2\): val_loss is inf; last good checkpoint"
    ):
        trainer.run()

    assert len(trainer.hooks.bests) == 1
    assert [step for step, _ in trainer.hooks.saves] == [4]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(golden_losses()))


def test_the_floors_that_no_epoch_reached_are_named():
    settings = make_settings(min_auroc=0.9, min_accuracy=0.5)
    metrics = {"val_auroc": 0.8, "val_accuracy": 0.5}
    assert missed_floors(metrics, settings) == "train.min_auroc = 0.9 (val_auroc 0.800)"
    assert missed_floors(metrics | {"val_auroc": 0.9}, settings) == ""
