from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from labn.config import TrainConfig
from labn.model.network import build_model
from labn.training.optim import (
    build_average,
    build_optimizer,
    build_schedule,
    update_average,
)


def rates_by_step(settings, steps_per_epoch):
    """Train as configured, and return both groups' rates at each step."""
    model = nn.ModuleDict({"fc": nn.Linear(1, 1), "stem": nn.Linear(1, 1)})
    optimizer = build_optimizer(model, settings)
    schedule = build_schedule(optimizer, settings, steps_per_epoch)
    rates = []
    for _ in range(settings.epochs * steps_per_epoch):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return rates, [group["lr"] for group in optimizer.param_groups]


def expected_factor(step, num_steps, num_warmup):
    """From 1 % in a straight line to the full rate, then half a cosine down to zero."""
    if step < num_warmup:
        return 0.01 + 0.99 * step / num_warmup
    return 0.5 * (1 + math.cos(math.pi * (step - num_warmup) / (num_steps - num_warmup)))


def test_the_attention_branch_and_the_linear_layer_learn_at_their_own_rate():
    with torch.device("meta"):
        model = build_model()
    settings = TrainConfig(learning_rate_head=0.3, learning_rate_backbone=0.02, weight_decay=0.05)
    optimizer = build_optimizer(model, settings)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        is_head = name.split(".")[0] in ("attention_branch", "fc")
        assert rates[id(parameter)] == (0.3 if is_head else 0.02), name
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.05]


def test_the_defaults_are_the_paper_s():
    settings = TrainConfig()
    assert (settings.learning_rate_head, settings.learning_rate_backbone) == (1e-3, 1e-4)
    assert (settings.weight_decay, settings.batch_size) == (0.09, 32)
    assert settings.early_stopping_patience == 6


@pytest.mark.parametrize(
    ("epochs", "steps_per_epoch", "warmup_epochs", "num_warmup"),
    [
        (10, 7, 2, 14),
        (10, 7, 0.5, 4),  # 3.5 steps, rounded to even
        (5, 4, 0, 0),
        (5, 4, 0.1, 0),  # less than half a step
        (3, 4, 3, 11),  # as long as training: the last step has the full rate
        (3, 4, 50, 11),
        (1, 1, 5, 0),
        (1, 2, 5, 1),
    ],
)
def test_rates_rise_in_a_line_and_fall_as_a_cosine(
    epochs, steps_per_epoch, warmup_epochs, num_warmup
):
    settings = TrainConfig(
        epochs=epochs,
        warmup_epochs=warmup_epochs,
        learning_rate_head=0.3,
        learning_rate_backbone=0.02,
    )
    rates, last = rates_by_step(settings, steps_per_epoch)
    num_steps = epochs * steps_per_epoch
    for step, (head, backbone) in enumerate(rates):
        factor = expected_factor(step, num_steps, num_warmup)
        # Each rate is made from the one before, dozens of float64 products in a row.
        assert head == pytest.approx(0.3 * factor, rel=1e-9, abs=1e-12)
        assert backbone == pytest.approx(0.02 * factor, rel=1e-9, abs=1e-12)
    assert last == pytest.approx([0, 0], abs=1e-12)


def test_the_schedule_continues_from_its_state():
    settings = TrainConfig(epochs=4, warmup_epochs=1)
    expected, _ = rates_by_step(settings, 5)

    def start():
        optimizer = build_optimizer(nn.ModuleDict({"fc": nn.Linear(1, 1)}), settings)
        return optimizer, build_schedule(optimizer, settings, 5)

    for stop in (3, 5, 12):
        optimizer, schedule = start()
        for _ in range(stop):
            optimizer.step()
            schedule.step()
        resumed_optimizer, resumed = start()
        resumed_optimizer.load_state_dict(optimizer.state_dict())
        resumed.load_state_dict(copy.deepcopy(schedule.state_dict()))
        rates = []
        for _ in range(stop, 20):
            rates.append(resumed_optimizer.param_groups[0]["lr"])
            resumed_optimizer.step()
            resumed.step()
        assert rates == [head for head, _ in expected[stop:]]


def test_the_average_is_exponential_over_weights_and_statistics():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).train()
    average = build_average(model, TrainConfig(ema_decay=0.9))
    by_hand = None
    for _ in range(4):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
        model(torch.randn(8, 3))
        average.update_parameters(model)
        values = {name: tensor.double() for name, tensor in model.state_dict().items()}
        by_hand = (
            {name: 0.9 * by_hand[name] + 0.1 * tensor for name, tensor in values.items()}
            if by_hand
            else values
        )
    averaged = average.module.state_dict()
    assert averaged.keys() == by_hand.keys()
    for name, tensor in averaged.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), by_hand[name], rtol=1e-6, atol=1e-6)
    assert not torch.equal(averaged["0.weight"], model[0].weight)


def test_there_is_no_average_unless_asked_for():
    assert build_average(nn.Linear(1, 1), TrainConfig()) is None


def test_averaging_without_a_count_on_the_device_gives_the_same_bits():
    torch.manual_seed(0)
    settings = TrainConfig(ema_decay=0.9)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    ours, torchs = build_average(network, settings), build_average(network, settings)
    for _ in range(4):
        network(torch.randn(2, 3, 5, 5))  # moves the running statistics and their counter
        with torch.no_grad():
            network[0].weight.add_(torch.randn_like(network[0].weight))
        update_average(ours, network)
        torchs.update_parameters(network)
    expected, found = torchs.state_dict(), ours.state_dict()
    assert found["n_averaged"] == 4
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not torch.equal(found["module.0.weight"], network[0].weight)
