"""What every method promises, run over each of them."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from explained import make_classifier, make_images, make_labn, predictor

from labn.explain.attention import LabnAttention, LambdaAttention
from labn.explain.captum_methods import (
    ATTRIBUTIONS,
    Attribution,
    GuidedBackpropagation,
    ScoreCam,
)
from labn.explain.controls import CentredGaussian, EdgeEnergy, RandomMap
from labn.explain.gradients import GradCam, InputGradient
from labn.explain.method import Method
from labn.explain.rise import Rise
from labn.explain.rollout import LambdaRollout

LABELS, NAMES = torch.tensor([0, 2, 1]), ("first", "second", "third")
BY_CAPTUM = {
    name: partial(Attribution, name, baseline=torch.full((2, 1, 1), 0.3)) for name in ATTRIBUTIONS
}
METHODS = {
    "LABN": LabnAttention,
    "lambda attention 0": lambda model: LambdaAttention(model, 0),
    "RISE": lambda model: Rise(predict=predictor(model), num_masks=6, batch_size=4),
    "Grad-CAM": GradCam,
    "input gradient": InputGradient,
    "random": lambda _: RandomMap(seed=0),
    "centre": lambda _: CentredGaussian(),
    "edges": lambda _: EdgeEnergy(),
    "guided backpropagation": GuidedBackpropagation,
    "Score-CAM": lambda model: ScoreCam(model, 3),
    "lambda rollout": LambdaRollout,
    **BY_CAPTUM,
}
OF_ANY_CLASSIFIER = {
    "RISE": lambda model: Rise(predict=predictor(model), num_masks=6),
    "Grad-CAM": lambda model: GradCam(model, model[0]),
    "input gradient": InputGradient,
    "guided backpropagation": GuidedBackpropagation,
    **BY_CAPTUM,
}
CLASS_SPECIFIC = (*OF_ANY_CLASSIFIER, "Score-CAM")
each_method = pytest.mark.parametrize("name", METHODS)
each_split = pytest.mark.parametrize("split", [0, 1])
# Sums in another order, in float64; lambda attention divides by the map's range.
ROUNDING = {"rtol": 1e-9, "atol": 1e-9}


@each_method
def test_it_keeps_to_the_protocol_under_its_name(name):
    method = METHODS[name](make_labn())
    assert isinstance(method, Method)
    assert method.name == name


@each_method
@each_split
def test_a_map_is_finite_and_has_its_images_size_and_type(name, split):
    model = make_labn(split=split, dtype=torch.float32)
    images = make_images(dtype=torch.float32)
    maps = METHODS[name](model).explain(images, LABELS, NAMES)
    assert maps.shape == (3, 24, 32)
    assert maps.dtype == torch.float32
    assert maps.isfinite().all()
    assert maps.min() < maps.max()


@each_method
@each_split
def test_a_map_does_not_depend_on_which_images_share_the_batch(name, split):
    method, images = METHODS[name](make_labn(split=split)), make_images()
    together = method.explain(images, LABELS, NAMES)
    for order in ([0], [2, 1]):
        apart = method.explain(images[order], LABELS[order], [NAMES[i] for i in order])
        torch.testing.assert_close(apart, together[order], **ROUNDING)


@each_method
@each_split
def test_the_class_matters_to_those_methods_that_explain_one(name, split):
    method, images = METHODS[name](make_labn(split=split)), make_images()
    first, other = (method.explain(images, labels, NAMES) for labels in (LABELS, 2 - LABELS))
    # The third image's label is 1 both times.
    differ = [not torch.allclose(a, b, **ROUNDING) for a, b in zip(first, other, strict=True)]
    assert differ == [name in CLASS_SPECIFIC, name in CLASS_SPECIFIC, False]


def state_of(model):
    return {
        "tensors": {key: value.clone() for key, value in model.state_dict().items()},
        "gradients": [copy.deepcopy(p.grad) for p in model.parameters()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "training": [module.training for module in model.modules()],
        "hooks": [
            len(hooks)
            for module in model.modules()
            for hooks in (module._forward_hooks, module._forward_pre_hooks)
        ],
        "num_attributes": [len(vars(module)) for module in model.modules()],
    }


@each_method
@each_split
def test_the_network_and_the_images_are_left_as_they_were(name, split):
    model, images = make_labn(split=split), make_images()
    model(images).logits.sum().backward()
    if name != "RISE":  # which asks a function, whose mode is its owner's affair
        model.train()
    model.stem.bn1.eval()
    model.stem.bn1.requires_grad_(False)
    before, pixels = state_of(model), images.clone()
    METHODS[name](model).explain(images, LABELS, NAMES)
    after = state_of(model)
    assert any(gradient is not None for gradient in before["gradients"])
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert torch.equal(images, pixels)
    assert images.grad is None
    assert not images.requires_grad


@each_method
def test_the_networks_mode_returns_even_when_it_fails(name):
    model = make_labn().train()
    model.fc.forward = fail
    method = METHODS[name](model)
    if name in ("random", "centre", "edges"):
        method.explain(make_images(), LABELS, NAMES)
    else:
        with pytest.raises(RuntimeError, match="no memory"):
            method.explain(make_images(), LABELS, NAMES)
    assert all(module.training for module in model.modules())


def fail(_):
    raise RuntimeError("no memory")


@each_method
@each_split
def test_it_works_where_gradients_are_forbidden(name, split):
    method, images = METHODS[name](make_labn(split=split)), make_images()
    expected = method.explain(images, LABELS, NAMES)
    assert not expected.requires_grad
    with torch.inference_mode():
        maps = method.explain(images + 0, LABELS + 0, NAMES)
    torch.testing.assert_close(maps.clone(), expected, **ROUNDING)
    with torch.no_grad():
        maps = method.explain(images, LABELS, NAMES)
    torch.testing.assert_close(maps, expected, **ROUNDING)


@each_method
@each_split
def test_it_works_under_autocast_after_a_pass_without_gradients(name, split):
    model = make_labn(split=split, theta_alpha=0.0, dtype=torch.float32)
    images = make_images(dtype=torch.float32)
    method = METHODS[name](model)
    expected = method.explain(images, LABELS, NAMES)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        model(images)
        maps = method.explain(images, LABELS, NAMES)
    assert maps.dtype == torch.float32
    # bfloat16 keeps 8 bits, and the errors of several layers add up.
    assert torch.corrcoef(torch.stack([maps.flatten(), expected.flatten()]))[0, 1] > 0.9


@pytest.mark.parametrize("name", OF_ANY_CLASSIFIER)
def test_any_classifier_is_explained(name):
    method = OF_ANY_CLASSIFIER[name](make_classifier())
    images = make_images()
    maps = method.explain(images, LABELS, NAMES)
    assert isinstance(method, Method)
    assert maps.shape == (3, 24, 32)
    other = method.explain(images, 2 - LABELS, NAMES)
    assert not torch.allclose(maps[0], other[0])
