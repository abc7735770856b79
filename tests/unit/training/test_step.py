"""One training step: its gradient is that of eq. 8, and its length is limited."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from bitwise import assert_same
from small_run import (
    STEPS_PER_EPOCH,
    FixedBatches,
    Hooks,
    PlainNetwork,
    first_batch,
    make_objective,
    make_settings,
    make_trainer,
)
from torch.utils._python_dispatch import TorchDispatchMode

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


class NoWaiting(TorchDispatchMode):
    """Fails on every operator that makes the host wait for a GPU."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "unique2", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__.strip("_")
        assert name not in {one.strip("_") for one in self.WAITING}, f"{name} waits"
        if name in ("index", "index_put", "index_put_impl"):
            indices = [one for one in args[1] if one is not None]
            assert not any(one.dtype == torch.bool for one in indices), f"{name} by booleans waits"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rule", ["share", "threshold"])
@pytest.mark.parametrize("changes", [{}, {"accumulation_steps": 2, "gradient_clip": 1.0}])
def test_a_step_and_its_batch_never_wait_for_the_device(rule, changes):
    objective = make_objective(mask_rule=rule, class_weights=torch.ones(2))
    trainer = make_trainer(objective=objective, **changes)
    for group in trainer.optimizer.param_groups:
        group["fused"] = True  # as on a GPU; the CPU's default reads its number of steps
    batches = trainer.batches.epoch(0)
    with NoWaiting():
        for batch in batches:
            trainer._take_step(batch)
    assert trainer.progress.step == STEPS_PER_EPOCH


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.index_put_((x > 0,), torch.zeros(())),
        lambda x: bool((x > 0).any()),
        lambda x: x.nonzero(),
    ],
)
def test_the_check_for_waiting_notices_it(wait):
    with NoWaiting(), pytest.raises(AssertionError, match="waits"):
        wait(torch.ones(3))
