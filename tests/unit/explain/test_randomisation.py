from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from explained import CHANNELS, make_classifier, make_images, make_labn

from labn.explain import randomisation
from labn.explain.attention import LabnAttention, LambdaAttention
from labn.explain.controls import CentredGaussian, EdgeEnergy, RandomMap
from labn.explain.gradients import GradCam, InputGradient
from labn.explain.randomisation import (
    SanityCheck,
    cascade,
    complexity_rise,
    layer_groups,
    other_classes,
)

METHODS = {
    "LABN": LabnAttention,
    "lambda attention 0": lambda model: LambdaAttention(model, 0),
    "Grad-CAM": GradCam,
    "input gradient": InputGradient,
    "random": lambda _: RandomMap(seed=0),
    "centre": lambda _: CentredGaussian(),
    "edges": lambda _: EdgeEnergy(),
}
CONTROLS = ("random", "centre", "edges")
STAGES = {0: ("linear", "LPB 0", "LAB", "stem"), 1: ("linear", "LAB", "LFE 0", "stem")}
PREFIXES = {
    "linear": "fc.",
    "LPB 0": "bottlenecks.0.",
    "LFE 0": "bottlenecks.0.",
    "LAB": "attention_branch.",
    "stem": "stem.",
}
NUM_IMAGES = 3
each_split = pytest.mark.parametrize("split", [0, 1])


def make_methods(model):
    return [make(model) for make in METHODS.values()]


def run(split=0, *, num_images=NUM_IMAGES, methods=make_methods, model=None, **options):
    model = make_labn(split=split, seed=0) if model is None else model
    images, names = make_images(num_images), [str(number) for number in range(num_images)]
    labels = torch.arange(num_images) % 3
    return cascade(model, make_labn(split=split, seed=1), methods, images, labels, names, **options)


def spearman(map_a, map_b):
    """From ranks that are counted: a tie takes the mean of its places; NaN without any order."""
    ranks = []
    for values in (map_a.ravel(), map_b.ravel()):
        below = (values[:, None] > values).sum(axis=1)
        level = (values[:, None] == values).sum(axis=1)
        ranks.append(below + (level - 1) / 2)
    a, b = (rank - rank.mean() for rank in ranks)
    return (a @ b) / np.sqrt((a @ a) * (b @ b)) if a.any() and b.any() else np.nan


@pytest.mark.parametrize("split", [0, 5, 16])
def test_the_groups_hold_every_layer_once_from_the_output_to_the_image(split):
    model = make_labn("lambda_resnet50", split=split, dtype=torch.float32)
    groups = layer_groups(model)
    behind = [f"LPB {index}" for index in reversed(range(split, 16))]
    before = [f"LFE {index}" for index in reversed(range(split))]
    assert [name for name, _ in groups] == ["linear", *behind, "LAB", *before, "stem"]
    held = [
        id(value) for _, layers in groups for value in layers.state_dict(keep_vars=True).values()
    ]
    assert sorted(held) == sorted(map(id, model.state_dict(keep_vars=True).values()))


@each_split
def test_each_stage_compares_the_maps_of_a_network_that_is_untrained_from_there_on(split):
    check = run(split)
    assert check.stages == STAGES[split]
    trained, untrained = (make_labn(split=split, seed=seed) for seed in (0, 1))
    images, labels = make_images(NUM_IMAGES), torch.arange(NUM_IMAGES) % 3
    names = [str(number) for number in range(NUM_IMAGES)]
    mixed = copy.deepcopy(trained.state_dict())
    for place, stage in enumerate(check.stages):
        for key, value in untrained.state_dict().items():
            if key.startswith(PREFIXES[stage]):
                mixed[key] = value
        network = make_labn(split=split, seed=2)
        network.load_state_dict(mixed)
        for name, make in METHODS.items():
            before, after = (
                make(model).explain(images, labels, names).numpy() for model in (trained, network)
            )
            expected = [spearman(*pair) for pair in zip(before, after, strict=True)]
            # Both are float64 sums over 768 ranks.
            np.testing.assert_allclose(
                check.correlations[name][place], expected, rtol=0, atol=1e-9, err_msg=name
            )


