"""The command `python -m tests.bench.evidence RUN`: is the evidence where LABN's attention lies?

Lambda layers see the whole image, and might gather at one place what they find at others. Here the
attention stays that of the image, and the features are computed anew from an image of which only
the attended pixels are left, the others being the bias image's, and from one without these pixels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from sklearn.metrics import roc_auc_score
from torch import Tensor

from labn.data.readers.reader import SubsetName
from labn.model.network import LABN, upsample_attention
from labn.runs.build import require_subset
from labn.runs.reporter import Reporter
from labn.runs.trained import TrainedRun

_BATCH_SIZE = 8


def main() -> None:
    """Print the mean probability of class 1 for the images of each class, and the AUROC."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.bench.evidence")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--split", default="validation", choices=("validation", "test"))
    given = parser.parse_args()
    scores = pd.concat([_score(run, given.split) for run in given.runs])
    table = scores.groupby("label").mean().T.add_prefix("class ")
    table["AUROC"] = [roc_auc_score(scores["label"], scores[name]) for name in table.index]
    table["n"] = len(scores)
    print(table.round(3).to_string())


def _score(run: Path, split: SubsetName) -> pd.DataFrame:
    trained = TrainedRun.open(run)
    subset = require_subset(trained.load_dataset(Reporter()), split)
    bias = trained.statistics.bias_image[None].to(trained.device)
    rows = []
    for start in range(0, len(subset), _BATCH_SIZE):
        positions = np.arange(start, min(start + _BATCH_SIZE, len(subset)))
        images = trained.prepare(subset.pixels(positions)).float()
        with torch.inference_mode(), trained.autocast():
            columns = probabilities(trained.model, images, bias)
        rows.append(pd.DataFrame(columns).assign(label=subset.labels[positions]))
    return pd.concat(rows)


def probabilities(
    model: LABN, images: Float[Tensor, "b c h w"], bias: Float[Tensor, "1 c h w"]
) -> dict[str, Float[np.ndarray, " b"]]:
    """Return the probability of class 1 from all pixels, from those attended, and from the rest."""
    attention = model.attention_branch(model.extract(images)).attention
    is_attended = (
        upsample_attention(attention, (images.shape[2], images.shape[3]))[:, None]
        > model.theta_alpha
    )
    shown = {
        "the image": images,
        "attended pixels": torch.where(is_attended, images, bias),
        "other pixels": torch.where(is_attended, bias, images),
        "the bias image": bias.expand_as(images),
    }
    columns = {"attended area": is_attended.float().mean(dim=(1, 2, 3))}
    for name, pixels in shown.items():
        logits = model.classify(model.attend(attention, model.extract(pixels)))
        columns[name] = logits.softmax(dim=1)[:, 1]
    return {name: column.cpu().numpy() for name, column in columns.items()}


if __name__ == "__main__":
    main()
