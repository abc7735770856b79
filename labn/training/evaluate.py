"""Scores of a network over a subset: loss, classification, faithfulness."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from labn.data.batches import Batch
from labn.errors import RunFailed
from labn.explain.controls import CentredGaussian
from labn.metrics.calibration import Reliability, fit_temperature, reliability
from labn.metrics.classification import ClassificationScores, classification_scores
from labn.metrics.faithfulness import PatchInsertionDeletion, Predict, patch_insertion_deletion
from labn.model.fusion import folded
from labn.model.network import LABN, LABNOutput, upsample_attention
from labn.training.losses import LossSums, LossTerms, Objective
from labn.training.process_group import SINGLE, Group

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The scores of one pass over a subset.

    ``probabilities`` (n, classes) and ``labels`` (n,) are the perception branch's, in the order of
    ``names``; ``bias_probabilities`` are those of the bias image. ``pid`` holds the scores of the
    network's attention for the positives, in that order, None if there are none or PID was not
    requested; ``centre`` those of a centred Gaussian, the same for every image, on the same network
    and images. ``mask`` are the metrics of L_KL's mask; ``attended`` is the share of each image in
    which the attention exceeds theta_alpha, None without attention.
    """

    names: tuple[str, ...]
    labels: Int[Tensor, " n"]
    probabilities: Float[Tensor, "n classes"]
    loss: LossTerms
    classification: ClassificationScores
    pid: PatchInsertionDeletion | None
    bias_probabilities: Float[Tensor, " classes"]
    mask: dict[str, float]
    attended: Float[Tensor, " n"] | None
    centre: PatchInsertionDeletion | None = None

    @property
    def bias_probability(self) -> float:
        """The predicted probability that the bias image is positive, which caps PID."""
        return 1 - self.bias_probabilities[0].item()

    @property
    def reliability(self) -> Reliability:
        """The accuracy by confidence."""
        return reliability(self.probabilities, self.labels)

    def certainty(self, positions: Sequence[int]) -> dict[str, float]:
        """Return the mean probability of images' true class, for them and for the bias image."""
        labels = self.labels[list(positions)]
        p_image = self.probabilities[list(positions), labels].mean().item()
        return {"p_image": p_image, "p_bias": self.bias_probabilities[labels].mean().item()}

    def as_metrics(self, prefix: str) -> dict[str, float]:
        """Return every defined score, named ``<prefix>_<score>``."""
        metrics = {
            "loss": self.loss.total.item(),
            "loss_lpb": self.loss.lpb.item(),
            "loss_lab": self.loss.lab.item(),
            "loss_kl": self.loss.kl.item(),
            "loss_area": self.loss.area.item(),
            "bias_probability": self.bias_probability,
            "ece": self.reliability.expected_error,
        }
        if positives := self.labels.nonzero()[:, 0].tolist():
            metrics |= self.certainty(positives)
            if self.attended is not None:
                metrics["attended_area"] = self.attended[positives].mean().item()
        if self.pid is not None:
            metrics["pid"] = self.pid.pid.mean().item()
            if self.pid.matched is not None:
                metrics["pid_matched"] = self.pid.matched.pid.mean().item()
                if self.centre is not None and self.centre.matched is not None:
                    gain = self.pid.matched.pid - self.centre.matched.pid
                    metrics["pid_over_centre"] = gain.mean().item()
        scores = self.classification.as_metrics(prefix)
        metrics |= self.mask
        return {f"{prefix}_{name}": value for name, value in metrics.items()} | scores


@dataclass(frozen=True, kw_only=True)
class Faithfulness:
    """Settings of PID; see ``patch_insertion_deletion``.

    The first ``max_positives`` images of a class other than 0 are scored (None: all of them). With
    ``centre`` a centred Gaussian is scored beside the attention.
    """

    patch_size: int
    num_points: int | None
    max_positives: int | None = None
    frame_batch_size: int = 64
    centre: bool = False


