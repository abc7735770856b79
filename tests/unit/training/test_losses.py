from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from labn.config import Config
from labn.model.network import LABNOutput, build_model
from labn.training.losses import LossSums, Objective, kept_pixels, prediction_divergence

# A few dozen float64 operations on numbers of order 1.
ROUNDING = 1e-12

NUM_CLASSES, CHANNELS, HEIGHT, WIDTH = 3, 2, 8, 6
RULES = ["share", "threshold"]


class StubModel(nn.Module):
    """Both heads and the attention as smooth functions of the image; counts its calls."""

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return nn.Parameter(
                torch.randn(*shape, generator=generator, dtype=torch.float64) / shape[1] ** 0.5
            )

        self.perception = draw(NUM_CLASSES, CHANNELS * HEIGHT * WIDTH)
        self.branch = draw(NUM_CLASSES, CHANNELS * HEIGHT * WIDTH)
        self.attention = draw(4 * 3, CHANNELS * HEIGHT * WIDTH)
        self.seen = []

    def forward(self, images):
        self.seen.append(images)
        x_bi = images.flatten(1)
        attention = (x_bi @ self.attention.T).sigmoid().view(-1, 1, 4, 3)
        logits = 5 * attention.mean(dim=(2, 3)) * (x_bi @ self.perception.T).tanh()
        return LABNOutput(logits, x_bi @ self.branch.T, attention)


def make_case(seed, num_images=5):
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.standard_normal((num_images, CHANNELS, HEIGHT, WIDTH)))
    labels = torch.from_numpy(rng.integers(0, NUM_CLASSES, num_images))
    bias_image = torch.from_numpy(rng.standard_normal((CHANNELS, HEIGHT, WIDTH)))
    return StubModel(seed), images, labels, bias_image


def objective_of(bias_image, **settings):
    return Objective(
        **{
            "bias_image": bias_image, "theta_b": 0.5, "mask_rule": "share", "lambda_lab": 0.7,
            "lambda_kl": 1.3,
        } | settings
    )  # fmt: skip


def loss_of(objective, model, images, labels):
    _, sums = objective.sums(model, images, labels)
    return objective.combine(sums, sums.weight, sums.num_images)


def softmax(logits_c):
    exponentials = np.exp(logits_c)
    return exponentials / exponentials.sum()


def enlarged(map_yx):
    """Interpolate to the image's size, pixel centres at halves, edges extended."""
    result = np.zeros((HEIGHT, WIDTH))
    for y in range(HEIGHT):
        for x in range(WIDTH):
            at_y = np.clip((y + 0.5) * map_yx.shape[0] / HEIGHT - 0.5, 0, map_yx.shape[0] - 1)
            at_x = np.clip((x + 0.5) * map_yx.shape[1] / WIDTH - 0.5, 0, map_yx.shape[1] - 1)
            for near_y in range(map_yx.shape[0]):
                for near_x in range(map_yx.shape[1]):
                    share_y = max(0, 1 - abs(near_y - at_y))
                    result[y, x] += (
                        share_y * max(0, 1 - abs(near_x - at_x)) * map_yx[near_y, near_x]
                    )
    return result


def slow_mask(alpha_yx, theta_b, rule):
    """Return which pixels x~ keeps, one by one."""
    is_kept = np.zeros(alpha_yx.shape, dtype=bool)
    if rule == "threshold":
        for place in np.ndindex(alpha_yx.shape):
            is_kept[place] = alpha_yx[place] > theta_b
        return is_kept
    for _ in range(max(1, round(theta_b * alpha_yx.size))):
        left = [place for place in np.ndindex(alpha_yx.shape) if not is_kept[place]]
        is_kept[max(left, key=lambda place: alpha_yx[place])] = (
            True  # max takes the first of equals
        )
    return is_kept


