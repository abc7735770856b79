"""One training step: its gradient is that of eq. 8, and its length is limited."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from bitwise import assert_same
from small_run import (
    FixedBatches,
    Hooks,
    PlainNetwork,
    first_batch,
    make_objective,
    make_settings,
    make_trainer,
)

from labn.training.losses import kept_pixels
from labn.training.optim import build_optimizer, build_schedule
from labn.training.step import MicroBatch, TrainingStep


@pytest.mark.parametrize("num_pieces", [1, 2, 3, 5, 9])
def test_the_gradient_is_that_of_eq_8_in_however_many_pieces_it_is_computed(num_pieces):
    batch = first_batch()
    weights = torch.tensor([2.0, 0.7])
    objective = make_objective(class_weights=weights, lambda_lab=0.3, lambda_kl=1.5)
    model = PlainNetwork()
    output = model(batch.images)
    is_kept = kept_pixels(output.attention, batch.images.shape[2:], 0.5, "share")
    masked = torch.where(is_kept[:, None], batch.images, objective.bias_image)
    divergence = F.kl_div(
        model(masked).logits.log_softmax(1),
        output.logits.softmax(1),
        reduction="batchmean",
    )
    loss = (
        F.cross_entropy(output.logits, batch.labels, weights)
        + 0.3 * F.cross_entropy(output.branch_logits, batch.labels, weights)
        + 1.5 * divergence
    )
    expected = torch.autograd.grad(loss, list(model.parameters()))

    hooks = Hooks(objective, losses=[0.0])
    trainer = make_trainer(
        model=copy.deepcopy(model),
        batches=FixedBatches(batch),
        objective=objective,
        hooks=hooks,
        epochs=1,
        accumulation_steps=num_pieces,
    )
    trainer.run()

    assert hooks.step_losses == pytest.approx([loss.item()], rel=1e-6)
    for parameter, gradient in zip(trainer.model.parameters(), expected, strict=True):
        # Five images' gradients in float32, added in another order.
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-7)


STANDSTILL = {"learning_rate_head": 1e-12, "learning_rate_backbone": 1e-12}


def test_clipping_shortens_the_gradient_and_reports_its_own_length():
    free, clipped = trainers = [
        make_trainer(
            model=PlainNetwork(),
            batches=FixedBatches(first_batch(), steps_per_epoch=3),
            hooks=Hooks(make_objective(), losses=[0.0]),
            epochs=1,
            gradient_clip=limit,
            **STANDSTILL,
        )
        for limit in (None, 0.01)
    ]
    for trainer in trainers:
        trainer.run()

    gradients = [parameter.grad for parameter in free.model.parameters()]
    length = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
    assert length > 0.1
    for trainer in trainers:
        assert trainer.progress.history[0]["gradient_norm"] == pytest.approx(length, rel=1e-6)
    for parameter, gradient in zip(clipped.model.parameters(), gradients, strict=True):
        # clip_grad_norm_ divides by the length + 1e-6.
        torch.testing.assert_close(parameter.grad, gradient * (0.01 / length), rtol=1e-4, atol=0)


def take_step(micro_batches, gradient_scale=1.0):
    """Return one step's result, as if its batch had five images, and the gradients."""
    model, settings = PlainNetwork(), make_settings(**STANDSTILL)
    optimizer = build_optimizer(model, settings)
    step = TrainingStep(
        network=model,
        objective=make_objective(),
        optimizer=optimizer,
        schedule=build_schedule(optimizer, settings, steps_per_epoch=1),
        average=None,
        settings=settings,
        gradient_scale=gradient_scale,
    )
    result = step(micro_batches, torch.tensor(5.0), torch.tensor(5.0))
    return result, [parameter.grad for parameter in model.parameters()]


def test_images_of_share_zero_add_nothing():
    images, labels = first_batch().images, first_batch().labels
    whole = take_step([MicroBatch(images, labels)])
    padded = take_step([MicroBatch(images, labels), MicroBatch(images, labels, share=0.0)])

    assert_same(padded, whole)


def test_the_scale_multiplies_the_gradients_and_not_the_loss():
    images, labels = first_batch().images, first_batch().labels
    result, gradients = take_step([MicroBatch(images, labels)])
    other, scaled = take_step([MicroBatch(images, labels)], gradient_scale=2.0)

    assert_same((other.loss, other.sums), (result.loss, result.sums))
    assert_same(scaled, [2 * gradient for gradient in gradients])