def predictor(model: nn.Module) -> Predict:
    """Return a function from images to the perception branch's probabilities.

    It uses a copy of the network as it is now, in evaluation mode, with batch norm folded into
    the convolutions.
    """
    network = folded(model) if isinstance(model, LABN) else model

    def predict(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        output: LABNOutput = network(images)
        _check_finite(output, "a masked image")
        return output.logits.float().softmax(dim=1)

    return predict


def _check_finite(output: LABNOutput, shown: str) -> None:
    if not (output.logits.isfinite().all() and output.attention.isfinite().all()):
        raise RunFailed(
            f"the network's logits or attention for {shown} are not finite; lower the learning"
            " rates or lengthen train.warmup_epochs"
        )


def evaluate(
    model: LABN,
    batches: Iterable[Batch],
    objective: Objective,
    faithfulness: Faithfulness | None,
    on_batch: Callable[[], None] = lambda: None,
    group: Group = SINGLE,
) -> Evaluation:
    """Score a network in evaluation mode, and leave it in that mode.

    Each rank of a group passes the batches of its share of the subset, and its share of the
    positives in ``faithfulness``; all return the whole evaluation, in which each image counts once.

    The loss is eq. 8 over the whole subset, as training minimises it; PID (eq. 14), unless
    ``faithfulness`` is None, is that of the attention, with the bias image as the baseline, and at
    matched confidence too, by the temperature of this subset.

    Raises:
        RunFailed: the network's output is not finite.
    """
    model.eval()
    predict = predictor(model)
    scorer = faithfulness and _PositiveScorer(predict, objective.bias_image, faithfulness)
    names: list[str] = []
    labels, probabilities, attended, sums = [], [], [], list[LossSums]()
    with torch.inference_mode():
        for batch in batches:
            output, batch_sums = objective.sums(model, batch.images, batch.labels)
            _check_finite(output, f"{batch.names[0]} to {batch.names[-1]}")
            names += batch.names
            labels.append(batch.labels.cpu())
            probabilities.append(output.logits.float().softmax(dim=1).cpu())
            attended.append(_attended_area(output, batch, model.theta_alpha))
            sums.append(batch_sums)
            if scorer:
                scorer.keep(batch, output)
            else:
                on_batch()
        bias_probabilities = predict(objective.bias_image[None])[0].cpu()
    names, labels, probabilities = (_gather(group, part) for part in (names, labels, probabilities))
    if scorer:
        scorer.score(fit_temperature(torch.cat(probabilities), torch.cat(labels)), on_batch)
    attended = _gather(group, attended)
    total = _gather_sums(group, sums)
    pids = _gather(group, scorer.parts if scorer else [])
    centres = _gather(group, scorer.centres if scorer else [])
    return Evaluation(
        names=tuple(names),
        labels=torch.cat(labels),
        probabilities=torch.cat(probabilities),
        loss=objective.combine(total, total.weight, total.num_images),
        classification=classification_scores(torch.cat(probabilities), torch.cat(labels)),
        pid=_join(pids) if pids else None,
        bias_probabilities=bias_probabilities,
        mask=objective.mask_metrics(total),
        attended=torch.cat(attended) if model.has_branch else None,
        centre=_join(centres) if centres else None,
    )


def _attended_area(output: LABNOutput, batch: Batch, theta_alpha: float) -> Float[Tensor, " b"]:
    size = batch.images.shape[2], batch.images.shape[3]
    alpha_bhw = upsample_attention(output.attention.float(), size)
    return (alpha_bhw > theta_alpha).float().mean(dim=(1, 2)).cpu()


def _gather(group: Group, part: list[T]) -> list[T]:
    return [item for one in group.gather(part) for item in one]


def _gather_sums(group: Group, sums: list[LossSums]) -> LossSums:
    """Return the total of all batches of all ranks, in double precision."""
    device = sums[0].kl.device if sums else torch.device("cpu")
    rows = [torch.stack(tuple(batch)).double().cpu() for batch in sums]
    total = torch.stack(_gather(group, rows)).sum(dim=0).to(device)
    return LossSums(*total)


class _PositiveScorer:
    """The PID of the positives, batch by batch; their images are kept until all are classified."""

    def __init__(self, predict: Predict, bias_image: Tensor, settings: Faithfulness) -> None:
        self._predict, self._bias_image, self._settings = predict, bias_image, settings
        self._num_kept = 0
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []
        self.parts: list[PatchInsertionDeletion] = []
        self.centres: list[PatchInsertionDeletion] = []

    def keep(self, batch: Batch, output: LABNOutput) -> None:
        """Keep the positives of one batch, up to the limit."""
        chosen = (batch.labels > 0).nonzero()[:, 0].tolist()
        if self._settings.max_positives is not None:
            chosen = chosen[: self._settings.max_positives - self._num_kept]
        self._num_kept += len(chosen)
        attention = output.attention[chosen].float()
        self._kept.append((batch.images[chosen], attention, batch.labels[chosen]))

    def score(self, temperature: float, on_batch: Callable[[], None]) -> None:
        """Score the positives that were kept."""
        for images, attention, labels in self._kept:
            if len(images):
                size = (images.shape[2], images.shape[3])
                maps = upsample_attention(attention, size)
                self.parts.append(self._score(images, maps, labels, temperature))
                if self._settings.centre:
                    maps = CentredGaussian().explain(images, labels, ())
                    self.centres.append(self._score(images, maps, labels, temperature))
            on_batch()

    def _score(
        self, images: Tensor, maps: Tensor, labels: Tensor, temperature: float
    ) -> PatchInsertionDeletion:
        return patch_insertion_deletion(
            self._predict,
            images,
            maps,
            labels,
            patch_size=self._settings.patch_size,
            baseline=self._bias_image,
            num_points=self._settings.num_points,
            batch_size=self._settings.frame_batch_size,
            temperature=temperature,
        )


def _join(parts: list[PatchInsertionDeletion]) -> PatchInsertionDeletion:
    matched = [part.matched for part in parts if part.matched is not None]
    return PatchInsertionDeletion(
        pid=torch.cat([part.pid for part in parts]),
        insertion_auc=torch.cat([part.insertion_auc for part in parts]),
        deletion_auc=torch.cat([part.deletion_auc for part in parts]),
        insertion_curve=torch.cat([part.insertion_curve for part in parts]),
        deletion_curve=torch.cat([part.deletion_curve for part in parts]),
        fractions=parts[0].fractions,
        matched=_join(matched) if matched else None,
    )
