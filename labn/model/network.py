"""LABN: the feature extractor, the attention branch and the perception branch as one network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from labn.model.architectures import PLANS
from labn.model.attention_branch import AttentionBranch, NoBranch
from labn.model.backbone import Bottleneck, Stem, build_bottlenecks, init_convolutions
from labn.model.kernels.half import at_least_float32

Branch = Literal["attention", "none"]


class LABNOutput(NamedTuple):
    """The network's output for a batch.

    ``logits`` (b, classes) of the perception branch (LPB): the prediction;
    ``branch_logits`` (b, classes) of the attention branch (LAB);
    ``attention`` alpha~ (b, 1, h2, w2) in (0, 1), before the threshold theta_alpha.
    """

    logits: Tensor
    branch_logits: Tensor
    attention: Tensor


class LABN(nn.Module):
    """A backbone cut at bottleneck B, with an attention branch at the cut (Iida 2022, section 4).

    The stem and the first ``split`` bottlenecks are the LFE; the others with pooling and the
    linear layer are the LPB, which sees alpha' * h_LFE (eq. 2), or (1 + alpha') * h_LFE with
    ``residual_attention`` (Fukui 2019, eq. 3, has alpha~: it equals theta_alpha = 0). Without a
    ``branch`` the LPB sees h_LFE.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        in_channels: int,
        split: int,
        theta_alpha: float,
        branch_width: int | None = None,
        branch: Branch = "attention",
        residual_attention: bool = False,
    ) -> None:
        super().__init__()
        if backbone not in PLANS:
            raise ValueError(f"backbone must be one of {', '.join(PLANS)}, but got {backbone!r}")
        plan = PLANS[backbone]
        if not 0 <= split <= plan.num_bottlenecks:
            raise ValueError(
                f"split must be 0 to {plan.num_bottlenecks}, the bottlenecks of {backbone},"
                f" but got {split}"
            )
        if min(num_classes, in_channels) < 1:
            raise ValueError(
                "num_classes and in_channels must be at least 1, but got"
                f" {num_classes} and {in_channels}"
            )
        if branch not in ("attention", "none"):
            raise ValueError(f"branch must be 'attention' or 'none', but got {branch!r}")
        if not 0 <= theta_alpha <= 1:
            raise ValueError(f"theta_alpha must be 0 to 1, but got {theta_alpha}")
        self.plan, self.split, self.theta_alpha = plan, split, theta_alpha
        bottlenecks, channels = build_bottlenecks(plan)
        self.stem = Stem(in_channels, plan.stem_width)
        self.bottlenecks = nn.ModuleList(bottlenecks)
        self.has_branch, self.residual_attention = branch == "attention", residual_attention
        self.attention_branch = (
            AttentionBranch(channels[split], num_classes, branch_width)
            if self.has_branch
            else NoBranch(num_classes)
        )
        self._frozen: tuple[str, ...] = ()
        self.fc = nn.Linear(channels[-1], num_classes)
        init_convolutions(self)

    def forward(self, images: Float[Tensor, "b c h w"]) -> LABNOutput:
        """Return the logits and the attention of standardised images of any size."""
        h_lfe = self.extract(images)
        attention, branch_logits = self.attention_branch(h_lfe)
        logits = self.classify(self.attend(attention, h_lfe))
        return LABNOutput(logits, branch_logits, attention)

    def extract(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Return the features of the LFE, h_LFE."""
        h_lfe: Tensor = self.stem(images)
        for bottleneck in self.bottlenecks[: self.split]:
            h_lfe = bottleneck(h_lfe)
        return h_lfe

    def attend(
        self, attention: Float[Tensor, "b 1 h w"], h_lfe: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Return the features that the LPB sees."""
        if not self.has_branch:
            return h_lfe
        weight = threshold_attention(attention, self.theta_alpha)
        if self.residual_attention:
            weight = 1 + weight
        # In the features' own precision, which may be half of the map's.
        return weight.to(h_lfe) * h_lfe

    def classify(self, h: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """Return the LPB's logits of the features that it sees."""
        for bottleneck in self.bottlenecks[self.split :]:
            h = bottleneck(h)
        with torch.autocast(h.device.type, enabled=False):
            logits: Tensor = self.fc(at_least_float32(h).mean(dim=(2, 3)))
            return logits

    def sections(self) -> dict[str, list[nn.Module]]:
        """Return the modules of each section: LFE, LAB and LPB, the stem and the stages."""
        found: dict[str, list[nn.Module]] = {
            "lfe": [self.stem, *self.bottlenecks[: self.split]],
            "lab": [self.attention_branch],
            "lpb": [*self.bottlenecks[self.split :], self.fc],
            "stem": [self.stem],
        }
        start = 0
        for number, depth in enumerate(self.plan.stage_depths, start=1):
            found[f"stage{number}"] = list(self.bottlenecks[start : start + depth])
            start += depth
        return found

    def freeze(self, sections: Sequence[str]) -> None:
        """Keep the weights and batch norm's statistics of these sections as they are.

        Raises:
            KeyError: there is no such section.
        """
        self._frozen = tuple(sections)
        for module in self._frozen_modules():
            module.requires_grad_(requires_grad=False)
        self.train(self.training)

    def recompute_blocks(self, enabled: bool) -> None:
        """Let training keep the bottlenecks' inputs only, and recompute the rest."""
        for module in self.modules():
            if isinstance(module, Bottleneck):
                module.recompute = enabled

    def train(self, mode: bool = True) -> LABN:
        """Set the mode of all modules, but evaluation mode for those that are frozen."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        sections = self.sections() if self._frozen else {}
        return [module for name in self._frozen for module in sections[name]]


def threshold_attention(
    attention: Float[Tensor, "b 1 h w"], theta_alpha: float
) -> Float[Tensor, "b 1 h w"]:
    """Return alpha' (Iida 2022, eq. 2): the attention, zero where it is not above theta_alpha."""
    return torch.where(attention > theta_alpha, attention, torch.zeros_like(attention))


def upsample_attention(
    attention: Float[Tensor, "b 1 h2 w2"], image_size: tuple[int, int]
) -> Float[Tensor, "b h w"]:
    """Return the explanation alpha: alpha~ at the image's size, in (0, 1), not thresholded."""
    return F.interpolate(attention, size=image_size, mode="bilinear", align_corners=False)[:, 0]


def build_model(
    backbone: str = "lambda_resnet50",
    num_classes: int = 2,
    in_channels: int = 3,
    split: int = 7,
    theta_alpha: float = 0.75,
    branch_width: int | None = None,
    branch: Branch = "attention",
    residual_attention: bool = False,
) -> LABN:
    """Build an untrained LABN; weights are drawn from torch's global generator.

    Args:
        backbone: a name in ``labn.model.architectures.PLANS``.
        num_classes: number of classes of both heads.
        in_channels: number of channels of the images.
        split: B, the number of bottlenecks before the attention branch, 0 to N_B.
        theta_alpha: attention at or below it is masked to zero, 0 to 1.
        branch_width: inner width of the attention branch; None uses h_LFE's channels.
        branch: "none" leaves the attention branch out, for a plain network.
        residual_attention: the LPB sees (1 + alpha') * h_LFE, as in Fukui 2019.

    Raises:
        ValueError: an argument is out of its range.
    """
    return LABN(
        backbone,
        num_classes,
        in_channels,
        split,
        theta_alpha,
        branch_width,
        branch,
        residual_attention,
    )
