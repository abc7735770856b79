"""The networks of the baselines: without a branch, with ordinary convolutions; frozen sections."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import nn

from labn.model.fusion import folded
from labn.model.network import build_model, threshold_attention


def draw_norms(model):
    """Draw norms at random, so that no block is the identity as it is at the start."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1)
                module.bias.normal_(std=0.1)
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)


def test_resnet50_without_a_branch_is_torchvisions():
    torch.manual_seed(0)
    expected = torchvision.models.resnet50(num_classes=3).eval()
    draw_norms(expected)
    model = build_model("resnet50", num_classes=3, branch="none", theta_alpha=1.0).eval()
    names = {name: name.replace("stem.", "") for name in model.state_dict()}
    for index, block in enumerate(model.bottlenecks):
        stage, place = [(s, i) for s, d in enumerate((3, 4, 6, 3), 1) for i in range(d)][index]
        for name in block.state_dict():
            names[f"bottlenecks.{index}.{name}"] = f"layer{stage}.{place}.{name}"
    state = expected.state_dict()
    model.load_state_dict({name: state[other] for name, other in names.items()})
    assert set(names.values()) == set(state)
    images = torch.randn(2, 3, 64, 64)

    with torch.no_grad():
        output, logits = model(images), expected(images)

    torch.testing.assert_close(output.logits, logits, rtol=1e-4, atol=1e-4)
    assert output.attention.shape == (2, 1, 8, 8) and (output.attention == 1).all()
    assert output.branch_logits.shape == (2, 3) and (output.branch_logits == 0).all()
    with torch.no_grad():
        torch.testing.assert_close(folded(model)(images).logits, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("is_residual", [False, True])
def test_residual_attention_adds_the_features_themselves(is_residual):
    torch.manual_seed(1)
    model = build_model("lambda_cnn", residual_attention=is_residual, theta_alpha=0.4, split=0)
    attention, h_lfe = torch.rand(2, 1, 4, 4), torch.randn(2, 16, 4, 4)
    masked = threshold_attention(attention, 0.4) * h_lfe
    expected = h_lfe + masked if is_residual else masked
    torch.testing.assert_close(model.attend(attention, h_lfe), expected)


SECTIONS = {
    "lfe": ["stem.", "bottlenecks.0."],
    "lab": ["attention_branch."],
    "lpb": ["bottlenecks.1.", "bottlenecks.7.", "fc."],
    "stem": ["stem."],
    "stage4": ["bottlenecks.6.", "bottlenecks.7."],
}


@pytest.mark.parametrize("frozen", [("lfe",), ("lab",), ("lpb",), ("stem", "stage4")])
def test_frozen_sections_keep_weights_and_statistics_in_training(frozen):
    torch.manual_seed(2)
    model = build_model("resnet26", split=1, branch_width=4, theta_alpha=0.0)
    draw_norms(model)
    model.freeze(frozen)
    before = copy.deepcopy(model.state_dict())
    model.eval()
    model.train()  # as each epoch does

    output = model(torch.randn(4, 3, 32, 32))
    (output.logits.square().sum() + output.branch_logits.square().sum()).backward()
    parameters = [p for p in model.parameters() if p.requires_grad]
    torch.optim.SGD(parameters, lr=0.1).step()

    prefixes = tuple(prefix for name in frozen for prefix in SECTIONS[name])
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    kept = {name for name in before if name.startswith(prefixes)}
    assert kept and not changed & kept
    for name in (
        "stem.bn1.running_mean",
        "bottlenecks.7.conv1.weight",
        "attention_branch.bn1.bias",
    ):
        assert (name in changed) == (not name.startswith(prefixes)), name
    assert all(p.grad is None for name, p in model.named_parameters() if name in kept)


def test_sections_cover_the_network_and_unknown_ones_are_refused():
    model = build_model("lambda_resnet26", split=3, branch_width=4)
    sections = model.sections()
    for names in (("lfe", "lab", "lpb"), ("stem", "stage1", "stage2", "stage3", "stage4")):
        found = [id(p) for name in names for m in sections[name] for p in m.parameters()]
        assert len(found) == len(set(found))
    every = sum(p.numel() for p in model.parameters())
    assert every == sum(
        p.numel() for name in ("lfe", "lab", "lpb") for m in sections[name] for p in m.parameters()
    )
    with pytest.raises(KeyError):
        model.freeze(("stage5",))
