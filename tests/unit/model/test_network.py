from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from labn.model.architectures import PLANS
from labn.model.attention_branch import BranchOutput
from labn.model.backbone import Bottleneck
from labn.model.kernels import compiled_norm
from labn.model.network import build_model, threshold_attention, upsample_attention


class FixedAttention(nn.Module):
    """An attention branch with one map for all images."""

    def __init__(self, attention_hw):
        super().__init__()
        self.attention_hw = attention_hw

    def forward(self, h_lfe):
        attention = self.attention_hw.expand(len(h_lfe), 1, *h_lfe.shape[2:])
        return BranchOutput(attention, h_lfe.mean(dim=(2, 3)))


def images_of(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def awake(model):
    """Make the output depend on every bottleneck; untrained ones are the identity."""
    for bottleneck in model.bottlenecks:
        nn.init.constant_(bottleneck.bn3.weight, 0.3)
    return model


def num_parameters(**arguments):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(**arguments).parameters())


def test_the_published_networks_have_their_numbers_of_parameters():
    assert num_parameters() == 22_167_098
    assert num_parameters(backbone="lambda_cnn", in_channels=1, split=0) == 21_598


SPLITS = [(name, b) for name in ("lambda_cnn", "lambda_resnet50") for b in range(17)]


@pytest.mark.parametrize(
    ("backbone", "split"), [(n, b) for n, b in SPLITS if b <= PLANS[n].num_bottlenecks]
)
def test_the_network_can_be_cut_at_every_bottleneck(backbone, split):
    height, width = 70, 45
    torch.manual_seed(split)
    model = build_model(backbone, 3, 1, split, theta_alpha=0.4, branch_width=8).train()
    output = model(images_of(0, 2, 1, height, width))
    assert output.logits.shape == output.branch_logits.shape == (2, 3)
    assert all(tensor.isfinite().all() for tensor in output)
    assert output.attention.min() > 0 and output.attention.max() < 1

    # The stem halves twice; so does each stage after the first, in its first bottleneck.
    num_halvings = 2 + sum(split > opener for opener in (3, 7, 13))
    expected = [height, width]
    for _ in range(num_halvings):
        expected = [math.ceil(side / 2) for side in expected]
    assert output.attention.shape == (2, 1, *expected)

    (output.logits.sum() + output.branch_logits.sum()).backward()
    untouched = [name for name, p in model.named_parameters() if p.grad is None]
    assert untouched == []


@pytest.mark.parametrize("num_classes", [1, 2, 7])
@pytest.mark.parametrize("in_channels", [1, 3, 5])
@pytest.mark.parametrize("size", [(16, 16), (33, 65), (97, 31)], ids=str)
def test_any_image_size_channel_and_class_count_will_do(size, in_channels, num_classes):
    torch.manual_seed(0)
    model = build_model("lambda_cnn", num_classes, in_channels, split=1)
    output = model(images_of(1, 2, in_channels, *size))
    assert output.logits.shape == output.branch_logits.shape == (2, num_classes)
    assert output.attention.shape == (2, 1, *(math.ceil(math.ceil(s / 2) / 2) for s in size))


def test_where_everything_is_attended_to_the_cut_does_not_matter():
    torch.manual_seed(1)
    model = awake(build_model(split=0, branch_width=1)).train()
    model.attention_branch = FixedAttention(torch.ones(1, 1))
    images = images_of(2, 2, 3, 33, 32)
    logits = []
    with torch.no_grad():
        for split in range(17):
            model.split = split
            logits.append(model(images).logits)
    assert logits[0].isfinite().all() and logits[0].std() > 0
    assert all(torch.equal(others, logits[0]) for others in logits[1:])


@pytest.mark.parametrize("split", [0, 5])
def test_the_lpb_sees_the_features_times_the_thresholded_attention(split):
    torch.manual_seed(2)
    model = awake(build_model("lambda_resnet26", split=split, theta_alpha=0.5, branch_width=4))
    seen = {}
    model.attention_branch.register_forward_hook(
        lambda _, inputs, output: seen.update(h_lfe=inputs[0], attention=output.attention)
    )
    model.bottlenecks[split].register_forward_pre_hook(
        lambda _, inputs: seen.update(lpb_input=inputs[0])
    )
    model.train()(images_of(3, 2, 3, 64, 64))
    is_kept = seen["attention"] > 0.5
    assert is_kept.any() and not is_kept.all()
    expected = torch.where(is_kept, seen["attention"] * seen["h_lfe"], 0.0)
    assert torch.equal(seen["lpb_input"], expected)


def test_with_every_bottleneck_before_the_cut_the_lpb_is_pooling_and_the_linear_layer():
    torch.manual_seed(3)
    model = awake(build_model("lambda_cnn", split=1, theta_alpha=0.5)).eval()
    seen = {}
    model.attention_branch.register_forward_hook(
        lambda _, inputs, output: seen.update(h_lfe=inputs[0], attention=output.attention)
    )
    logits = model(images_of(4, 2, 3, 40, 24)).logits
    alpha = torch.where(seen["attention"] > 0.5, seen["attention"], 0.0)
    pooled = (alpha * seen["h_lfe"]).sum(dim=(2, 3)) / (10 * 6)
    expected = pooled @ model.fc.weight.T + model.fc.bias
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)


def test_only_attention_strictly_above_the_threshold_passes():
    attention = torch.tensor([[[[0.25, 0.5, 0.5000001], [0.75, 0.0, 1.0]]]])
    expected = torch.tensor([[[[0.0, 0.0, 0.5000001], [0.75, 0.0, 1.0]]]])
    assert torch.equal(threshold_attention(attention, 0.5), expected)


