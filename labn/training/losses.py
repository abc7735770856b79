"""The loss of eq. 8-13: cross-entropy of both branches, and a divergence under masking.

Symbols: x image, y label, b bias image, alpha~ attention, x~ image masked by the bias image,
L_LPB / L_LAB cross-entropies, L_KL divergence between the predictions for x and for x~.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from labn.model.kernels.batch_norm import kept_statistics
from labn.model.network import LABNOutput, upsample_attention

MaskRule = Literal["share", "threshold"]


class LossSums(NamedTuple):
    """Sums over images (0-d tensors): add them over pieces of a batch, then divide once.

    ``lpb`` and ``lab`` are class-weighted cross-entropies, to be divided by ``weight``, the sum of
    the images' class weights; ``kl``, ``kept``, the share of an image's pixels that x~ keeps, and
    ``area``, the mean of alpha~, are to be divided by ``num_images``.
    """

    lpb: Tensor
    lab: Tensor
    kl: Tensor
    weight: Tensor
    num_images: Tensor
    kept: Tensor
    area: Tensor

    def plus(self, other: LossSums) -> LossSums:
        """Return the term-by-term sum."""
        return LossSums(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, factor: float) -> LossSums:
        """Return every term times a factor."""
        return LossSums(*(factor * term for term in self))


class LossTerms(NamedTuple):
    """The loss (eq. 8) and its terms, with a penalty on the mean of alpha~, not in the paper.

    ``total = lpb + lambda_lab * lab + lambda_kl * kl + lambda_area * area``.
    """

    total: Tensor
    lpb: Tensor
    lab: Tensor
    kl: Tensor
    area: Tensor


def kept_pixels(
    attention: Float[Tensor, "b 1 h2 w2"],
    size: tuple[int, int],
    theta_b: float,
    rule: MaskRule,
) -> Bool[Tensor, "b h w"]:
    """Return the pixels that x~ keeps of the image, by upsampled alpha~.

    ``share`` keeps the round(theta_b * h * w) largest, at least one, and of equal ones the first in
    row-major order; ``threshold`` keeps those above theta_b. Nothing here waits for a GPU.

    Source: Iida 2022, eq. 12 is ``threshold``, but its text calls theta_b "the mask ratio", and the
    authors' code keeps a share. Read as a threshold, training escapes L_KL by raising alpha~.
    """
    alpha_bhw = upsample_attention(attention, size)
    if rule == "threshold":
        return alpha_bhw > theta_b
    alpha_bn = alpha_bhw.flatten(1)
    num_kept = max(1, round(theta_b * alpha_bn.shape[1]))
    smallest_b1 = alpha_bn.topk(num_kept, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    is_larger, is_tied = alpha_bn > smallest_b1, alpha_bn == smallest_b1
    num_tied_b1 = num_kept - is_larger.sum(dim=1, keepdim=True)
    is_kept = is_larger | (is_tied & (is_tied.cumsum(dim=1, dtype=torch.int32) <= num_tied_b1))
    return is_kept.view_as(alpha_bhw)


def prediction_divergence(
    logits: Float[Tensor, "b classes"], masked_logits: Float[Tensor, "b classes"]
) -> Float[Tensor, " b"]:
    """Return KL(p(x) || p(x~)) of each image, in nats, from logits (Iida 2022, eq. 11)."""
    log_p, log_p_masked = logits.log_softmax(dim=1), masked_logits.log_softmax(dim=1)
    return F.kl_div(log_p_masked, log_p, reduction="none", log_target=True).sum(dim=1)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The loss as a function of a model and a batch.

    ``bias_image`` (c, h, w) is standardised like the images; ``class_weights`` (classes,) weigh
    the cross-entropies. ``theta_b`` and ``mask_rule`` decide what x~ keeps, see ``kept_pixels``.
    With ``lambda_kl`` zero the masked image is never passed through. Without
    ``masked_statistics`` it leaves batch norm's running statistics alone.
    """

    bias_image: Tensor
    theta_b: float
    mask_rule: MaskRule
    lambda_lab: float
    lambda_kl: float
    lambda_area: float = 0.0
    masked_statistics: bool = True
    class_weights: Tensor | None = None

    def image_weights(self, labels: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Return each image's class weight."""
        if self.class_weights is None:
            return torch.ones(labels.shape, device=labels.device)
        return self.class_weights.index_select(0, labels)

    def sums(
        self, model: nn.Module, images: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"]
    ) -> tuple[LABNOutput, LossSums]:
        """Return the model's output for a batch and the sums of the losses.

        If L_KL counts, the masked batch is a second pass. Gradients flow through both passes, not
        through the mask.
        """
        output: LABNOutput = model(images)
        logits = output.logits.float()
        weights = self.image_weights(labels)
        lpb = (weights * F.cross_entropy(logits, labels, reduction="none")).sum()
        lab_losses = F.cross_entropy(output.branch_logits.float(), labels, reduction="none")
        kl = kept = torch.zeros((), device=images.device)
        if self.lambda_kl > 0:
            attention, size = output.attention.detach().float(), (images.shape[2], images.shape[3])
            is_kept_bhw = kept_pixels(attention, size, self.theta_b, self.mask_rule)
            masked = torch.where(is_kept_bhw.unsqueeze(1), images, self.bias_image)
            with nullcontext() if self.masked_statistics else kept_statistics(model):
                masked_logits = model(masked).logits.float()
            kl = prediction_divergence(logits, masked_logits).sum()
            kept = is_kept_bhw.float().mean(dim=(1, 2)).sum()
        # Without a penalty nothing is differentiated for it.
        area_source = output.attention if self.lambda_area > 0 else output.attention.detach()
        area = area_source.float().mean(dim=(1, 2, 3)).sum()
        lab = (weights * lab_losses).sum()
        num_images = torch.full((), float(len(labels)), device=images.device)
        return output, LossSums(lpb, lab, kl, weights.sum(), num_images, kept, area)

    def mask_metrics(self, sums: LossSums) -> dict[str, float]:
        """Return the mean share of pixels that x~ kept, or nothing if there was no x~."""
        if self.lambda_kl == 0:
            return {}
        return {"kept_share": (sums.kept / sums.num_images).item()}

    def combine(self, sums: LossSums, weight: Tensor, num_images: Tensor) -> LossTerms:
        """Return the loss (eq. 8): sums divided by a batch's total weight and number of images.

        If ``sums`` are those of a piece of a batch, pass the totals of the whole batch: the
        results, and gradients, of all pieces then add up to the batch's.
        """
        lpb, lab, kl = sums.lpb / weight, sums.lab / weight, sums.kl / num_images
        area = sums.area / num_images
        total = lpb + self.lambda_lab * lab + self.lambda_kl * kl
        if self.lambda_area > 0:
            total = total + self.lambda_area * area
        return LossTerms(total, lpb, lab, kl, area)
