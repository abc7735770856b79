"""Confidence: bins, expected error and temperature, against loops; PID at matched confidence."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from labn.metrics.calibration import fit_temperature, reliability, tempered
from labn.metrics.faithfulness import patch_insertion_deletion


def draw(seed, num_images=60, num_classes=3, scale=2.0):
    rng = np.random.default_rng(seed)
    logits = scale * rng.standard_normal((num_images, num_classes))
    labels = [rng.choice(num_classes, p=softmax(row / 3)) for row in logits]
    return torch.from_numpy(logits), torch.tensor(labels)


def softmax(logits):
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_bins", [1, 4, 15])
def test_the_expected_error_is_the_mean_gap_of_the_bins(seed, num_bins):
    logits, labels = draw(seed)
    probabilities = logits.softmax(1)
    bins = reliability(probabilities, labels, num_bins)

    expected = 0.0
    for number in range(num_bins):
        low, high = number / num_bins, (number + 1) / num_bins
        members = [
            (max(row), int(np.argmax(row)) == label)
            for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True)
            if low < max(row) <= high
        ]
        assert bins.counts[number] == len(members)
        if members:
            confidence, accuracy = np.mean(members, axis=0)
            assert bins.confidence[number].item() == pytest.approx(confidence)
            assert bins.accuracy[number].item() == pytest.approx(accuracy)
            expected += len(members) / len(labels) * abs(confidence - accuracy)
    assert bins.expected_error == pytest.approx(expected)
    assert bins.counts.sum() == len(labels)


def test_a_certain_prediction_is_in_the_last_bin():
    bins = reliability(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    assert bins.counts.tolist() == [0] * 14 + [2]
    assert bins.expected_error == pytest.approx(0.5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_tempered_probabilities_are_those_of_divided_logits(temperature):
    logits, _ = draw(1)
    expected = (logits / temperature).softmax(1)
    torch.testing.assert_close(tempered(logits.softmax(1), temperature), expected)


@pytest.mark.parametrize("seed", range(3))
def test_the_temperature_minimises_the_cross_entropy(seed):
    logits, labels = draw(seed)

    def loss(temperature):
        rows = [softmax(row / temperature) for row in logits.numpy()]
        return -np.mean([np.log(row[y]) for row, y in zip(rows, labels.tolist(), strict=True)])

    found = fit_temperature(logits.softmax(1), labels)
    grid = np.exp(np.linspace(-3, 3, 2001))
    assert loss(found) <= min(loss(t) for t in grid) + 1e-9
    # Logits times 4 need 4 times the temperature.
    assert fit_temperature((4 * logits).softmax(1), labels) == pytest.approx(4 * found, rel=1e-3)


def test_the_temperature_of_a_network_that_is_always_right_is_bounded():
    probabilities, labels = torch.tensor([[0.6, 0.4], [0.45, 0.55]]), torch.tensor([0, 1])
    assert fit_temperature(probabilities, labels) == pytest.approx(1 / 20, rel=0.05)


@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_pid_at_matched_confidence_does_not_depend_on_the_logits_scale(scale):
    """The PID itself does: this is the worked example of docs/explanations.md."""
    rng = np.random.default_rng(0)
    weights = torch.from_numpy(rng.standard_normal((3 * 12 * 12, 2))) / 20
    images = torch.from_numpy(rng.standard_normal((4, 3, 12, 12)))
    saliency, labels = torch.from_numpy(rng.random((4, 12, 12))), torch.tensor([0, 1, 1, 0])

    def predict(frames):
        return (scale * frames.flatten(1) @ weights).softmax(1)

    def score(**settings):
        return patch_insertion_deletion(
            predict, images, saliency, labels, patch_size=3, baseline=0.0, **settings
        )

    scores = score(temperature=2 * scale)
    assert torch.equal(scores.pid, score().pid)
    assert score().matched is None

    def halved(frames):
        return (frames.flatten(1) @ weights / 2).softmax(1)

    expected = patch_insertion_deletion(
        halved, images, saliency, labels, patch_size=3, baseline=0.0
    )
    for name, value in vars(expected).items():
        if value is not None:
            torch.testing.assert_close(getattr(scores.matched, name), value, rtol=0, atol=1e-12)
    assert math.isclose(scores.matched.pid[0], scores.pid[0], abs_tol=1e-3) is False