def test_attention_learns_through_what_passes_only():
    attention = torch.tensor([[[[0.25, 0.5, 0.75]]]], requires_grad=True)
    threshold_attention(attention, 0.5).sum().backward()
    assert attention.grad.flatten().tolist() == [0, 0, 1]


def test_under_a_threshold_of_one_the_lpb_sees_nothing_of_the_image():
    torch.manual_seed(4)
    model = awake(build_model("lambda_cnn", split=0, theta_alpha=1.0)).eval()
    output = model(images_of(5, 2, 3, 32, 32))
    assert torch.equal(output.logits[0], output.logits[1])
    assert not torch.equal(output.branch_logits[0], output.branch_logits[1])


def test_an_image_s_outputs_do_not_depend_on_its_batch_in_evaluation():
    torch.manual_seed(5)
    model = awake(build_model("lambda_resnet26", split=3, theta_alpha=0.3, branch_width=4))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # one batch sets the statistics
    images = images_of(6, 3, 3, 48, 48)
    model.train()(images)
    with torch.inference_mode():
        together = model.eval()(images)
        for i in range(3):
            alone = model(images[i : i + 1])
            for a, b in zip(alone, together, strict=True):
                torch.testing.assert_close(a[0], b[i], rtol=1e-4, atol=1e-5)


def test_memory_layout_does_not_change_the_outputs():
    torch.manual_seed(6)
    model = awake(build_model("lambda_resnet26", split=3, theta_alpha=0.3, branch_width=4))
    images = images_of(8, 2, 3, 48, 48)
    model.train()
    expected = model(images)
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    output = model(images.to(memory_format=torch.channels_last))
    for ours, theirs in zip(output, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_the_same_seed_draws_the_same_network():
    def state(seed):
        torch.manual_seed(seed)
        return build_model("lambda_cnn", split=0).state_dict()

    first, again, other = state(7), state(7), state(8)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


def slow_bilinear(map_yx, height, width):
    """Interpolate with pixel centres at halves and edges extended (align_corners False)."""
    result = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            at_y = min(max((y + 0.5) * map_yx.shape[0] / height - 0.5, 0), map_yx.shape[0] - 1)
            at_x = min(max((x + 0.5) * map_yx.shape[1] / width - 0.5, 0), map_yx.shape[1] - 1)
            top, left = int(at_y), int(at_x)
            below = min(top + 1, map_yx.shape[0] - 1)
            right = min(left + 1, map_yx.shape[1] - 1)
            down, across = at_y - top, at_x - left
            upper = (1 - across) * map_yx[top, left] + across * map_yx[top, right]
            lower = (1 - across) * map_yx[below, left] + across * map_yx[below, right]
            result[y, x] = (1 - down) * upper + down * lower
    return result


@pytest.mark.parametrize("size", [(12, 20), (3, 5), (7, 5), (11, 11)], ids=str)
def test_the_explanation_is_the_attention_interpolated_bilinearly(size):
    attention = torch.from_numpy(np.random.default_rng(9).random((2, 1, 3, 5)))
    alpha = upsample_attention(attention, size)
    assert alpha.shape == (2, *size)
    for image in range(2):
        expected = slow_bilinear(attention[image, 0].numpy(), *size)
        np.testing.assert_allclose(alpha[image], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"backbone": "resnet18"}, "backbone must be one of .*lambda_resnet50.*'resnet18'"),
        ({"split": 17}, "split must be 0 to 16.*lambda_resnet50.*17"),
        ({"split": -1}, "split.*-1"),
        ({"backbone": "lambda_cnn", "split": 2}, "split must be 0 to 1"),
        ({"theta_alpha": 1.5}, "theta_alpha.*1.5"),
        ({"theta_alpha": -0.1}, "theta_alpha.*-0.1"),
        ({"theta_alpha": float("nan")}, "theta_alpha.*nan"),
        ({"num_classes": 0}, "num_classes.* must be at least 1, but got 0 and 3"),
        ({"in_channels": 0}, "in_channels must be at least 1, but got 2 and 0"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(arguments, named):
    with pytest.raises(ValueError, match=named):
        build_model(**arguments)


@pytest.mark.parametrize("min_values", [0, 1 << 20], ids=["compiled norms", "torch's norms"])
def test_recomputed_blocks_change_no_bit_and_keep_less(min_values, monkeypatch):
    monkeypatch.setattr(compiled_norm, "_MIN_VALUES", min_values)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    images = images.contiguous(memory_format=torch.channels_last)
    results, kept = [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        network = build_model("lambda_cnn", split=1, branch_width=8).train()
        for block in (m for m in network.modules() if isinstance(m, Bottleneck)):
            torch.nn.init.ones_(block.bn3.weight)  # no block is the identity
        network.recompute_blocks(recompute)
        sizes = []
        with saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):  # noqa: B023
            output = network(images)
        kept.append(sum(sizes))
        (output.logits.square().sum() + output.branch_logits.square().sum()).backward()
        gradients = {
            f"d{name}": p.grad for name, p in network.named_parameters() if p.grad is not None
        }
        results.append(output._asdict() | dict(network.state_dict()) | gradients)
    without, blocks = results
    assert without.keys() == blocks.keys()
    assert [name for name in without if not torch.equal(without[name], blocks[name])] == []
    assert kept[1] < kept[0] / 2


@pytest.mark.slow
def test_a_network_exports_with_a_free_batch_size():
    network = build_model("lambda_cnn", split=0, theta_alpha=0.25).eval()
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    program = torch.export.export(
        network, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
    )

    with torch.no_grad():
        exported, direct = program.module()(images), network(images)
    torch.testing.assert_close(exported.logits, direct.logits, rtol=1e-4, atol=1e-5)
