from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from labn.metrics.classification import classification_scores

ROUNDING = 1e-12


def random_case(seed, num_images, num_classes, levels=None):
    """Random predictions; few `levels` make tied probabilities."""
    rng = np.random.default_rng(seed)
    weights = rng.random((num_images, num_classes))
    if levels is not None:
        weights = np.ceil(weights * levels)
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    labels = rng.integers(0, num_classes, num_images)
    labels[:num_classes] = np.arange(num_classes)
    return probabilities, labels


def score(probabilities, labels):
    return classification_scores(torch.as_tensor(probabilities), torch.as_tensor(labels))


def pairwise_auroc(scores, is_positive):
    """The chance that a positive outranks a negative, ties counting half."""
    wins, pairs = 0.0, 0
    for positive in scores[is_positive]:
        for negative in scores[~is_positive]:
            wins += 1.0 if positive > negative else 0.5 if positive == negative else 0.0
            pairs += 1
    return wins / pairs


@pytest.mark.parametrize("levels", [None, 3])
def test_the_auroc_of_two_classes_counts_pairs_that_are_ranked_right(levels):
    probabilities, labels = random_case(0, 60, 2, levels)
    expected = pairwise_auroc(probabilities[:, 1], labels == 1)
    assert score(probabilities, labels).auroc == pytest.approx(expected, abs=ROUNDING)


@pytest.mark.parametrize("levels", [None, 3])
def test_the_auroc_of_several_classes_is_the_mean_of_each_against_the_rest(levels):
    probabilities, labels = random_case(1, 60, 4, levels)
    expected = np.mean([pairwise_auroc(probabilities[:, c], labels == c) for c in range(4)])
    assert score(probabilities, labels).auroc == pytest.approx(expected, abs=ROUNDING)


def test_a_class_that_never_occurs_does_not_lower_the_auroc():
    probabilities, labels = random_case(2, 50, 3)
    labels[labels == 1] = 0
    expected = np.mean([pairwise_auroc(probabilities[:, c], labels == c) for c in (0, 2)])
    assert score(probabilities, labels).auroc == pytest.approx(expected, abs=ROUNDING)


@pytest.mark.parametrize("num_classes", [2, 5])
def test_accuracy_and_confusion_count_images(num_classes):
    probabilities, labels = random_case(3, 70, num_classes)
    confusion = np.zeros((num_classes, num_classes), dtype=int)
    for row, label in zip(probabilities, labels, strict=True):
        confusion[label, np.argmax(row)] += 1
    scores = score(probabilities, labels)
    np.testing.assert_array_equal(scores.confusion, confusion)
    assert scores.accuracy == np.trace(confusion) / 70
    assert scores.num_images == 70


def test_the_papers_confusion_matrix_gives_its_true_skill():
    # Table 3, magnetograms: TP 161, TN 7566, FP 243, FN 20.
    predicted = np.repeat([1, 0, 1, 0], [161, 7566, 243, 20])
    labels = np.repeat([1, 0, 0, 1], [161, 7566, 243, 20])
    scores = score(np.eye(2)[predicted], labels)
    assert scores.tss == pytest.approx(161 / 181 - 243 / 7809, rel=1e-14)
    assert scores.confusion.tolist() == [[7566, 243], [20, 161]]


def test_true_skill_takes_every_class_but_the_first_as_positive():
    probabilities, labels = random_case(4, 80, 4)
    flagged = probabilities.argmax(axis=1) >= 1
    expected = flagged[labels >= 1].mean() - flagged[labels == 0].mean()
    assert score(probabilities, labels).tss == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone_leaves_auroc_and_true_skill_undefined(num_classes, label):
    probabilities, _ = random_case(5, 6, num_classes)
    scores = score(probabilities, np.full(6, label))
    assert math.isnan(scores.auroc)
    assert math.isnan(scores.tss)
    assert scores.accuracy == np.mean(probabilities.argmax(axis=1) == label)
    assert scores.as_metrics("val") == {"val_accuracy": scores.accuracy}


def test_positives_of_two_kinds_without_a_negative_still_have_an_auroc():
    probabilities, _ = random_case(6, 20, 3)
    labels = np.arange(20) % 2 + 1
    scores = score(probabilities, labels)
    expected = np.mean([pairwise_auroc(probabilities[:, c], labels == c) for c in (1, 2)])
    assert scores.auroc == pytest.approx(expected, abs=ROUNDING)
    assert math.isnan(scores.tss)


def test_no_images_leave_every_score_undefined():
    scores = score(np.zeros((0, 3)), np.zeros(0, dtype=int))
    assert scores.as_metrics("val") == {}
    assert scores.num_images == 0
    assert scores.confusion.tolist() == [[0, 0, 0]] * 3


def test_metrics_carry_the_prefix():
    scores = score(*random_case(7, 30, 2))
    assert scores.as_metrics("test") == {
        "test_accuracy": scores.accuracy,
        "test_auroc": scores.auroc,
        "test_tss": scores.tss,
    }


def test_a_perfect_classifier_scores_one_everywhere():
    labels = np.arange(12) % 3
    scores = score(np.eye(3)[labels], labels)
    assert (scores.accuracy, scores.auroc, scores.tss) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([2.0, -1.0], r"probabilities: got \[2\.0, -1\.0\] in row 1, must be probabilities"),
        ([0.5, 0.502], r"in row 1"),
        ([math.nan, 1.0], r"in row 1"),
    ],
)
def test_a_row_that_is_not_a_distribution_is_refused(row, message):
    with pytest.raises(ValueError, match=message):
        score(np.array([[0.5, 0.5], row]), np.array([0, 1]))


def test_probabilities_may_be_rounded_to_half_precision():
    rows = torch.tensor([[0.3337, 0.6667], [0.1, 0.9]]).half().float()
    assert classification_scores(rows, torch.tensor([1, 1], dtype=torch.uint8)).accuracy == 1.0


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_that_names_no_class_is_refused(label):
    with pytest.raises(ValueError, match=f"labels: got {label} for image 1, must be 0 to 1"):
        score(np.full((2, 2), 0.5), np.array([0, label]))


def test_a_single_class_is_refused():
    with pytest.raises(ValueError, match=r"probabilities: got shape \(2, 1\).*two classes"):
        score(np.ones((2, 1)), np.array([0, 0]))


def test_probabilities_may_be_as_wrong_as_their_type_rounds_them():
    rows, labels = torch.tensor([[0.4355, 0.5625], [0.9, 0.1]]), torch.tensor([1, 0])
    assert classification_scores(rows.bfloat16(), labels).accuracy == 1.0
    with pytest.raises(ValueError, match="in row 0, must be probabilities"):
        classification_scores(rows, labels)


def test_labels_that_are_no_integers_are_refused_rather_than_cut():
    with pytest.raises(ValueError, match=r"labels: got torch.float32 of shape \(2,\)"):
        classification_scores(torch.full((2, 2), 0.5), torch.tensor([0.0, 1.7]))
