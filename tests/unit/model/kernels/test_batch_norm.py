"""Batch norm with what follows it: the kernel against torch in float64, and what it is not for."""

from __future__ import annotations

import shutil
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from labn.model.kernels import compiled, compiled_norm, recomputed
from labn.model.kernels import norm as normalise
from labn.model.lambda_layer import LambdaLayer

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="there is no C++ compiler"
)

# images, channels, height, width
SHAPES = {
    "one image": (1, 16, 5, 7),
    "one column": (3, 24, 9, 1),
    "one position": (40, 16, 1, 1),
    "no multiple of a vector": (2, 37, 6, 5),
    "many blocks": (4, 64, 23, 31),
    "wide": (2, 300, 4, 4),
}


@pytest.fixture(autouse=True)
def no_map_is_too_small(monkeypatch):
    monkeypatch.setattr(compiled_norm, "_MIN_VALUES", 2)


def make_norm(channels, generator):
    norm = nn.BatchNorm2d(channels, eps=1e-3)
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
        tensor.copy_(torch.rand(channels, generator=generator) - 0.3)
    return norm.train()


def make_case(shape, dtype=torch.float32, *, has_shortcut=False):
    generator = torch.Generator().manual_seed(sum(shape))
    draw = lambda: torch.randn(shape, generator=generator)  # noqa: E731
    # Far from zero, where sums of squares would cancel.
    x = (draw() * 3 + 50).to(dtype).contiguous(memory_format=torch.channels_last)
    shortcut = draw().to(dtype) if has_shortcut else None
    return make_norm(shape[1], generator), x, shortcut, draw().to(dtype)


def by_definition(norm, x, shortcut, relu):
    """In float64, step by step."""
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
    shape = (1, -1, 1, 1)
    y = (x - mean) / (variance + norm.eps).sqrt()
    y = norm.weight.view(shape) * y + norm.bias.view(shape)
    if shortcut is not None:
        y = y + shortcut
    return torch.where(y > 0, y, torch.zeros_like(y)) if relu else y


