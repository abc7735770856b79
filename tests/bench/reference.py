"""Reference implementations: the same mathematics, written directly from the equations.

labn does not use them; they are exact, and slow on purpose.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labn.explain.rise import GridMasks
from labn.metrics.faithfulness import Predict
from labn.model.lambda_layer import LambdaLayer


class Conv3dLambdaLayer(LambdaLayer):
    """Eq. 3-7 of Iida 2022 taken literally: a Conv3d computes and stores position lambdas."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply content and position lambdas to the queries."""
        b, _, height, width = x.shape
        q, k, v = self.conv_qkv(x).split(
            [self.num_heads * self.key_depth, self.key_depth, self.value_depth], dim=1
        )
        queries = self.norm_q(q).reshape(b, self.num_heads, self.key_depth, -1)
        keys = k.reshape(b, self.key_depth, -1).softmax(dim=-1)
        values = self.norm_v(v).contiguous()
        content = torch.einsum("bkm,bvm->bkv", keys, values.flatten(2))
        margin = self.lambda_conv.kernel_size[1] // 2
        position = F.conv3d(
            values.unsqueeze(1),
            self.lambda_conv.weight,
            self.lambda_conv.bias,
            padding=(0, margin, margin),
        ).flatten(3)
        y = torch.einsum("bhkm,bkv->bhvm", queries, content)
        y = y + torch.einsum("bhkm,bkvm->bhvm", queries, position)
        pooled: Tensor = self.pool(y.reshape(b, -1, height, width))
        return pooled


def with_conv3d_layers(network: nn.Module) -> nn.Module:
    """Make the lambda layers of a network compute by Conv3d, with the same weights."""
    for module in network.modules():
        if type(module) is LambdaLayer:
            module.__class__ = Conv3dLambdaLayer
    return network


def pid_one_by_one(
    predict: Predict, image: Tensor, saliency: Tensor, label: int, side: int, baseline: Tensor
) -> float:
    """Return the PID (eq. 14-16) of one image over every n, one masked image at a time."""
    height, width = saliency.shape
    tops = [(i, j) for i in range(0, height, side) for j in range(0, width, side)]
    peaks = [float(saliency[i : i + side, j : j + side].max()) for i, j in tops]
    inserted, deleted = baseline.clone(), image.clone()
    curves = []
    for n in range(len(tops) + 1):
        if n:
            i, j = tops[int(np.argsort([-p for p in peaks], kind="stable")[n - 1])]
            here = (slice(None), slice(i, i + side), slice(j, j + side))
            inserted[here], deleted[here] = image[here], baseline[here]
        insertion, deletion = (float(predict(x[None])[0, label]) for x in (inserted, deleted))
        curves.append(insertion - deletion)
    return float(np.trapezoid(curves, dx=1 / len(tops)))


def rise_at_once(predict: Predict, image: Tensor, masks: GridMasks, batch_size: int) -> Tensor:
    """Return RISE's map (Petsiuk 2018), with all masks and masked images in memory."""
    height, width = masks.image_size
    grid = masks.grids_ngk.shape[1]
    sides = [-(-length // grid) for length in (height, width)]
    size = [(grid + 1) * side for side in sides]
    all_masks = torch.stack(
        [
            F.interpolate(cells[None, None].float(), size=size, mode="bilinear")[
                0, 0, top : top + height, left : left + width
            ]
            for cells, (top, left) in zip(masks.grids_ngk, masks.offsets.tolist(), strict=True)
        ]
    )
    masked = all_masks.unsqueeze(1) * image
    scores = torch.cat([predict(part) for part in torch.split(masked, batch_size)])
    return torch.einsum("nc,nij->cij", scores, all_masks) / len(all_masks)