@each_split
def test_labns_map_changes_with_the_attention_branch_and_not_before(split):
    check = run(split)
    first = check.stages.index("LAB")
    correlations = check.correlations["LABN"]
    np.testing.assert_allclose(correlations[:first], 1, rtol=0, atol=1e-12)
    assert (correlations[first:] < 0.9).all()


@each_split
def test_lambda_attention_does_not_depend_on_what_comes_after_its_layer(split):
    check = run(split)
    correlations = check.correlations["lambda attention 0"]
    first = check.stages.index(f"{'LFE' if split else 'LPB'} 0")
    np.testing.assert_allclose(correlations[:first], 1, rtol=0, atol=1e-12)
    assert (correlations[first:] < 0.999).all()


@each_split
def test_controls_stay_what_they_are_and_maps_of_the_class_change_at_once(split):
    correlations = run(split).correlations
    for name in CONTROLS:
        np.testing.assert_allclose(correlations[name], 1, rtol=0, atol=1e-12, err_msg=name)
    for name in ("Grad-CAM", "input gradient"):
        # Grad-CAM's may also become constant: nothing speaks for the class any more.
        assert not (correlations[name][0] > 1 - 1e-6).any(), name


def test_the_trained_network_is_left_as_it_was():
    model = make_labn(seed=0).train()
    before = copy.deepcopy(model.state_dict())
    run(model=model)
    assert all(module.training for module in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())


def test_images_beyond_one_batch_are_compared_with_themselves(monkeypatch):
    monkeypatch.setattr(randomisation, "_BATCH_SIZE", 2)
    many, few = run(num_images=5), run(num_images=2)
    for name, values in many.correlations.items():
        assert values.shape == (4, 5), name
        np.testing.assert_allclose(
            values[:, :2], few.correlations[name], rtol=0, atol=1e-6, err_msg=name
        )


def test_every_stage_is_reported():
    received = []
    run(
        methods=lambda model: [EdgeEnergy()],
        on_stage=lambda done, total: received.append((done, total)),
    )
    assert received == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_networks_of_another_make_are_refused():
    other = make_labn(split=1)
    with pytest.raises((RuntimeError, ValueError)):
        cascade(make_labn(split=0), other, make_methods, make_images(1), torch.tensor([0]), ["one"])


class Flat:
    """A map that has no order, of the first image only."""

    name = "flat"

    def explain(self, images, labels, names):
        maps = images[:, 0].clone()
        maps[0] = 0.5
        return maps


def test_a_constant_map_has_no_correlation_and_is_left_out_of_the_mean():
    check = run(methods=lambda _: [Flat()])
    assert np.isnan(check.correlations["flat"][:, 0]).all()
    rows = check.as_rows()
    assert [row["num_images"] for row in rows] == [2] * 4
    assert rows[0]["mean"] == pytest.approx(1, abs=1e-12)
    assert rows[0]["std"] == pytest.approx(0, abs=1e-12)


def test_rows_have_mean_and_deviation_over_the_images():
    values = np.array([[0.5, 0.1, 0.3], [-0.2, np.nan, np.nan], [np.nan] * 3])
    check = SanityCheck(
        stages=("linear", "LAB", "stem"),
        correlations={"a": values, "b": -values},
        random_logit={"a": values[0]},
        complexity_rise={"a": values[2]},
    )
    first, second, third, *others = check.as_rows()
    assert first == {
        "method": "a",
        "stage": "linear",
        "mean": pytest.approx(0.3),
        # Squared distances 0.04, 0.04 and 0 over two degrees of freedom.
        "std": pytest.approx(0.2),
        "num_images": 3,
    }
    assert (second["mean"], second["std"], second["num_images"]) == (-0.2, None, 1)
    assert (third["mean"], third["std"], third["num_images"]) == (None, None, 0)
    assert [(row["method"], row["stage"]) for row in others] == [
        ("b", stage) for stage in check.stages
    ]
    assert others[0]["mean"] == pytest.approx(-0.3)
    assert check.as_figures() == [
        {
            "method": "a",
            "figure": "random logit",
            "mean": pytest.approx(0.3),
            "std": pytest.approx(0.2),
            "num_images": 3,
        },
        {"method": "a", "figure": "complexity rise", "mean": None, "std": None, "num_images": 0},
    ]