def slow_loss(model, images, labels, objective):
    """Eq. 8 to 12, image by image."""
    bias_cyx = objective.bias_image.numpy()
    weights = np.ones(NUM_CLASSES)
    if objective.class_weights is not None:
        weights = objective.class_weights.numpy()
    lpb = lab = kl = area = total_weight = 0.0
    for x_cyx, y in zip(images.numpy(), labels.tolist(), strict=True):
        output = model(torch.from_numpy(x_cyx)[None])
        p, p_lab = (softmax(logits[0].detach().numpy()) for logits in output[:2])
        alpha_yx = enlarged(output.attention[0, 0].detach().numpy())
        masked_cyx = np.empty_like(x_cyx)
        is_kept = slow_mask(alpha_yx, objective.theta_b, objective.mask_rule)
        for i, j in np.ndindex(HEIGHT, WIDTH):
            masked_cyx[:, i, j] = (x_cyx if is_kept[i, j] else bias_cyx)[:, i, j]
        p_masked = softmax(model(torch.from_numpy(masked_cyx)[None]).logits[0].detach().numpy())
        lpb -= weights[y] * np.log(p[y])
        lab -= weights[y] * np.log(p_lab[y])
        kl += sum(p[c] * np.log(p[c] / p_masked[c]) for c in range(NUM_CLASSES))
        total_weight += weights[y]
        area += output.attention.mean().item()
    lpb, lab, kl = lpb / total_weight, lab / total_weight, kl / len(images)
    total = lpb + objective.lambda_lab * lab + objective.lambda_kl * kl
    area /= len(images)
    return total + objective.lambda_area * area, lpb, lab, kl, area


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("class_weights", [None, [2.0, 1.0, 0.25]])
def test_the_loss_and_its_terms_are_those_of_equations_8_to_12(seed, class_weights, rule):
    model, images, labels, bias_image = make_case(seed)
    weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float64)
    objective = objective_of(bias_image, class_weights=weights, mask_rule=rule, lambda_area=0.6)
    # Logits are taken in float32, whose rounding a mean of logarithms keeps.
    terms = loss_of(objective, model, images, labels)
    for term, expected in zip(terms, slow_loss(model, images, labels, objective), strict=True):
        assert term.item() == pytest.approx(expected, rel=2e-6)
    assert terms.kl.item() > 0.01


def test_class_weights_follow_the_labels():
    objective = objective_of(torch.zeros(1, 1, 1), class_weights=torch.tensor([2.0, 1.0, 0.5]))
    assert objective.image_weights(torch.tensor([2, 0, 0])).tolist() == [0.5, 2.0, 2.0]
    unweighted = objective_of(torch.zeros(1, 1, 1))
    assert unweighted.image_weights(torch.tensor([2, 0, 0])).tolist() == [1.0, 1.0, 1.0]


def test_the_divergence_is_that_of_the_masked_prediction_from_the_plain_one():
    p, p_masked = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.3, 0.6])
    logits, masked = (torch.from_numpy(np.log(q)[None] + 5) for q in (p, p_masked))
    forward = sum(p * np.log(p / p_masked))
    backward = sum(p_masked * np.log(p_masked / p))
    assert forward != pytest.approx(backward, rel=0.01)
    assert prediction_divergence(logits, masked).item() == pytest.approx(forward, abs=ROUNDING)
    assert prediction_divergence(masked, logits).item() == pytest.approx(backward, abs=ROUNDING)
    assert prediction_divergence(logits, logits).item() == pytest.approx(0, abs=ROUNDING)


def test_the_divergence_of_confident_predictions_is_finite():
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    masked = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    divergence = prediction_divergence(logits, masked)
    divergence.sum().backward()
    assert divergence.item() == pytest.approx(400)
    assert logits.grad.isfinite().all() and masked.grad.isfinite().all()


def test_the_divergence_s_gradients_agree_with_finite_differences():
    rng = np.random.default_rng(3)
    logits, masked = (
        torch.from_numpy(rng.standard_normal((2, 3))).requires_grad_() for _ in range(2)
    )
    assert torch.autograd.gradcheck(prediction_divergence, (logits, masked))


def test_a_pixel_at_the_threshold_is_the_bias_image_s():
    attention = torch.tensor([[[[0.2, 0.5], [0.5000001, 0.8]]]])
    is_kept = kept_pixels(attention, (2, 2), 0.5, "threshold")
    assert is_kept[0].tolist() == [[False, False], [True, True]]


@pytest.mark.parametrize("rule", RULES)
def test_the_mask_is_cut_from_the_enlarged_attention(rule):
    attention = torch.from_numpy(np.random.default_rng(4).random((2, 1, 4, 3)))
    is_kept = kept_pixels(attention, (HEIGHT, WIDTH), 0.4, rule)
    for image in range(2):
        expected = slow_mask(enlarged(attention[image, 0].numpy()), 0.4, rule)
        assert expected.any() and not expected.all()
        assert is_kept[image].tolist() == expected.tolist()