def with_gradients(function, norm, x, shortcut, weights):
    leaves = [x, *([] if shortcut is None else [shortcut])]
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    y = function(norm, leaves[0], leaves[1] if shortcut is not None else None)
    # Where the ReLU's edge is nearer than rounding, either gradient is right.
    weights = torch.where(y.abs() < 1e-4, 0.0, weights.to(y))
    (y * weights).sum().backward()
    return [y.detach(), *(leaf.grad for leaf in leaves), norm.weight.grad, norm.bias.grad]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("has_shortcut", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_results_and_gradients_are_those_of_the_definition(shape, has_shortcut, relu):
    norm, x, shortcut, weights = make_case(shape, has_shortcut=has_shortcut)
    exact = nn.BatchNorm2d(shape[1], eps=norm.eps).double().train()
    exact.load_state_dict(norm.state_dict())
    assert compiled_norm.is_available(norm, x)

    ours = with_gradients(
        lambda n, a, s: normalise(n, a, shortcut=s, relu=relu), norm, x, shortcut, weights
    )

    shortcut64 = None if shortcut is None else shortcut.double()
    expected = with_gradients(
        lambda n, a, s: by_definition(n, a, s, relu), exact, x.double(), shortcut64, weights
    )
    exact(x.double())
    for one, other in zip(ours, expected, strict=True):
        # float32's rounding of numbers of order 50, over a variance of order 10.
        scale = other.abs().max().item()
        torch.testing.assert_close(one.double(), other, rtol=0, atol=2e-5 * max(scale, 1))
    for name, tensor in exact.named_buffers():
        own = norm.get_buffer(name)
        torch.testing.assert_close(own.double(), tensor.double(), rtol=1e-5, atol=1e-5)


def test_a_slice_of_the_channels_is_normalised_as_a_tensor_of_its_own():
    _, x, _, weights = make_case((2, 60, 5, 6))
    part = x[:, 7:40]
    norms = [make_norm(33, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert compiled_norm.is_available(norms[0], part) and not part.is_contiguous()

    sliced = with_gradients(lambda n, a, s: normalise(n, a), norms[0], part, None, weights[:, 7:40])
    own = part.contiguous(memory_format=torch.channels_last)
    whole = with_gradients(lambda n, a, s: normalise(n, a), norms[1], own, None, weights[:, 7:40])

    assert all(torch.equal(one, other) for one, other in zip(sliced, whole, strict=True))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("result", [torch.bfloat16, torch.float32])
def test_half_precision_rounds_only_what_goes_in_and_out(kind, result):
    norm, x, shortcut, weights = make_case((3, 40, 6, 7), kind, has_shortcut=True)
    same, weights = make_norm(40, torch.Generator()), weights.to(result)
    same.load_state_dict(norm.state_dict())
    shortcut = shortcut.to(result)

    ours = with_gradients(
        lambda n, a, s: normalise(n, a, shortcut=s, relu=True, dtype=result),
        norm, x, shortcut, weights,
    )  # fmt: skip
    expected = with_gradients(
        lambda n, a, s: by_definition(n, a, s, relu=True).to(result),
        same, x.float(), shortcut.float(), weights,
    )  # fmt: skip

    assert ours[0].dtype == result and ours[1].dtype == kind
    step = 2**-7 if torch.bfloat16 in (kind, result) else 1e-5
    for one, other in zip(ours, expected, strict=True):
        scale = other.abs().max().item()
        torch.testing.assert_close(one.float(), other.float(), rtol=step, atol=step * scale)


def test_what_is_no_number_stays_none():
    norm, x, _, _ = make_case((2, 16, 4, 4))
    x[0, 3, 1, 1] = torch.nan

    y = normalise(norm, x, relu=True, dtype=torch.bfloat16)

    assert y[:, 3].isnan().all() and y[:, 4].isfinite().all()


def test_results_do_not_depend_on_the_number_of_threads():
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            norm, x, shortcut, weights = make_case((4, 64, 23, 31), has_shortcut=True)
            ours = with_gradients(
                lambda n, a, s: normalise(n, a, shortcut=s, relu=True), norm, x, shortcut, weights
            )
            results.append(ours)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_a_recomputed_map_is_not_held_and_gives_the_same_gradients():
    results, is_held = [], []
    for is_recomputed in (True, False):
        norm, x, _, weights = make_case((2, 16, 6, 5))
        kernel = torch.linspace(-1, 1, 16 * 16).view(16, 16, 1, 1).requires_grad_()
        y = normalise(norm, x.requires_grad_(), relu=True)
        with recomputed(*([y] if is_recomputed else [])):
            z = F.conv2d(y, kernel)
        watched = weakref.ref(y)
        del y
        is_held.append(watched() is not None)
        (z * weights).sum().backward()
        results.append([x.grad, kernel.grad, norm.weight.grad])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert is_held == [False, True]


def test_a_lambda_layer_recomputes_its_queries_and_values(monkeypatch):
    layer = LambdaLayer(64, key_depth=4, receptive_field=3)
    made, apply = [], compiled_norm._apply
    monkeypatch.setattr(compiled_norm, "_apply", lambda node: made.append(node) or apply(node))
    x = torch.randn(2, 64, 5, 6).contiguous(memory_format=torch.channels_last)

    y = layer(x)

    assert not made
    y.sum().backward()
    # The queries for the lambdas; the values for those and for the content lambda.
    assert len(made) == 3


@pytest.mark.parametrize(
    "why",
    [
        "evaluation",
        "float64",
        "channels first",
        "no statistics",
        "few channels",
        "few values",
        "another",
    ],
)
def test_what_the_kernel_is_not_for_torch_does(why, monkeypatch):
    norm, x, shortcut, _ = make_case((2, 16, 4, 5), has_shortcut=True)
    if why == "evaluation":
        norm.eval()
    elif why == "float64":
        norm, x, shortcut = norm.double(), x.double(), shortcut.double()
    elif why == "channels first":
        x = x.contiguous()
    elif why == "no statistics":
        norm = nn.BatchNorm2d(16, track_running_stats=False)
    elif why == "few channels":
        norm, x, shortcut = nn.BatchNorm2d(2), x[:, :2], shortcut[:, :2]
    elif why == "few values":
        monkeypatch.setattr(compiled_norm, "_MIN_VALUES", x.numel() + 1)
    else:
        norm = nn.Identity()
    assert not compiled_norm.is_available(norm, x)
    expected = F.relu(norm(x) + shortcut)

    y = normalise(norm, x.clone(), relu=True, shortcut=shortcut)

    torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)


def test_without_a_compiler_torch_agrees(monkeypatch):
    norm, x, _, _ = make_case((2, 16, 4, 5))
    ours = normalise(norm, x, relu=True)
    monkeypatch.setenv("LABN_COMPILE", "0")
    compiled.library.cache_clear()
    try:
        assert not compiled_norm.is_available(norm, x)
        torch.testing.assert_close(normalise(norm, x, relu=True), ours, rtol=0, atol=1e-4)
    finally:
        compiled.library.cache_clear()