def test_the_random_logit_compares_with_the_map_of_another_class():
    check = run()
    names, labels = [str(number) for number in range(NUM_IMAGES)], torch.arange(NUM_IMAGES) % 3
    others = other_classes(labels, names, 3, seed=0)
    model = make_labn(seed=0)
    for name, make in METHODS.items():
        maps, of_others = (
            make(model).explain(make_images(NUM_IMAGES), classes, names).numpy()
            for classes in (labels, others)
        )
        expected = [spearman(*pair) for pair in zip(maps, of_others, strict=True)]
        np.testing.assert_allclose(check.random_logit[name], expected, rtol=0, atol=1e-9)
    for name in (*CONTROLS, "LABN"):
        np.testing.assert_allclose(check.random_logit[name], 1, rtol=0, atol=1e-12)
    assert (check.random_logit["input gradient"] < 0.999).all()


def test_another_class_is_never_the_own_and_every_other_is_drawn():
    names = [str(number) for number in range(60)]
    for label in range(3):
        others = other_classes(torch.full((60,), label), names, 3, seed=1)
        assert set(others.tolist()) == {0, 1, 2} - {label}
    assert other_classes(torch.tensor([0, 1]), ["a", "b\udcff"], 2, seed=0).tolist() == [1, 0]


def test_the_rise_in_complexity_is_that_of_the_entropy_of_a_histogram():
    two, four = np.arange(8) // 4, np.arange(8) // 2
    flat, before = np.ones(8), np.stack([two, four]).reshape(2, 2, 4).astype(float)

    rise = complexity_rise(before, np.stack([four, two]).reshape(2, 2, 4) * 1e-6)

    # Of log 2 and log 4.
    np.testing.assert_allclose(rise, [1, -0.5], rtol=1e-12)
    assert complexity_rise(before[:1], flat.reshape(1, 2, 4)).tolist() == [-1]
    assert np.isnan(complexity_rise(flat.reshape(1, 2, 4), before[:1])).all()


def test_a_network_without_trained_weights_ends_the_cascade_and_gives_the_rise():
    check = run()
    images, labels = make_images(NUM_IMAGES), torch.arange(NUM_IMAGES) % 3
    maps = [
        InputGradient(make_labn(seed=seed)).explain(images, labels, ["a", "b", "c"]).numpy()
        for seed in (0, 1)
    ]
    np.testing.assert_allclose(
        check.complexity_rise["input gradient"], complexity_rise(*maps), rtol=1e-9
    )
    for name in CONTROLS:
        np.testing.assert_allclose(check.complexity_rise[name], 0, atol=1e-12)


def test_quantus_agrees_on_both_figures():
    """On the same maps, for the classes that Quantus draws."""
    quantus = pytest.importorskip("quantus")
    model = make_classifier(dtype=torch.float32).eval()
    first = model[0].weight.detach().clone()
    rng = np.random.default_rng(5)
    images, labels = rng.random((4, CHANNELS, 24, 32)).astype(np.float32), np.array([0, 1, 2, 1])
    maps, untrained = rng.random((2, 4, 24, 32)) ** np.array([3, 1]).reshape(2, 1, 1, 1)
    of_class = rng.random((3, 24, 32))
    drawn = []

    def explain(model, inputs, targets, **_):
        if not torch.equal(model[0].weight.cpu(), first):
            return untrained[:, None]
        if np.array_equal(targets, labels):
            return maps[:, None]
        drawn.extend(targets)
        return of_class[targets][:, None]

    given = {"x_batch": images, "y_batch": labels, "a_batch": maps[:, None]}
    given |= {"model": model, "explain_func": explain, "device": "cpu"}
    quiet = {"disable_warnings": True}
    similarity = quantus.similarity_func.correlation_spearman

    rises = quantus.EfficientMPRT(**quiet)(**given)
    logits = quantus.RandomLogit(similarity_func=similarity, num_classes=3, **quiet)(**given)

    np.testing.assert_allclose(complexity_rise(maps, untrained), rises, rtol=1e-9)
    assert not np.any(np.array(drawn) == labels)
    expected = [spearman(a, of_class[target]) for a, target in zip(maps, drawn, strict=True)]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-9)
