from __future__ import annotations

import copy
import math

import pytest
import torch
from small_run import (
    FAITHFULNESS,
    evaluation_batches,
    make_model,
    make_objective,
    make_subset,
)

from labn.errors import RunFailed
from labn.metrics.calibration import fit_temperature
from labn.metrics.faithfulness import patch_insertion_deletion
from labn.model.network import build_model, upsample_attention
from labn.training.evaluate import Faithfulness, evaluate, predictor
from labn.training.losses import kept_pixels

SUBSET = make_subset(9, seed=6, labels=[0, 1, 1, 0, 1, 0, 0, 1, 1])
POSITIVES = [1, 2, 4, 7, 8]
BATCH_SIZES = [1, 2, 4, 9, 64]


@pytest.fixture(scope="module")
def model():
    """An untrained network whose running statistics and heads are not those of a fresh one."""
    model = make_model(seed=4)
    with torch.no_grad():
        model.fc.weight.mul_(20)
        for batch in evaluation_batches(9, SUBSET):
            model.train()(batch.images)
    return model.eval()


def whole(subset=SUBSET):
    return next(iter(evaluation_batches(len(subset), subset)))


def score(model, *, subset=SUBSET, batch_size=4, objective=None, **settings):
    return evaluate(
        model,
        evaluation_batches(batch_size, subset),
        objective or make_objective(),
        Faithfulness(**({"patch_size": 8, "num_points": 4} | settings)),
    )


def direct_pid(model, saliency, positions):
    batch = whole()
    return patch_insertion_deletion(
        predictor(model),
        batch.images[positions],
        saliency[positions],
        batch.labels[positions],
        patch_size=8,
        baseline=make_objective().bias_image,
        num_points=4,
    )


def attention_maps(model):
    with torch.inference_mode():
        return upsample_attention(model(whole().images).attention, (24, 24))