@pytest.mark.parametrize("theta_b", [0.0, 0.04, 0.2, 0.5, 0.77, 1.0])
def test_a_share_of_the_pixels_is_kept_whatever_their_level_and_the_first_of_equal_ones(theta_b):
    """The maps: two levels with many ties, one level, and a steep one of which all is tiny."""
    levels = np.random.default_rng(1).integers(0, 3, (HEIGHT, WIDTH)) / 2
    maps = np.stack([levels, np.full((HEIGHT, WIDTH), 0.3), 1e-6 * levels**3 * levels.T.sum()])
    attention = torch.from_numpy(maps)[:, None]

    is_kept = kept_pixels(attention, (HEIGHT, WIDTH), theta_b, "share")

    num_kept = max(1, round(theta_b * HEIGHT * WIDTH))
    assert is_kept.sum(dim=(1, 2)).tolist() == [num_kept] * 3
    for ours, alpha_yx in zip(is_kept, maps, strict=True):
        assert ours.tolist() == slow_mask(alpha_yx, theta_b, "share").tolist()
    # Of one level, the first in row-major order.
    assert is_kept[1].flatten().tolist() == [place < num_kept for place in range(HEIGHT * WIDTH)]


@pytest.mark.parametrize("rule", RULES)
def test_the_kept_share_is_reported_over_all_images(rule):
    model, images, labels, bias_image = make_case(10)
    objective = objective_of(bias_image, mask_rule=rule, theta_b=0.3)
    _, one = objective.sums(model, images[:2], labels[:2])
    _, other = objective.sums(model, images[2:], labels[2:])
    attention = model(images).attention
    masks = [slow_mask(enlarged(a[0].detach().numpy()), 0.3, rule) for a in attention]
    expected = np.mean(masks)
    assert objective.mask_metrics(one.plus(other))["kept_share"] == pytest.approx(expected)
    assert 0 < expected < 1
    assert objective_of(bias_image, lambda_kl=0.0).mask_metrics(one) == {}