def slow_loss(model, objective):
    """Eq. 8 over the subset, one image at a time, with the formulas in float64."""
    batch = whole()
    weighted = {"lpb": 0.0, "lab": 0.0}
    total_weight = divergence = 0.0
    for image, label in zip(batch.images, batch.labels.tolist(), strict=True):
        with torch.inference_mode():
            output = model(image[None])
            is_kept = kept_pixels(output.attention, (24, 24), objective.theta_b, "share")
            masked = torch.where(is_kept[:, None], image[None], objective.bias_image)
            assert not torch.equal(masked[0], image)
            log_q = model(masked).logits.double().log_softmax(1)[0].tolist()
        log_p = output.logits.double().log_softmax(1)[0].tolist()
        log_branch = output.branch_logits.double().log_softmax(1)[0].tolist()
        weight = objective.class_weights[label].item()
        weighted["lpb"] -= weight * log_p[label]
        weighted["lab"] -= weight * log_branch[label]
        total_weight += weight
        divergence += sum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True))
    lpb, lab = weighted["lpb"] / total_weight, weighted["lab"] / total_weight
    kl = divergence / len(batch)
    total = lpb + objective.lambda_lab * lab + objective.lambda_kl * kl
    return {"loss": total, "loss_lpb": lpb, "loss_lab": lab, "loss_kl": kl}


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_the_loss_is_eq_8_over_the_whole_subset_whatever_the_batches(model, batch_size):
    objective = make_objective(
        class_weights=torch.tensor([2.0, 0.5]), lambda_lab=0.4, lambda_kl=3.0
    )

    metrics = score(model, batch_size=batch_size, objective=objective).as_metrics("val")

    expected = slow_loss(model, objective)
    assert expected["loss_kl"] > 1e-4
    for name, value in expected.items():
        # A float32 network; the divergence is a small difference of numbers of about 1.
        assert metrics[f"val_{name}"] == pytest.approx(value, rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
@pytest.mark.parametrize("max_positives", [None, 1, 3, 50])
def test_pid_is_that_of_the_first_positives_and_the_networks_attention(
    model, batch_size, max_positives
):
    evaluation = score(model, batch_size=batch_size, max_positives=max_positives)

    chosen = POSITIVES[:max_positives]
    expected = direct_pid(model, attention_maps(model), chosen)
    for name in ("pid", "insertion_auc", "deletion_auc", "insertion_curve", "deletion_curve"):
        actual = getattr(evaluation.pid, name)
        # Probabilities of a float32 network in batches of other sizes.
        torch.testing.assert_close(actual, getattr(expected, name), rtol=0, atol=1e-6)
    assert torch.equal(evaluation.pid.fractions, expected.fractions)
    mean = evaluation.as_metrics("test")["test_pid"]
    assert mean == pytest.approx(expected.pid.mean().item(), abs=1e-6)
    assert expected.pid.abs().max() > 1e-3
    batch = whole()
    matched = patch_insertion_deletion(
        predictor(model),
        batch.images[chosen],
        attention_maps(model)[chosen],
        batch.labels[chosen],
        patch_size=8,
        baseline=make_objective().bias_image,
        num_points=4,
        temperature=fit_temperature(evaluation.probabilities, evaluation.labels),
    ).matched
    found = evaluation.as_metrics("test")["test_pid_matched"]
    assert found == pytest.approx(matched.pid.mean().item(), abs=1e-6)


def test_the_gain_over_the_centre_prior_is_a_difference_at_matched_confidence(model):
    evaluation = score(model, centre=True)

    place = torch.arange(24) - 11.5
    bump = torch.exp(-(place[:, None] ** 2 + place**2) / (2 * 6**2))
    batch = whole()
    temperature = fit_temperature(evaluation.probabilities, evaluation.labels)
    attended, centred = (
        patch_insertion_deletion(
            predictor(model), batch.images[POSITIVES], maps, batch.labels[POSITIVES],
            patch_size=8, baseline=make_objective().bias_image, num_points=4,
            temperature=temperature,
        ).matched.pid
        for maps in (attention_maps(model)[POSITIVES], bump.expand(len(POSITIVES), 24, 24))
    )  # fmt: skip
    found = evaluation.as_metrics("val")["val_pid_over_centre"]
    assert found == pytest.approx((attended - centred).mean().item(), abs=1e-6)
    assert abs(found) > 1e-3


def test_a_subset_without_positives_has_no_pid(model):
    negatives = make_subset(4, seed=8, labels=[0, 0, 0, 0])

    evaluation = score(model, subset=negatives)

    assert evaluation.pid is None
    metrics = evaluation.as_metrics("val")
    assert not [name for name in metrics if "pid" in name]
    assert {"val_loss", "val_accuracy", "val_bias_probability"} <= metrics.keys()
    assert all(math.isfinite(value) for value in metrics.values())


def test_pid_is_left_out_where_it_is_not_asked_for(model):
    evaluation = evaluate(model, evaluation_batches(4, SUBSET), make_objective(), None)

    assert evaluation.pid is None
    expected = score(model).as_metrics("val")
    expected.pop("val_pid")
    expected.pop("val_pid_matched")
    assert evaluation.as_metrics("val") == expected


def test_every_class_but_the_first_is_positive_and_scored_by_its_own_probability():
    torch.manual_seed(2)
    model = build_model("lambda_cnn", num_classes=3, split=1, theta_alpha=0.0).eval()
    subset = make_subset(6, seed=9, labels=[2, 0, 1, 0, 2, 1])
    evaluation = score(model, subset=subset)

    # With all patches inserted, and with none deleted, the network sees the image itself.
    own = evaluation.probabilities[[0, 2, 4, 5], [2, 1, 2, 1]].double()
    curves = evaluation.pid.insertion_curve[:, -1], evaluation.pid.deletion_curve[:, 0]
    for ends in curves:
        torch.testing.assert_close(ends, own, rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch_size", [2, 9])
def test_predictions_are_in_the_order_of_the_part(model, batch_size):
    evaluation = score(model, batch_size=batch_size)

    assert evaluation.names == SUBSET.names
    assert evaluation.labels.tolist() == SUBSET.labels.tolist()
    for position, image in enumerate(whole().images):
        with torch.inference_mode():
            expected = model(image[None]).logits.softmax(dim=1)[0]
        torch.testing.assert_close(evaluation.probabilities[position], expected)
    accuracy = (evaluation.probabilities.argmax(1) == evaluation.labels).double().mean().item()
    assert evaluation.as_metrics("val")["val_accuracy"] == pytest.approx(accuracy)


def test_the_bias_images_probability_is_that_of_being_positive(model):
    objective = make_objective()
    with torch.inference_mode():
        expected = model(objective.bias_image[None]).logits.softmax(dim=1)[0, 1].item()

    evaluation = score(model, objective=objective)

    assert evaluation.bias_probability == pytest.approx(expected, abs=1e-6)
    assert evaluation.as_metrics("val")["val_bias_probability"] == evaluation.bias_probability


def test_certainty_is_the_probability_of_the_true_class(model):
    evaluation = score(model)
    metrics = evaluation.as_metrics("val")
    own = [evaluation.probabilities[place, 1].item() for place in POSITIVES]
    assert metrics["val_p_image"] == pytest.approx(sum(own) / len(own))
    assert metrics["val_p_bias"] == pytest.approx(metrics["val_bias_probability"])
    assert evaluation.certainty([0])["p_image"] == evaluation.probabilities[0, 0].item()
    assert evaluation.certainty([0])["p_bias"] == evaluation.bias_probabilities[0].item()
    assert 0 < metrics["val_ece"] < 1


def test_the_attended_area_is_the_share_of_positives_above_the_threshold(model):
    attentive = copy.deepcopy(model)
    attentive.theta_alpha = float(attention_maps(model).median())
    evaluation = score(attentive)
    expected = (attention_maps(model) > attentive.theta_alpha).double().mean(dim=(1, 2))
    assert evaluation.attended.tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    metrics = evaluation.as_metrics("val")
    assert metrics["val_attended_area"] == pytest.approx(
        expected[POSITIVES].mean().item(), abs=1e-6
    )
    assert 0.1 < metrics["val_attended_area"] < 0.9


def test_scoring_leaves_the_network_as_it_is_and_out_of_training(model):
    scored = copy.deepcopy(model).train()
    before = copy.deepcopy(scored.state_dict())

    score(scored)

    assert not any(module.training for module in scored.modules())
    for name, value in scored.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in scored.parameters())


@pytest.mark.parametrize(("batch_size", "num_calls"), [(2, 5), (9, 1)])
def test_every_batch_is_announced(model, batch_size, num_calls):
    calls = []
    evaluate(
        model,
        evaluation_batches(batch_size, SUBSET),
        make_objective(),
        FAITHFULNESS,
        on_batch=lambda: calls.append(None),
    )

    assert len(calls) == num_calls


@pytest.mark.parametrize("parameter", ["fc.weight", "attention_branch"])
def test_outputs_that_are_not_finite_fail_the_run_and_name_the_images(model, parameter):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        for name, value in broken.named_parameters():
            if name.startswith(parameter):
                value.fill_(math.nan)

    with pytest.raises(
        RunFailed, match=f"for {SUBSET.names[0]} to {SUBSET.names[3]} are not finite"
    ):
        score(broken)