class Synchronised(TorchDispatchMode):
    """Fails where an operator makes the host wait for the device, or has a shape of its data."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert torch.Tag.data_dependent_output not in func.tags, func
        assert torch.Tag.dynamic_output_shape not in func.tags, func
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("rule", RULES)
def test_the_loss_never_waits_for_the_device(rule):
    model, images, labels, bias_image = make_case(11)
    weights = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    objective = objective_of(bias_image, mask_rule=rule, class_weights=weights)
    with Synchronised():
        loss_of(objective, model, images, labels).total.backward()
    with Synchronised(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        images.sum().item()


@pytest.mark.parametrize("bias_copies", [0, 1])
@pytest.mark.parametrize("lambda_kl", [0.0, 1.0])
def test_the_four_ablations_are_settings_and_only_l_kl_costs_a_second_pass(bias_copies, lambda_kl):
    config = Config.model_validate(
        {
            "data": {"name": "synthetic", "bias_copies": bias_copies},
            "loss": {"lambda_kl": lambda_kl},
            "output_dir": "runs/ablation",
        }
    )
    model, images, labels, bias_image = make_case(6)
    objective = objective_of(
        bias_image,
        theta_b=config.loss.theta_b,
        mask_rule=config.loss.mask_rule,
        lambda_lab=config.loss.lambda_lab,
        lambda_kl=config.loss.lambda_kl,
    )
    terms = loss_of(objective, model, images, labels)
    assert len(model.seen) == (2 if lambda_kl else 1)
    assert model.seen[0] is images
    if lambda_kl:
        attention = StubModel(6)(images).attention
        is_kept = kept_pixels(attention, (HEIGHT, WIDTH), config.loss.theta_b, "share")
        assert torch.equal(model.seen[1], torch.where(is_kept[:, None], images, bias_image))
        assert terms.kl.item() > 0
    else:
        assert terms.kl.item() == 0
        assert terms.total.item() == pytest.approx((terms.lpb + terms.lab).item(), rel=1e-6)


@pytest.mark.parametrize("class_weights", [None, [2.0, 1.0, 0.25]])
def test_the_parts_of_a_batch_add_up_to_its_loss_and_gradients(class_weights):
    model, images, labels, bias_image = make_case(7)
    weights = None if class_weights is None else torch.tensor(class_weights)
    objective = objective_of(bias_image, class_weights=weights)
    whole = loss_of(objective, model, images, labels)
    whole.total.backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]

    model.zero_grad()
    total_weight = objective.image_weights(labels).sum()
    pieces = []
    for piece in (slice(0, 1), slice(1, 4), slice(4, 5)):
        _, sums = objective.sums(model, images[piece], labels[piece])
        terms = objective.combine(sums, total_weight, torch.tensor(5.0))
        terms.total.backward()
        pieces.append(terms)
    for term, whole_term in zip(zip(*pieces, strict=True), whole, strict=True):
        assert sum(term).item() == pytest.approx(whole_term.item(), rel=1e-6)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-7)


def test_sums_add_up_before_they_are_divided():
    objective = objective_of(torch.zeros(1, 1, 1), lambda_lab=2.0, lambda_kl=0.5)
    sums = LossSums(*(torch.tensor(value) for value in (6.0, 9.0, 8.0, 3.0, 4.0, 1.0, 2.0)))
    terms = objective.combine(sums, sums.weight, sums.num_images)
    assert [term.item() for term in terms] == [2 + 2 * 3 + 0.5 * 2, 2.0, 3.0, 2.0, 0.5]


def test_the_penalty_on_the_area_makes_attention_smaller_and_is_free_where_it_is_zero():
    for lambda_area in (0.0, 2.0):
        attention = torch.rand(2, 1, 4, 3, requires_grad=True)
        logits = torch.randn(2, 3)
        model = TwoPasses(logits, logits, attention)
        objective = objective_of(torch.zeros(1, HEIGHT, WIDTH), lambda_area=lambda_area)
        terms = loss_of(objective, model, torch.zeros(2, 1, HEIGHT, WIDTH), torch.tensor([0, 2]))
        assert terms.area.item() == pytest.approx(attention.mean().item())
        if lambda_area == 0:
            assert not terms.total.requires_grad
        else:
            terms.total.backward()
            # The mean over two images of means over twelve positions.
            torch.testing.assert_close(attention.grad, torch.full_like(attention, 2 / 24))


class TwoPasses(nn.Module):
    """Gives prepared logits: one leaf for the plain pass, one for the masked pass."""

    def __init__(self, plain, masked, attention):
        super().__init__()
        self.attention = attention
        self.passes = iter([plain, masked])

    def forward(self, images):
        logits = next(self.passes)
        return LABNOutput(logits, logits.detach(), self.attention)


def test_the_divergence_teaches_both_passes():
    plain, masked = (torch.randn(2, 3).requires_grad_() for _ in range(2))
    attention = torch.rand(2, 1, 4, 3, requires_grad=True)
    model = TwoPasses(plain, masked, attention)
    objective = objective_of(torch.zeros(1, HEIGHT, WIDTH), lambda_lab=0.0)
    _, sums = objective.sums(model, torch.zeros(2, 1, HEIGHT, WIDTH), torch.tensor([0, 2]))
    sums.kl.backward()
    p, p_masked = plain.detach().softmax(1), masked.detach().softmax(1)
    log_ratio = (p / p_masked).log()
    expected_plain = p * (log_ratio - (p * log_ratio).sum(1, keepdim=True))
    torch.testing.assert_close(plain.grad, expected_plain)
    torch.testing.assert_close(masked.grad, p_masked - p)
    assert attention.grad is None


def test_gradients_of_the_whole_loss_agree_with_finite_differences():
    """In float32, as logits are: coarse steps, along the gradient of each parameter."""
    model, images, labels, bias_image = make_case(8)
    objective = objective_of(bias_image, class_weights=torch.tensor([2.0, 1.0, 0.5]))
    loss_of(objective, model, images, labels).total.backward()
    for parameter in model.parameters():
        direction = parameter.grad / parameter.grad.norm()
        values = []
        for step in (1e-2, -1e-2):
            with torch.no_grad():
                parameter += step * direction
                values.append(loss_of(objective, model, images, labels).total.item())
                parameter -= step * direction
        slope = (values[0] - values[1]) / 2e-2
        assert slope == pytest.approx(parameter.grad.norm().item(), rel=2e-3)


def test_a_training_batch_updates_the_statistics_of_both_passes():
    torch.manual_seed(9)
    model = build_model("lambda_cnn", in_channels=1, split=0).train()
    images, labels = torch.randn(4, 1, 32, 32), torch.tensor([0, 1, 1, 0])
    objective = objective_of(torch.zeros(1, 32, 32))
    objective.sums(model, images, labels)
    assert model.stem.bn1.num_batches_tracked.item() == 2


class NormalisedNetwork(nn.Module):
    """A network with one batch norm, whose attention is even."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images):
        features = self.norm(self.conv(images)).relu().mean((2, 3))
        attention = torch.full((len(images), 1, 2, 2), 0.5)
        return LABNOutput(features[:, :2], features[:, 2:], attention)


@pytest.mark.parametrize("updates", [True, False])
def test_the_masked_pass_may_leave_the_running_statistics_alone(updates):
    torch.manual_seed(0)
    model, images, labels = NormalisedNetwork(), torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])
    plain = copy.deepcopy(model)
    plain(images)
    objective = objective_of(torch.zeros(3, 8, 8), theta_b=0.2, masked_statistics=updates)
    _, sums = objective.sums(model, images, labels)
    assert sums.kl > 0
    for name in ("running_mean", "running_var"):
        is_kept = torch.equal(getattr(model.norm, name), getattr(plain.norm, name))
        assert is_kept is not updates
    assert model.norm.momentum == 0.1
